"""Templates of other kinds: strict turns, dropped texts, contents in parts, switches by any name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from interp.data import ChatFormat, encode
from interp.data.chat import render, text_ids
from interp.data.templates import variables
from interp.errors import PromptError

STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Turns have to go user, assistant, user, ...') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
)
DROPS_SYSTEM = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
PARTS = (
    "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}|{% endif %}{% endfor %}{% endfor %}"
)
FAILS_ON_TEXT = "{% for m in messages %}{{ m['content'][0]['text'] + '|' }}{% endfor %}"
BODY = "{{ messages[-1]['content'] }}"


@pytest.fixture
def templated(tokenizer: Any):
    def make(template: Any) -> Any:
        made = copy.deepcopy(tokenizer)
        made.chat_template = template
        return made

    return make


def test_strictly_alternating_turns_take_the_system_text_in_the_first(templated) -> None:
    strict = templated(STRICT)
    assert render(strict, "hi", ChatFormat(system="be brief")) == "[user] be brief\n\nhi\n"
    talk = ChatFormat(system="be brief", history=(("a", "b"),))
    assert render(strict, "hi", talk) == "[user] be brief\n\na\n[assistant] b\n[user] hi\n"


def test_a_text_that_the_template_drops_is_an_error(templated) -> None:
    drops = templated(DROPS_SYSTEM)
    assert render(drops, "hi", ChatFormat()) == "hi"
    with pytest.raises(PromptError, match="leaves out the system text"):
        render(drops, "hi", ChatFormat(system="be brief"))
    for template in ("hello", ""):
        with pytest.raises(PromptError, match="leaves out the prompt"):
            render(templated(template), "What is it?", ChatFormat())


def test_a_text_that_the_template_changes_is_not_dropped(templated) -> None:
    loud = templated("{% for m in messages %}{{ m['content'] | upper | trim }}{% endfor %}")
    assert render(loud, " hi ", ChatFormat(system="be brief")) == "BE BRIEFHI"


@pytest.mark.parametrize("template", [PARTS, FAILS_ON_TEXT])
def test_a_template_that_reads_contents_in_parts(templated, template: str) -> None:
    assert render(templated(template), "hi", ChatFormat(system="brief")) == "brief|hi|"


@pytest.mark.parametrize(
    "switch",
    [
        "{% if enable_thinking %}<think>{% endif %}",
        "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}",
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
        "{% if thinking %}<think>{% else %}</think>{% endif %}",
        "{% set e = enable_reasoning | default(true) %}{% if e %}<think>{% endif %}",
        "{% if disable_thinking is not defined or not disable_thinking %}<think>{% endif %}",
        "{% generation %}x{% endgeneration %}{% if thinking %}<think>{% endif %}",
        "{% if thinking and reasoning_effort is not defined %}<think>{% endif %}",
    ],
)
def test_thinking_is_switched_by_whatever_the_template_reads(templated, switch: str) -> None:
    tokenizer = templated(BODY + switch)
    assert render(tokenizer, "hi", ChatFormat(thinking=True)).endswith("<think>")
    assert "<think>" not in render(tokenizer, "hi", ChatFormat(thinking=False))


@pytest.mark.parametrize(
    "reads", ["reasoning_effort", "thinking_budget", "persona", "clear_thinking"]
)
def test_without_a_switch_the_error_lists_what_is_read(templated, reads: str) -> None:
    shown = "" if reads == "clear_thinking" else f"{{{{ {reads} }}}}"
    tokenizer = templated(
        BODY + f"{shown}{{% if {reads} and messages | length > 3 %}}x{{% endif %}}"
    )
    with pytest.raises(PromptError, match=f"no thinking switch.*it reads {reads}"):
        render(tokenizer, "hi", ChatFormat(thinking=True))


def test_what_transformers_passes_is_no_variable(templated, tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="reads only the messages"):
        render(templated(BODY + "{{ bos_token }}"), "hi", ChatFormat(thinking=True))
    assert variables(tokenizer.chat_template) == {"messages", "add_generation_prompt"}


@pytest.mark.parametrize("chat", [ChatFormat(), ChatFormat(system="s"), ChatFormat(thinking=True)])
@pytest.mark.parametrize(
    "template", ["{% if x %}", "{{ messages[7]['content'] }}", "{{ raise_exception('no system') }}"]
)
def test_a_template_that_fails_is_one_line(templated, template: str, chat: ChatFormat) -> None:
    with pytest.raises(PromptError, match="the chat template failed") as caught:
        render(templated(template), "hi", chat)
    assert "\n" not in str(caught.value)


def test_several_templates(templated) -> None:
    several = templated({"default": BODY, "tool_use": "never"})
    assert render(several, "hi", ChatFormat()) == "hi"
    with pytest.raises(PromptError, match="no chat template can be chosen"):
        render(templated({"tool_use": BODY, "rag": BODY}), "hi", ChatFormat())


@pytest.mark.parametrize("suffix", ["</s>", "</s> </s>"])
def test_a_special_token_at_the_end_never_ends_a_prompt(templated, suffix: str) -> None:
    ending = templated(None)
    plain = encode(ending, ["hi"], ChatFormat(prefill=" Sure")).ids
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"<s> $A {suffix}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert ending("hi").input_ids[-1] == 2  # as the tokenizer has it
    batch = encode(ending, ["hi"], ChatFormat(prefill=" Sure"))
    assert batch.ids[0, 0] == 1
    assert batch.ids[0, 1:].tolist() == plain[0].tolist()
    assert encode(ending, ["hi", "longer"]).ids[:, -1].tolist() == [
        plain[0, 1],
        ending("r").input_ids[1],
    ]
    assert text_ids(ending, "a</s>")[-2:] == [ending("a").input_ids[1], 2]  # its own is text
