"""Prompts from rows: the value of a column, or the last user turn of a conversation.

Conversations are lists of messages as OpenAI (``role``, ``content``) or ShareGPT (``from``, ``value``)
write them, also as JSON in a string. Answers after the last user turn are left out, as are earlier turns
and system turns, and a warning says how many: a chat format holds one system text and one history for
all prompts (``ChatFormat``, ``--system``).
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from interp.data.rows import PromptRow
from interp.errors import InterpWarning, PromptError

DEFAULT_COLUMNS = (
    "prompt", "prompts", "text", "instruction", "goal", "question", "behavior", "query", "request",
    "messages", "conversations", "conversation",
)  # fmt: skip
INSTRUCTION, INPUT = "instruction", "input"
USERS = ("user", "human")
SYSTEMS = ("system", "developer")
NAMED = 3
"""Places that one message names."""


def prompts_of(rows: Sequence[PromptRow], column: str, where: str) -> list[str]:
    """The prompt of every row; an InterpWarning counts the conversations of which turns are left out.

    column: its name; "" for the first of :data:`DEFAULT_COLUMNS` that the rows have, in any case.
    Raises PromptError that lists the columns there are, or names the rows whose value is no text.
    """
    if rows and all(isinstance(r.value, Mapping) and not _is_message(r.value) for r in rows):
        chosen = _column(rows, column, where)
        _note_input(rows, chosen, where)
        values = [PromptRow(r.value.get(chosen), r.place) for r in rows]
        return _texts(values, where, f"{chosen!r}")
    mixed = next((r for r in rows if not isinstance(r.value, str | list)), None)
    if mixed is not None or column:
        place = f", {mixed.place}" if mixed else ""
        raise PromptError(
            f"{where}{place}: every entry must be a JSON object with the column "
            f"{column or DEFAULT_COLUMNS[0]!r}, or every one a text or a list of messages"
        )
    return _texts(rows, where, "it")


def _note_input(rows: Sequence[PromptRow], chosen: str, where: str) -> None:
    """An InterpWarning where an instruction goes with an input, in a column of its own, as Alpaca's do."""
    inputs = sum(bool(row.value.get(INPUT)) for row in rows)
    if chosen.lower() == INSTRUCTION and inputs:
        note = f"{where}: the column {INPUT!r} of {inputs} of {len(rows)} instructions left out"
        warnings.warn(note, InterpWarning, stacklevel=2)


def _column(rows: Sequence[PromptRow], column: str, where: str) -> str:
    names = list(dict.fromkeys(str(name) for row in rows for name in row.value))
    if column in names:
        return column
    lower = {name.lower(): name for name in reversed(names)}
    usual = next((lower[c] for c in DEFAULT_COLUMNS if c in lower), None)
    if usual is None or column:
        wanted = f"column {column!r}" if column else f"text column {DEFAULT_COLUMNS[0]!r}"
        raise PromptError(
            f"{where}: no {wanted}; name one as {where}#COLUMN (columns: {', '.join(names)})"
        )
    return usual


def _texts(rows: Iterable[PromptRow], where: str, name: str) -> list[str]:
    texts: list[str] = []
    left_out: Counter[str] = Counter()
    wrong: list[tuple[str, str]] = []
    for row in rows:
        try:
            text, dropped = _prompt(row.value)
        except ValueError as error:
            wrong.append((row.place, str(error)))
            continue
        texts.append(text)
        left_out.update(dropped)
    if wrong:
        places = ", ".join(place for place, _ in wrong[:NAMED])
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise PromptError(
            f"{where}, {places}{more}: {name} {wrong[0][1]}; mend or remove such entries"
        )
    for kind, n in left_out.items():
        note = f"{where}: {kind} of {n} conversation{'s' * (n > 1)} left out"
        warnings.warn(note, InterpWarning, stacklevel=2)
    return texts


def _prompt(value: Any) -> tuple[str, list[str]]:
    """The text that a value asks, and the kinds of turns that are left out. ValueError says what is wrong."""
    messages = _messages(value)
    if messages is None:
        if not isinstance(value, str):
            raise ValueError(f"is {_described(value)}, not text")
        return _checked(value), []
    turns = [(_role(m), m.get("content", m.get("value"))) for m in messages]
    asked = [i for i, (role, _) in enumerate(turns) if role in USERS]
    if not asked:
        raise ValueError("has no user turn")
    before = {role in SYSTEMS for role, _ in turns[: asked[-1]]}
    kinds = ["system turns"] * (True in before) + ["earlier turns"] * (False in before)
    return _checked(_spoken(turns[asked[-1]][1])), kinds


def _messages(value: Any) -> list[Mapping[str, Any]] | None:
    """The messages of a conversation; None where a value is none."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except ValueError:
            return None
    messages = isinstance(value, list) and value and all(map(_is_message, value))
    return value if messages else None  # type: ignore[return-value]


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    )


def _role(message: Mapping[str, Any]) -> str:
    return str(message.get("role", message.get("from"))).lower()


def _spoken(content: Any) -> str:
    """The text of a message; its content may be a list of parts, of which only text is read."""
    if isinstance(content, list):
        kinds = [p.get("type", "text") if isinstance(p, Mapping) else "text" for p in content]
        if other := [k for k in kinds if k != "text"]:
            raise ValueError(f"has a part of type {other[0]!r}, and only text is read")
        content = "\n".join(str(p["text"] if isinstance(p, Mapping) else p) for p in content)
    if not isinstance(content, str):
        raise ValueError(f"has a user turn that is {_described(content)}, not text")
    return content


def _checked(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair, which is no character") from None
    return text


def _described(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "an object")
