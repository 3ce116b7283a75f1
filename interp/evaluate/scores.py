"""Mean scores of any judge over the responses of a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interp.judges.agreement import CONFIDENCE
from interp.judges.protocol import Judge, finite


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one judge over the responses of one class of prompts.

    mean: over the ``n`` responses that have a score, with the t interval of 95 %; None where no response,
    or fewer than two, have one. unscorable: how many have none.
    """

    mean: float | None
    interval: tuple[float, float] | None
    n: int
    unscorable: int

    @classmethod
    def of(cls, judge: Judge, prompts: Sequence[str], responses: Sequence[str]) -> Scores:
        """The scores of ``judge``; those that are not finite count as unscorable."""
        scores = [finite(score) for score in judge.score(prompts, responses)]
        found = [score for score in scores if score is not None]
        mean = sum(found) / len(found) if found else None
        return cls(mean, t_interval(found), len(found), len(scores) - len(found))


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The t interval of a mean at 95 %; one point for equal values, None for fewer than two."""
    from scipy.stats import sem, t

    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * sem(values))
    return mean - half, mean + half
