"""The house style: one look, one palette, and files that are the same bytes every time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from interp.figures.labels import FONT, drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from interp.records import FigureRecord
    from interp.series import Names

P = TypeVar("P", bound=Any)

SIZE = (7.5, 4.2)
"""Inches; readable at the width of a notebook cell."""

FOOTER_CHARACTERS = 122
ROOM = 13
"""Letters of category names that fit side by side in an inch of a plot; longer ones are written slantwise."""
SLANT = 30

INK, GREY, PALE = "#222222", "#6b6b6b", "#d9d9d9"

# Okabe and Ito, "Color Universal Design" (2008), without yellow (too pale on white); ink is their black.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

KIND_COLOURS = {
    "embedding": GREY,
    "attention": "#0072B2",
    "mlp": "#E69F00",
    "expert": "#CC79A7",
    "ssm": "#009E73",
}
"""A kind of component has one colour in every figure."""

STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "font.family": FONT,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "svg.hashsalt": "interp",
    "svg.fonttype": "path",
    "path.simplify": False,
    "text.parse_math": False,
}


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    # One further each time the colours begin again, so that no two lines look alike.
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def in_turn(parts: Sequence[P], order: Sequence[str]) -> Iterator[tuple[int, P]]:
    """Every labelled part with the turn of its colour and marker: its place in ``order``, or among ``parts``.

    order: labels of several plots with one legend, in which a label looks the same everywhere.
    """
    return ((order.index(part.label) if order else k, part) for k, part in enumerate(parts))


def axis_label(axis: Any) -> str:
    """``label (unit)`` of a part that has both; a count, a share or an index has no unit."""
    return f"{axis.label} ({axis.unit})" if axis.unit else axis.label


def name_categories(axes: Axes, names: Names) -> None:
    """Names below their places 0, 1 …, slantwise where they are too long to stand side by side."""
    letters = sum(max(map(len, name.split("\n"))) + 2 for name in names.names)
    width = axes.get_position().width * axes.figure.get_figwidth()
    long = letters > ROOM * width
    axes.set_xticks(
        range(len(names.names)), names.names, rotation=SLANT if long else 0,
        ha="right" if long else "center",
    )  # fmt: skip
    axes.set_xlabel(axis_label(names))
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")


def legend_outside(figure: FigureBase, axes: Axes, *more: Axes) -> None:
    """One legend for several axes, right of the data, where it can hide nothing."""
    found: dict[str, Any] = {}
    for each in (axes, *more):
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        axes.legend(
            list(found.values()), list(found), loc="upper left", bbox_to_anchor=(1.01, 1.02),
            borderaxespad=0.0, handlelength=1.6,
        )  # fmt: skip


def footer(record: FigureRecord) -> str:
    """What a reader must know beside the picture: caption, model, n, intervals, verdict."""
    parts = [record.provenance.model]
    if record.n:
        parts.append("n = " + " + ".join(f"{count} {name}" for name, count in record.n.items()))
    if record.intervals:
        parts.append(record.intervals)
    if record.paper_figure:
        parts.append(f"for {record.paper_figure}")
    facts = " · ".join([*parts, record.verdict])
    texts = (" ".join(record.caption.split()), facts)
    return "\n".join(line for t in texts for line in textwrap.wrap(drawable(t), FOOTER_CHARACTERS))
