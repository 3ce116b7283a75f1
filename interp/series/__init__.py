"""Typed data of figures: one class a kind, checked when made, written to and read from JSON.

No torch and no matplotlib. :func:`interp.figures.draw` draws a record of any of them.
"""

from __future__ import annotations

from interp.series.bars import BarGroup, Bars
from interp.series.base import KINDS, Series, read_series, series_kind
from interp.series.distribution import Distribution, Sample
from interp.series.heatmap import HeatMap, MapPanel, Reference
from interp.series.histogram import Counts, Histogram
from interp.series.lines import Line, Lines
from interp.series.parts import Axis, Mark, Names, Places
from interp.series.rows import Row, Rows
from interp.series.scatter import Correlation, Group, Scatter, correlation
from interp.series.small_multiples import Panel, SmallMultiples
from interp.series.stacked_attribution import Contribution, StackedAttribution, Total
from interp.series.table import Cells, Column, Table

__all__ = [
    "KINDS",
    "Axis",
    "BarGroup",
    "Bars",
    "Cells",
    "Column",
    "Contribution",
    "Correlation",
    "Counts",
    "Distribution",
    "Group",
    "HeatMap",
    "Histogram",
    "Line",
    "Lines",
    "MapPanel",
    "Mark",
    "Names",
    "Panel",
    "Places",
    "Reference",
    "Row",
    "Rows",
    "Sample",
    "Scatter",
    "Series",
    "SmallMultiples",
    "StackedAttribution",
    "Table",
    "Total",
    "correlation",
    "read_series",
    "series_kind",
]
