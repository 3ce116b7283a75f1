"""Chat templates: which variables they read, and whether the text that they are given comes out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from interp.errors import PromptError

Turn = dict[str, Any]

GIVEN = {
    "messages", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "raise_exception", "strftime_now",
}  # fmt: skip
"""What transformers itself passes to a template, beside the special tokens."""
THINKING = {"think", "thinking", "thought", "thoughts", "reason", "reasoning", "cot"}
VALUED = {"effort", "budget", "mode", "level", "tokens", "content", "format", "style", "max"}
"""A variable with such a word in its name takes a number or a word, not yes or no."""
NEGATED = {"no", "not", "disable", "disabled", "skip", "without"}
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""A tag that only transformers knows; it reads nothing."""


def template_of(tokenizer: Any) -> str | None:
    """Source of the default chat template; None for a tokenizer without one.

    Raises PromptError for several templates of which none is the default.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise PromptError(f"no chat template can be chosen: {_first_line(error)}") from None


@lru_cache
def variables(source: str) -> frozenset[str]:
    """Names that a template reads and does not set first. Raises PromptError for a syntax error."""
    import jinja2
    from jinja2 import meta

    env = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"])
    try:
        return frozenset(meta.find_undeclared_variables(env.parse(GENERATION.sub("", source))))
    except jinja2.TemplateError as error:
        raise _failed(error) from None


def conversation(tokenizer: Any, turns: Sequence[Turn], thinking: bool | None = None) -> str:
    """The text of a conversation that ends at the decision position.

    A system turn that the template refuses (no such role, strictly alternating turns) is folded into the
    first user turn. Contents are passed as text, or in parts where the template reads only those.
    Raises PromptError for a template that fails, leaves out the system text or the prompt, or has no
    switch for ``thinking``.
    """
    turns, text = _read_in(tokenizer, turns)
    if turns[0]["role"] == "system" and _lost(tokenizer, turns, 0, text):
        raise PromptError(
            "the chat template leaves out the system text; give none, or put it into the prompts"
        )
    if thinking is not None:
        text = _apply(tokenizer, turns, _switched(tokenizer, turns, thinking))
    return text


def _read_in(tokenizer: Any, turns: Sequence[Turn]) -> tuple[Sequence[Turn], str]:
    """The turns in the first form that the template reads the prompt from, and their text."""
    forms = [turns]
    if turns[0]["role"] == "system":
        system, first, *rest = turns
        forms.append([{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest])
    failure = None
    for form in [*forms, *map(_in_parts, forms)]:
        try:
            text = _apply(tokenizer, form)
        except PromptError as error:
            failure = failure or error
            continue
        if not _lost(tokenizer, form, -1, text):
            return form, text
    raise failure or PromptError(
        "the chat template leaves out the prompt; give the model its own chat_template.jinja"
    )


def _apply(tokenizer: Any, turns: Sequence[Turn], options: Mapping[str, Any] | None = None) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=True, **(options or {})
        )
    except Exception as error:  # a template raises whatever it likes
        raise _failed(error) from error


def _in_parts(turns: Sequence[Turn]) -> list[Turn]:
    return [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns]


def _lost(tokenizer: Any, turns: Sequence[Turn], place: int, text: str) -> bool:
    """Whether another content of one turn would give the same text."""
    content = turns[place]["content"]
    said = content if isinstance(content, str) else content[0]["text"]
    if not said.strip() or said.strip() in text:
        return False
    others = list(turns)
    others[place] = {"role": turns[place]["role"], "content": f"x{said}x"}
    if not isinstance(content, str):
        others[place] = _in_parts([others[place]])[0]
    return _apply(tokenizer, others) == text


def _switched(tokenizer: Any, turns: Sequence[Turn], thinking: bool) -> dict[str, bool]:
    """Values for the variables by which a template turns thinking on and off."""
    read = variables(template_of(tokenizer) or "") - GIVEN - set(tokenizer.special_tokens_map)
    values = {name: value for name in sorted(read) if (value := _value(name, thinking)) is not None}
    found = {
        name: value
        for name, value in values.items()
        if _apply(tokenizer, turns, {name: value}) != _apply(tokenizer, turns, {name: not value})
    }
    if not found:
        others = f"it reads {', '.join(sorted(read))}" if read else "it reads only the messages"
        raise PromptError(
            f"this chat template has no thinking switch ({others}); leave thinking unset, or ask "
            "for it in the system text"
        )
    return found


def _value(name: str, thinking: bool) -> bool | None:
    """What a variable has to be; None for one that is no switch by its name."""
    words = {w.lower() for w in re.split(r"_|(?<=[a-z])(?=[A-Z])", name)}
    if not words & THINKING or words & VALUED:
        return None
    return thinking != bool(words & NEGATED)


def _failed(error: Exception) -> PromptError:
    line = getattr(error, "lineno", None)
    where = f" in its line {line}" if line else ""
    return PromptError(f"the chat template failed{where}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
