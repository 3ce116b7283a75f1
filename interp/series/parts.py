"""Parts that several kinds of series share, and the checks of what fits together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from interp.errors import RecordError
from interp.series.base import Number, Part, Value, described

Values = tuple[Value, ...]
ROUNDING = 1e-9
"""Share of an interval's size by which its value may lie outside: round-off."""


@dataclass(frozen=True, slots=True)
class Axis(Part):
    """What an axis shows: label, unit (empty for a count, a share or an index), scale, limits."""

    label: str
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"
    limits: tuple[Number, Number] | None = None

    def check(self) -> None:
        check_limits(self)
        if self.scale == "log" and self.limits and self.limits[0] <= 0:
            raise RecordError(f"{described(self)} is logarithmic; its limits must be above 0")


@dataclass(frozen=True, slots=True)
class Places(Axis):
    """An axis and the positions on it at which lines have their values."""

    values: tuple[Number, ...] = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Names(Part):
    """An axis of named categories. n: the count behind each, where counts differ."""

    label: str
    names: tuple[str, ...]
    unit: str = ""
    n: tuple[int, ...] | None = None

    def check(self) -> None:
        check_unique(self.names, f"the names of {described(self)}")
        if self.n is not None:
            check_length(self, n=len(self.n), names=len(self.names))


@dataclass(frozen=True, slots=True)
class Mark(Part):
    """A straight line across the plot at one value of an axis."""

    axis: Literal["x", "y"]
    at: Number
    label: str


@dataclass(frozen=True, slots=True)
class Interval(Part):
    """Values with intervals. low, high: both or neither; None beside a value without an interval.

    theirs: values that the paper prints; drawn in grey and apart from measured ones.
    """

    label: str
    values: Values
    low: Values | None = None
    high: Values | None = None
    theirs: bool = False

    def check(self) -> None:
        check_interval(self, self.values, self.low, self.high)


def check_limits(part: Any) -> None:
    if part.limits and part.limits[0] >= part.limits[1]:
        raise RecordError(f"the limits of {described(part)} are {part.limits}; give low, high")


def check_unique(labels: Iterable[str], what: str) -> None:
    """Refuse two equal labels: a legend or a claim could not tell them apart."""
    seen: set[str] = set()
    for label in labels:
        if label in seen:
            raise RecordError(f"two of {what} are {label!r}; give each a label of its own")
        seen.add(label)


def check_length(part: Any, **counts: int) -> None:
    """Refuse fields of different lengths; the last one named sets the length."""
    *others, (reference, wanted) = counts.items()
    for name, count in others:
        if count != wanted:
            raise RecordError(
                f"{described(part)} has {count} {name} for {wanted} {reference}; give one for each, "
                "None where there is none"
            )


def check_interval(part: Any, values: Values, low: Values | None, high: Values | None) -> None:
    """Refuse half an interval, another length, and an interval that does not contain its value."""
    if low is None and high is None:
        return
    if low is None or high is None:
        raise RecordError(f"{described(part)} has one end of its intervals; give low and high")
    check_length(part, low=len(low), high=len(high), values=len(values))
    for i, (a, value, b) in enumerate(zip(low, values, high, strict=True)):
        if (a is None) != (b is None):
            raise RecordError(
                f"{described(part)} has one end of interval {i}; give both or None twice"
            )
        if a is None or b is None:
            continue
        slack = ROUNDING * max(abs(a), abs(b))
        if a > b + slack or (value is not None and not a - slack <= value <= b + slack):
            raise RecordError(
                f"{described(part)}: interval {i} from {a:g} to {b:g} does not contain {value}; give the "
                "ends themselves, not their distances from the value"
            )


def check_log(axis: Axis, values: Iterable[Value]) -> None:
    """Refuse values that a logarithmic axis cannot show: none above 0, or one below."""
    known = [v for v in values if v is not None]
    if axis.scale == "log" and known and (min(known) < 0 or max(known) <= 0):
        raise RecordError(
            f"{axis.label!r} has no values that a logarithmic axis can show: they must be 0 or more, "
            "and one above 0; use scale='linear'"
        )


def check_any(parts: Sequence[Any], what: str) -> None:
    if not parts:
        raise RecordError(f"no {what} to draw; give at least one")
