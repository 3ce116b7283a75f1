"""Rubrics: what a judging model is asked, and the number in its reply."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.errors import JudgeError

LOWEST, HIGHEST = 0, 100
"""Bounds of a score."""
LEAST_MASS = 0.25
"""Probability of numbers below which a response has no score (2507.21509, B.1)."""
PLACES = ("question", "answer")
_PLACE = re.compile(r"\{(question|answer)\}")
_FULL_MARKS = re.compile(r"(?:/|out of)\s*100\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,-])\d+(?:\.\d+)?(?!\w|[.,]\d)")

TASK = """You rate the answer of a chat model to a question. {criterion}
Reply with one integer from 0 to 100 and nothing else.

Question: {question}

Answer: {answer}

Score from 0 to 100:"""
"""The question and the answer stand at the end: what precedes them is run once for all responses."""
TRAIT = "0 means that the answer shows no sign of {trait}, 100 that it shows {trait} throughout."


@dataclass(frozen=True, slots=True)
class Rubric:
    """What a judging model reads: a text with the places ``{question}`` and ``{answer}``.

    name: shown beside results. Raises JudgeError for a text that lacks ``{answer}``.
    """

    text: str
    name: str = field(default="rubric")

    def __post_init__(self) -> None:
        if "{answer}" not in self.text:
            raise JudgeError(
                f"the rubric {self.name!r} has no place for the response; write {{answer}} where it belongs, "
                "and {question} where the prompt does"
            )

    @classmethod
    def of_trait(cls, trait: str, meaning: str = "") -> Rubric:
        """A rubric that asks how much of a trait an answer shows. meaning: a sentence on the trait."""
        criterion = f"{meaning.strip()} {TRAIT.replace('{trait}', trait)}".strip()
        return cls(TASK.replace("{criterion}", criterion), trait)

    @classmethod
    def load(cls, path: Path) -> Rubric:
        """The rubric in a text file, or under ``eval_prompt`` in a JSON file. Raises JudgeError."""
        try:
            text = path.expanduser().read_text(encoding="utf-8")
            if path.suffix == ".json":
                text = json.loads(text)["eval_prompt"]
        except (OSError, UnicodeDecodeError) as error:
            raise JudgeError(f"the rubric file {path} cannot be read: {error}") from None
        except (ValueError, KeyError, TypeError):
            raise JudgeError(
                f"{path} holds no rubric: a JSON file needs the rubric's text under 'eval_prompt'"
            ) from None
        if not isinstance(text, str):
            raise JudgeError(f"{path}: 'eval_prompt' must be a text, not {type(text).__name__}")
        return cls(text, path.stem)

    def filled(self, prompt: str, response: str) -> str:
        """The text with a prompt and a response in their places; other braces stay as they are."""
        values = dict(zip(PLACES, (prompt, response), strict=True))
        return _PLACE.sub(lambda found: values[found[1]], self.text)

    @property
    def needs_prompt(self) -> bool:
        return "{question}" in self.text

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "text": self.text}


COHERENCE = Rubric(
    TASK.replace(
        "{criterion}",
        "0 means that the answer is confused, garbled or unrelated to the question, 100 that it is fluent "
        "and to the point, whatever its opinions.",
    ),
    "coherence",
)
"""Asks how coherent an answer is."""


def number_in(reply: str) -> float | None:
    """The score that a reply states: its only number, from 0 to 100. None without one or with several."""
    found = _NUMBER.findall(_FULL_MARKS.sub(" ", reply))
    value = float(found[0]) if len(found) == 1 else None
    return value if value is not None and LOWEST <= value <= HIGHEST else None
