"""Bars with intervals, side by side in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interp.series.base import Series, series_kind
from interp.series.parts import (
    Axis,
    Interval,
    Mark,
    Names,
    check_any,
    check_length,
    check_log,
    check_unique,
)


@dataclass(frozen=True, slots=True)
class BarGroup(Interval):
    """Bars of one colour: a value for every category, None where there is none."""


@series_kind
@dataclass(frozen=True, slots=True)
class Bars(Series):
    """Categories along x; in each of them one bar of every group."""

    kind: ClassVar[str] = "bars"

    x: Names
    y: Axis
    groups: tuple[BarGroup, ...]
    marks: tuple[Mark, ...] = ()

    def check(self) -> None:
        check_any(self.groups, "bars")
        check_unique((group.label for group in self.groups), "the groups")
        for group in self.groups:
            check_length(group, values=len(group.values), categories=len(self.x.names))
        check_log(self.y, (v for group in self.groups for v in group.values))
