"""Tables of numbers and words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from interp.errors import RecordError
from interp.series.base import Number, Part, Series, Value, series_kind
from interp.series.parts import Values, check_any, check_interval, check_length, check_unique


@dataclass(frozen=True, slots=True)
class Column(Part):
    """A column. best: whether its least or greatest measured number is printed bold.

    decimals: digits behind the point; None for three significant digits.
    """

    label: str
    unit: str = ""
    best: Literal["least", "greatest"] | None = None
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Cells(Part):
    """A row: a number, a text or None for every column. low, high: intervals, None beside a text."""

    label: str
    values: tuple[Number | str | None, ...]
    low: Values | None = None
    high: Values | None = None
    theirs: bool = False

    def check(self) -> None:
        check_interval(self, tuple(map(number, self.values)), self.low, self.high)


@series_kind
@dataclass(frozen=True, slots=True)
class Table(Series):
    """Rows under columns. label: heading of the column of row labels."""

    kind: ClassVar[str] = "table"
    on_one_plot: ClassVar[bool] = False

    columns: tuple[Column, ...]
    rows: tuple[Cells, ...]
    label: str = ""

    def check(self) -> None:
        check_any(self.rows, "rows")
        check_any(self.columns, "columns")
        check_unique((column.label for column in self.columns), "the columns")
        check_unique((row.label for row in self.rows), "the rows")
        for row in self.rows:
            check_length(row, values=len(row.values), columns=len(self.columns))
        for k, column in enumerate(self.columns):
            if column.decimals is not None and column.decimals < 0:
                raise RecordError(
                    f"{column.label!r} has {column.decimals} decimals; give 0 or more"
                )
            if column.best and not any(number(row.values[k]) is not None for row in self.rows):
                raise RecordError(f"{column.label!r} has no number that could be the best")

    def best(self, k: int) -> Value:
        """The measured number of column ``k`` that is printed bold; None where none is."""
        column = self.columns[k]
        found = [number(row.values[k]) for row in self.rows if not row.theirs]
        known = [v for v in found if v is not None]
        if column.best is None or not known:
            return None
        return min(known) if column.best == "least" else max(known)


def number(value: Number | str | None) -> Value:
    """The value, None if it is a text."""
    return None if isinstance(value, str) else value
