"""Axes with units, and zeros on logarithmic axes: at the edge, and labelled as zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.claims import Number
from interp.figures import style
from interp.series import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Limits = Sequence[Number]
DECADE_MARGIN = 0.3
ZERO_MARGIN = 0.35
MOST_TICKS = 6


def set_axis(axes: Axes, name: str, axis: Axis, values: Sequence[Number | None]) -> None:
    """Label, scale and limits of one axis (``name`` is ``x`` or ``y``)."""
    limits: Limits | None = axis.limits
    getattr(axes, f"set_{name}label")(style.axis_label(axis))
    if axis.scale == "log":
        getattr(axes, f"set_{name}scale")("log")
        limits = limits or _decades(values)
        _ticks(axes, name, limits, has_zero=any(v == 0 for v in values if v is not None))
    if limits:
        getattr(axes, f"set_{name}lim")(*limits)


def place(axis: Axis, value: Number, limits: Limits) -> Number:
    """Where a value is drawn: a zero on a logarithmic axis lies just inside its lower end."""
    return _zero(limits) if axis.scale == "log" and value <= 0 else value


def _zero(limits: Limits) -> float:
    return limits[0] * 10.0**ZERO_MARGIN


def _decades(values: Sequence[Number | None]) -> Limits:
    known = [v for v in values if v is not None]
    above = [v for v in known if v > 0]
    low, high = math.log10(min(above)), math.log10(max(above))
    # A zero gets a decade of its own: it must not be mistaken for the smallest value.
    first = math.floor(low) - 1.0 if 0 in known else low - DECADE_MARGIN
    return 10.0**first, 10.0 ** (high + DECADE_MARGIN)


def _ticks(axes: Axes, name: str, limits: Limits, *, has_zero: bool) -> None:
    """Powers of ten, thinned, and ``0`` where a zero is drawn."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    low = limits[0] if not has_zero else _zero(limits) * 1.5
    shown = _powers(low, limits[1], (1,))
    # Within one decade powers of ten alone would leave an axis without numbers.
    shown = shown if len(shown) > 1 else _powers(low, limits[1], (1, 2, 5))
    shown = shown[:: max(1, -(-len(shown) // MOST_TICKS))]
    zeros = [_zero(limits)] if has_zero else []
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(FixedLocator([*zeros, *shown]))
    axis.set_major_formatter(FixedFormatter(["0" for _ in zeros] + [f"{v:g}" for v in shown]))
    axis.set_minor_locator(NullLocator())


def _powers(low: Number, high: Number, factors: tuple[int, ...]) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for e in exponents for f in factors if low <= (v := f * 10.0**e) <= high]
