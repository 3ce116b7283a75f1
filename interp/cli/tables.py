"""Tables for people: rich on a terminal, the same text in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from interp.printable import printable


def console() -> Console:
    """Standard output; wide enough in a pipe that no cell is cut."""
    out = Console(emoji=False)  # a model is named tiny:llama
    return out if out.is_terminal else Console(width=140, emoji=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows; columns whose name starts with ``>`` are right-aligned. Texts are shown literally."""
    made = Table(
        title=literal(title), title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for name in columns:
        right = name.startswith(">")
        made.add_column(
            literal(name.removeprefix(">")), justify="right" if right else "left", no_wrap=right
        )
    for row in rows:
        made.add_row(*map(literal, row))
    console().print(made)


def literal(text: str) -> Text:
    """A text for rich: printable, and without markup, emoji codes or highlighting."""
    return Text(printable(text))


MEASURES = (
    "edit", ">refusals", ">95 %", ">over-refusals", ">KL₁ nats", ">KL₃₂ nats/token", ">NLL nats",
    ">new text NLL", ">looping", ">overlap",
)  # fmt: skip


def measure_cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the before/after table."""
    low, high = (100 * x for x in row["refusal_interval"])
    return [
        row["name"],
        f"{row['refusals']}/{row['n_refuse']}",
        f"{low:.0f}–{high:.0f} %",
        f"{row['over_refusals']}/{row['n_comply']}",
        f"{row['kl_first']:.4f}",
        f"{row['kl_continuation']:.4f}",
        f"{row['nll']:.3f}",
        *_replacement_cells(row.get("replacement")),
    ]


def _replacement_cells(found: Mapping[str, Any] | None) -> list[str]:
    """NLL, looping rate and overlap of the responses that replaced refusals; a dash without any."""
    formats = (("nll", "{:.2f}"), ("looping", "{:.0%}"), ("overlap", "{:.0%}"))
    values = found or {}
    return [form.format(v) if (v := values.get(k)) is not None else "–" for k, form in formats]


def measures(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of measures; intervals are Wilson's on the refusal rate.

    The last three columns are about the responses that replaced refusals, for the original about its
    responses to answerable prompts.
    """
    table(title, MEASURES, [measure_cells(row) for row in rows])


def examples(rows: Sequence[Mapping[str, Any]]) -> None:
    """Responses of every edit to the same requests, side by side."""
    cells = []
    for shown in zip(*(row.get("examples", ()) for row in rows), strict=True):
        for row, example in zip(rows, shown, strict=True):
            first = row is rows[0]
            cells.append([example["prompt"] if first else "", row["name"], example["response"]])
    if cells:
        table(
            "responses to requests that the original refuses",
            ("request", "edit", "response"),
            cells,
        )
