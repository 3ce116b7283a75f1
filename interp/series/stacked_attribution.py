"""What each block adds to a number, by kind of component, and the running sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from interp.errors import RecordError
from interp.series.base import Number, Part, Series, series_kind
from interp.series.parts import check_any, check_length, check_unique


@dataclass(frozen=True, slots=True)
class Contribution(Part):
    """Bars of one kind of component: one value per position, 0 where the kind is absent."""

    label: str
    kind: str
    values: tuple[Number, ...]
    errors: tuple[Number, ...] | None = None

    def check(self) -> None:
        check_errors(self)


@dataclass(frozen=True, slots=True)
class Total(Part):
    """A number after each position. errors: half-widths of its band."""

    values: tuple[Number, ...]
    errors: tuple[Number, ...] | None = None

    def check(self) -> None:
        check_errors(self)


def check_errors(part: Any) -> None:
    if part.errors is not None:
        check_length(part, errors=len(part.errors), values=len(part.values))
        if min(part.errors, default=0) < 0:
            raise RecordError("an error is the half-width of an interval; give 0 or more")


@series_kind
@dataclass(frozen=True, slots=True)
class StackedAttribution(Series):
    """Contributions that sum to a measured number.

    positions: labels of the bars (``embed``, ``0``, ``1`` …). cumulative: the running sum of all parts.
    measured: what the model itself computes. residual: measured minus the sum of all parts. lens: the
    logit lens after each position.
    """

    kind: ClassVar[str] = "stacked_attribution"
    on_one_plot: ClassVar[bool] = False

    unit: str
    positions: tuple[str, ...]
    parts: tuple[Contribution, ...]
    cumulative: Total
    measured: Number
    residual: Number
    lens: Total | None = None

    def check(self) -> None:
        check_any(self.parts, "contributions")
        check_unique((part.label for part in self.parts), "the parts")
        check_unique(self.positions, "the positions")
        for part in (*self.parts, self.cumulative, *([self.lens] if self.lens else [])):
            check_length(part, values=len(part.values), positions=len(self.positions))
