"""Several plots on one card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from interp.errors import RecordError
from interp.series.base import Part, Series, series_kind
from interp.series.parts import check_any, check_unique


@dataclass(frozen=True, slots=True)
class Panel(Part):
    """One plot with its title; its series is of any kind but small multiples."""

    title: str
    series: Series

    def check(self) -> None:
        if isinstance(self.series, SmallMultiples):
            raise RecordError(f"the panel {self.title!r} has panels itself; put them side by side")


@series_kind
@dataclass(frozen=True, slots=True)
class SmallMultiples(Series):
    """Panels row by row. columns: panels in a row, None for three at most. share: axes whose limits all
    panels have in common."""

    kind: ClassVar[str] = "small_multiples"
    on_one_plot: ClassVar[bool] = False

    panels: tuple[Panel, ...]
    columns: int | None = None
    share: tuple[Literal["x", "y"], ...] = ()

    def check(self) -> None:
        check_any(self.panels, "panels")
        check_unique((panel.title for panel in self.panels), "the panels")
        if self.columns is not None and self.columns < 1:
            raise RecordError(f"small multiples in {self.columns} columns; give 1 or more")
        if self.share and not self.on_plots:
            raise RecordError("only plots of one pair of axes share them; leave out `share`")

    @property
    def on_plots(self) -> bool:
        """Whether every panel is drawn on a single pair of axes."""
        return all(panel.series.on_one_plot for panel in self.panels)
