"""Histograms over shared bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from interp.errors import RecordError
from interp.series.base import Number, Part, Series, series_kind
from interp.series.parts import Axis, Mark, check_any, check_length, check_unique


@dataclass(frozen=True, slots=True)
class Counts(Part):
    """How many values of one group lie in each bin."""

    label: str
    counts: tuple[int, ...]

    def check(self) -> None:
        if any(count < 0 for count in self.counts):
            raise RecordError(f"{self.label!r} has a negative count; give counts, not differences")


@series_kind
@dataclass(frozen=True, slots=True)
class Histogram(Series):
    """Counts by bin. edges: ascending, one more than bins; a value on an edge belongs to the bin above,
    that on the last edge to the last bin. share: draw each group's share instead of its counts."""

    kind: ClassVar[str] = "histogram"

    x: Axis
    edges: tuple[Number, ...]
    groups: tuple[Counts, ...]
    share: bool = False
    marks: tuple[Mark, ...] = ()

    def check(self) -> None:
        check_any(self.groups, "counts")
        check_unique((group.label for group in self.groups), "the groups")
        if len(self.edges) < 2 or any(b <= a for a, b in pairwise(self.edges)):
            raise RecordError("the edges of a histogram rise; give at least two, in order")
        for group in self.groups:
            check_length(group, counts=len(group.counts), bins=len(self.edges) - 1)
            if self.share and not sum(group.counts):
                raise RecordError(f"{group.label!r} has no values, and so no shares; leave it out")

    @classmethod
    def of(
        cls,
        x: Axis,
        values: Mapping[str, Sequence[Number]],
        *,
        bins: int = 20,
        share: bool = False,
        marks: Sequence[Mark] = (),
    ) -> Histogram:
        """Counts of each group's values in ``bins`` equal bins over the range of all of them."""
        found = [v for group in values.values() for v in group]
        if bins < 1 or not found:
            raise RecordError("a histogram needs at least one value and one bin")
        low, high = float(min(found)), float(max(found))
        width = (high - low) / bins or 1.0
        edges = [low + width * i for i in range(bins)] + [
            high if high > low else low + bins * width
        ]
        groups = [
            Counts(label, _counts(group, low, width, bins)) for label, group in values.items()
        ]
        return cls(x, tuple(edges), tuple(groups), share, tuple(marks))


def _counts(values: Sequence[Number], low: float, width: float, bins: int) -> tuple[int, ...]:
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return tuple(counts)
