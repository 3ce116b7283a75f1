"""Lines with bands, most often by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interp.series.base import Number, Series, series_kind
from interp.series.parts import (
    Axis,
    Interval,
    Mark,
    Places,
    check_any,
    check_length,
    check_log,
    check_unique,
)


@dataclass(frozen=True, slots=True)
class Line(Interval):
    """One line with its band. x: positions of its own, where it does not share those of the series."""

    x: tuple[Number, ...] | None = None


@series_kind
@dataclass(frozen=True, slots=True)
class Lines(Series):
    """Lines over shared positions, with marks: straight lines such as chance or a threshold."""

    kind: ClassVar[str] = "lines"

    x: Places
    y: Axis
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()

    def check(self) -> None:
        check_any(self.lines, "lines")
        check_unique((line.label for line in self.lines), "the lines")
        for line in self.lines:
            places = self.x.values if line.x is None else line.x
            check_length(line, values=len(line.values), places=len(places))
            check_log(self.x, places)
        check_log(self.y, (v for line in self.lines for v in line.values))
