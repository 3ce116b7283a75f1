"""Samples beside each other: every value, and the quartiles."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import quantiles
from typing import ClassVar

from interp.series.base import Number, Part, Series, series_kind
from interp.series.parts import Axis, Mark, check_any, check_log, check_unique


@dataclass(frozen=True, slots=True)
class Sample(Part):
    """All values of one group. theirs: values that the paper prints."""

    label: str
    values: tuple[Number, ...]
    theirs: bool = False

    def check(self) -> None:
        check_any(self.values, f"values of {self.label!r}")

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile, interpolated linearly as in numpy."""
        if len(self.values) == 1:
            only = float(self.values[0])
            return only, only, only
        low, median, high = quantiles(self.values, n=4, method="inclusive")
        return low, median, high


@series_kind
@dataclass(frozen=True, slots=True)
class Distribution(Series):
    """One column of points for each group, with the box of its quartiles."""

    kind: ClassVar[str] = "distribution"

    y: Axis
    groups: tuple[Sample, ...]
    marks: tuple[Mark, ...] = ()

    def check(self) -> None:
        check_any(self.groups, "samples")
        check_unique((group.label for group in self.groups), "the groups")
        check_log(self.y, (v for group in self.groups for v in group.values))
