"""Several measures of several things: dots with intervals, one panel for each measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interp.series.base import Series, series_kind
from interp.series.parts import (
    Axis,
    Interval,
    check_any,
    check_length,
    check_log,
    check_unique,
)


@dataclass(frozen=True, slots=True)
class Row(Interval):
    """One thing that is compared: a value for every column, None where there is none."""


@series_kind
@dataclass(frozen=True, slots=True)
class Rows(Series):
    """A dot plot: a row for each thing compared, a column with its own axis for each measure."""

    kind: ClassVar[str] = "rows"
    on_one_plot: ClassVar[bool] = False

    columns: tuple[Axis, ...]
    rows: tuple[Row, ...]

    def check(self) -> None:
        check_any(self.rows, "rows")
        check_any(self.columns, "columns")
        check_unique((column.label for column in self.columns), "the columns")
        check_unique((row.label for row in self.rows), "the rows")
        for row in self.rows:
            check_length(row, values=len(row.values), columns=len(self.columns))
        for k, column in enumerate(self.columns):
            check_log(column, (row.values[k] for row in self.rows))
