"""What every judge has, and what several judges need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from interp.data.thinking import answer
from interp.errors import JudgeError

PERCENT = 100.0
"""Upper end of the scale of traits and rubrics; their lower end is 0."""
HALFWAY = 50.0


@runtime_checkable
class Judge(Protocol):
    """Whatever scores responses; a higher score means more of what is judged.

    name: shown beside results. threshold: score from which a response counts as positive.
    """

    @property
    def name(self) -> str: ...

    @property
    def threshold(self) -> float: ...

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """One score per response; None for a response that cannot be judged.

        prompts: one per response, or none for a judge that reads responses alone. Raises JudgeError where
        the counts differ, or where a judge that needs prompts has none.
        """
        ...

    def as_json(self) -> dict[str, Any]:
        """What the scores depend on, as plain JSON values: for records and cache keys."""
        ...


def check_prompts(
    prompts: Sequence[str], responses: Sequence[str], needed_by: str | None = None
) -> None:
    """Raise JudgeError unless there is one prompt per response.

    needed_by: name of a judge that needs prompts; with None, no prompts at all are right, too.
    """
    if isinstance(responses, str) or isinstance(prompts, str):
        raise JudgeError("prompts and responses are lists of texts; put a single text in a list")
    if len(prompts) == len(responses) or not (prompts or needed_by):
        return
    hint = f"; the judge {needed_by} needs them" if needed_by else ""
    raise JudgeError(f"{len(prompts)} prompts for {len(responses)} responses: give one each{hint}")


def answers(responses: Sequence[str]) -> dict[int, str]:
    """Row → response without its thinking; rows that are empty or still thinking are left out."""
    found = ((row, (answer(text) or "").strip()) for row, text in enumerate(responses))
    return {row: text for row, text in found if text}


def finite(score: float | None) -> float | None:
    """The score; None for one that is NaN or infinite."""
    return None if score is None or not math.isfinite(score) else float(score)


def spread(found: Sequence[float | None], rows: Iterable[int], count: int) -> list[float | None]:
    """Scores of some rows as a list of all ``count`` rows, None for the others."""
    scores: list[float | None] = [None] * count
    for row, score in zip(rows, found, strict=True):
        scores[row] = score
    return scores
