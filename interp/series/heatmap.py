"""Maps of numbers on two axes, one panel below the other: block × kind, layer × position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from interp.errors import RecordError
from interp.series.base import Number, Part, Series, series_kind
from interp.series.parts import Names, Values, check_any, check_limits


@dataclass(frozen=True, slots=True)
class Reference(Part):
    """A value that is marked on a colour bar."""

    at: Number
    label: str


@dataclass(frozen=True, slots=True)
class MapPanel(Part):
    """One map. values: its rows, None where there is no such thing (hatched).

    label, unit: of the colour bar. map: ``sequential`` (pale is ``limits[0]``, by default 0, or the least
    value if one is negative) or ``diverging`` (pale is 0, limits symmetric).
    """

    label: str
    values: tuple[Values, ...]
    unit: str = ""
    title: str = ""
    map: Literal["sequential", "diverging"] = "sequential"
    limits: tuple[Number, Number] | None = None
    reference: Reference | None = None

    def check(self) -> None:
        check_limits(self)
        if not self.known:
            raise RecordError(f"the map of {self.label!r} has no values to draw")

    @property
    def known(self) -> list[Number]:
        """All values that are not missing."""
        return [v for row in self.values for v in row if v is not None]

    @property
    def ends(self) -> tuple[Number, Number]:
        """The values of both ends of the colours."""
        if self.limits is not None:
            return self.limits
        if self.map == "diverging":
            end = max(abs(v) for v in self.known) or 1.0
            return -end, end
        low, most = min(0, *self.known), max(self.known)
        return low, most if most > low else low + 1.0


@series_kind
@dataclass(frozen=True, slots=True)
class HeatMap(Series):
    """Maps that share their rows and columns."""

    kind: ClassVar[str] = "heatmap"
    on_one_plot: ClassVar[bool] = False

    columns: Names
    rows: Names
    panels: tuple[MapPanel, ...]

    def check(self) -> None:
        check_any(self.panels, "maps")
        rows, columns = len(self.rows.names), len(self.columns.names)
        for panel in self.panels:
            shape = [len(row) for row in panel.values]
            if shape != [columns] * rows:
                raise RecordError(
                    f"the map of {panel.label!r} has rows of {shape} values, not {rows} of {columns}"
                )
