"""Which pairs of responses show a trait on one side and not on the other (2507.21509, §2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from interp.errors import PersonaError

Scores = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Counts:
    """Pairs of responses, and how many pass each criterion.

    positive: the positive response reaches the threshold. negative: the negative one does not. coherent: both
    are coherent; None where coherence is not judged. unscorable: a response of the pair lacks a score. kept:
    pairs that pass all criteria.
    """

    pairs: int
    positive: int
    negative: int
    coherent: int | None
    unscorable: int
    kept: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        coherent = "" if self.coherent is None else f", {self.coherent} are coherent"
        return (
            f"of {self.pairs} pairs {self.positive} show the trait where they should, {self.negative} do not "
            f"where they should not{coherent}, {self.unscorable} cannot be judged; {self.kept} are kept"
        )


def surviving(
    positive: Scores,
    negative: Scores,
    *,
    threshold: float,
    coherence: tuple[Scores, Scores] | None = None,
    coherence_threshold: float = 50.0,
) -> tuple[list[int], Counts]:
    """Rows of the pairs that survive, and the counts.

    A pair survives with positive ≥ threshold, negative < threshold and both coherences ≥ their threshold, as
    in the authors' code; one without a score does not. coherence: of the positive and negative responses.
    """
    pos = [score is not None and score >= threshold for score in positive]
    neg = [score is not None and score < threshold for score in negative]
    columns = [positive, negative, *(coherence or ())]
    coherent = None
    if coherence is not None:
        sides = zip(*coherence, strict=True)
        coherent = [all(s is not None and s >= coherence_threshold for s in pair) for pair in sides]
    passing = zip(pos, neg, coherent or [True] * len(pos), strict=True)
    rows = [row for row, each in enumerate(passing) if all(each)]
    unscorable = sum(any(s is None for s in scores) for scores in zip(*columns, strict=True))
    judged = None if coherent is None else sum(coherent)
    return rows, Counts(len(pos), sum(pos), sum(neg), judged, unscorable, len(rows))


def check_survivors(trait: str, judge: str, counts: Counts, threshold: float) -> None:
    """Raise PersonaError without survivors, naming the criterion that no pair passes."""
    if counts.kept:
        return
    steps = {
        f"no positive response reaches {threshold:g} by the judge {judge}: the model does not show the trait "
        "when told to": counts.positive,
        f"every negative response reaches {threshold:g} by the judge {judge}: the model shows the trait when "
        "told not to": counts.negative,
        "no pair has two coherent responses": counts.coherent,
    }
    failed = [why for why, n in steps.items() if n == 0]
    why = failed[0] if failed else "no pair passes all criteria at once"
    raise PersonaError(
        f"no vector for {trait}: {why} ({counts}); write clearer instructions, take another judge, more "
        "samples, example turns (demonstrations) or a larger model"
    )
