"""Points on two axes, with intervals, a least-squares line and its correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import ClassVar, Literal

from interp.errors import RecordError
from interp.series.base import Number, Part, Series, Value, series_kind
from interp.series.parts import (
    Axis,
    Mark,
    Values,
    check_any,
    check_interval,
    check_length,
    check_log,
    check_unique,
)

Points = list[tuple[Number, Number]]
FEWEST_FOR_INTERVAL = 4
"""Points from which Fisher's interval exists: its standard error is 1 / √(n − 3)."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """Pearson's r of n points, its interval (None below four points), and the least-squares line."""

    n: int
    r: float
    low: float | None
    high: float | None
    slope: float
    intercept: float


def correlation(points: Points, level: float = 0.95) -> Correlation:
    """Pearson's r with Fisher's interval, tanh(artanh r ± z / √(n − 3)), and the least-squares line.

    Raises RecordError for fewer than three points, and where one coordinate does not vary.
    """
    n = len(points)
    if n < 3:
        raise RecordError(f"a correlation of {n} points says nothing; give at least 3")
    mean_x, mean_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    xx = math.fsum((x - mean_x) ** 2 for x, _ in points)
    yy = math.fsum((y - mean_y) ** 2 for _, y in points)
    xy = math.fsum((x - mean_x) * (y - mean_y) for x, y in points)
    if not xx or not yy:
        raise RecordError("points that do not vary along one axis have no correlation")
    r = max(-1.0, min(1.0, xy / math.sqrt(xx) / math.sqrt(yy)))
    low = high = None
    if n >= FEWEST_FOR_INTERVAL:
        reach = NormalDist().inv_cdf((1 + level) / 2) / math.sqrt(n - 3)
        low, high = (
            (r, r) if abs(r) == 1 else tuple(math.tanh(math.atanh(r) + s * reach) for s in (-1, 1))
        )
    return Correlation(n, r, low, high, xy / xx, mean_y - xy / xx * mean_x)


@dataclass(frozen=True, slots=True)
class Group(Part):
    """Points with one colour. names: a text beside each point. frontier: join the points that no other
    beats (less is better on both axes). theirs: values that the paper prints."""

    label: str
    x: Values
    y: Values
    x_low: Values | None = None
    x_high: Values | None = None
    y_low: Values | None = None
    y_high: Values | None = None
    names: tuple[str, ...] | None = None
    frontier: bool = False
    theirs: bool = False

    def check(self) -> None:
        check_length(self, y=len(self.y), x=len(self.x))
        check_interval(self, self.x, self.x_low, self.x_high)
        check_interval(self, self.y, self.y_low, self.y_high)
        if self.names is not None:
            check_length(self, names=len(self.names), x=len(self.x))

    @property
    def points(self) -> Points:
        """Points of which both coordinates are known."""
        pairs = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    @property
    def correlation(self) -> Correlation:
        """Of the group's own points."""
        return correlation(self.points)


@series_kind
@dataclass(frozen=True, slots=True)
class Scatter(Series):
    """Groups of points. fit: whose least-squares line and r are drawn, of all measured points together
    (``overall``), of every measured group (``groups``) or ``both``; on logarithmic axes there is no fit."""

    kind: ClassVar[str] = "scatter"

    x: Axis
    y: Axis
    groups: tuple[Group, ...]
    fit: Literal["none", "overall", "groups", "both"] = "none"
    marks: tuple[Mark, ...] = ()

    def check(self) -> None:
        check_any(self.groups, "groups of points")
        check_unique((group.label for group in self.groups), "the groups")
        for axis, name in ((self.x, "x"), (self.y, "y")):
            found: list[Value] = [v for group in self.groups for v in getattr(group, name)]
            check_log(axis, found)
        if self.fit != "none":
            if "log" in (self.x.scale, self.y.scale):
                raise RecordError(
                    "a fit is a straight line; draw it on linear axes, or fit logarithms"
                )
            _ = self.fits  # so that points without a correlation fail here

    @property
    def measured(self) -> tuple[Group, ...]:
        """The groups that are not a paper's."""
        return tuple(group for group in self.groups if not group.theirs)

    @property
    def correlation(self) -> Correlation:
        """Of all measured points together."""
        return correlation([point for group in self.measured for point in group.points])

    @property
    def fits(self) -> dict[str, Correlation]:
        """The correlations that are drawn, by label of the group; that of all points under ``""``."""
        found = {}
        if self.fit in ("groups", "both"):
            found = {group.label: group.correlation for group in self.measured}
        return {**found, "": self.correlation} if self.fit in ("overall", "both") else found
