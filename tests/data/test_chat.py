"""Templates, system turns, thinking switches, base models."""

from __future__ import annotations

import copy

import pytest

from interp.data import ChatFormat, encode
from interp.data.chat import pad_left, render
from interp.errors import PromptError


def test_template_ends_at_the_decision_position(tokenizer) -> None:
    assert render(tokenizer, "hi", ChatFormat()) == "<s>user: hi\nassistant:"
    text = render(tokenizer, "hi", ChatFormat(system="be brief", prefill=" Sure"))
    assert text == "<s>system: be brief\n<s>user: hi\nassistant: Sure"


def test_no_special_token_is_added_to_a_template(tokenizer) -> None:
    batch = encode(tokenizer, ["hi", "hello"])
    assert (batch.ids == tokenizer.bos_token_id).sum(1).tolist() == [1, 1]
    assert batch.mask.sum(1).tolist() == [20, 23]


def test_base_model_without_template(tokenizer) -> None:
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    chat = ChatFormat(plain="Q: {prompt}\nA:", system="short")
    assert render(plain, "hi", chat) == "short\n\nQ: hi\nA:"
    with pytest.raises(PromptError, match="no chat template"):
        render(plain, "hi", ChatFormat(thinking=True))
    with pytest.raises(PromptError, match=r"\{prompt\}"):
        ChatFormat(plain="nothing")


def test_thinking_switch(tokenizer) -> None:
    with pytest.raises(PromptError, match="no thinking switch"):
        render(tokenizer, "hi", ChatFormat(thinking=False))
    switched = copy.deepcopy(tokenizer)
    switched.chat_template = (
        "{{ messages[0]['content'] }}{% if enable_thinking %}<think>{% endif %}"
    )
    assert render(switched, "hi", ChatFormat(thinking=True)) == "hi<think>"
    assert render(switched, "hi", ChatFormat(thinking=False)) == "hi"


def test_template_without_a_system_role_folds_it_into_the_user_turn(tokenizer) -> None:
    picky = copy.deepcopy(tokenizer)
    picky.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    assert render(picky, "hi", ChatFormat(system="be brief")) == "be brief\n\nhi"


def test_earlier_turns_come_before_the_prompt(tokenizer) -> None:
    talk = ChatFormat(history=(("hi", "hello"), ("well?", "fine")), system="be brief")
    text = render(tokenizer, "and now?", talk)
    assert text.startswith("<s>system: be brief\n<s>user: hi\n")
    places = [text.index(word) for word in ("hi", "hello", "well?", "fine", "and now?")]
    assert places == sorted(places)
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with pytest.raises(PromptError, match="no earlier turns"):
        render(plain, "hi", ChatFormat(history=(("a", "b"),)))


def test_a_system_turn_folds_into_the_first_of_earlier_turns(tokenizer) -> None:
    picky = copy.deepcopy(tokenizer)
    picky.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    )
    talk = ChatFormat(history=(("hi", "hello"),), system="be brief")
    assert render(picky, "and?", talk) == "[be brief\n\nhi][hello][and?]"


def test_a_broken_template_is_one_error(tokenizer) -> None:
    broken = copy.deepcopy(tokenizer)
    broken.chat_template = "{{ raise_exception('nope') }}"
    with pytest.raises(PromptError, match="template failed"):
        render(broken, "hi", ChatFormat())


def test_no_tokenizer_says_what_to_copy() -> None:
    with pytest.raises(PromptError, match=r"tokenizer\.json"):
        encode(None, ["hi"])


def test_padding_is_on_the_left_and_empty_rows_are_refused() -> None:
    batch = pad_left([[1, 2, 3], [4]], 0)
    assert batch.ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    with pytest.raises(PromptError):
        pad_left([[1], []], 0)
