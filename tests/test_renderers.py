"""What is drawn is what the series says: values are read back from the picture, kind by kind."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_examples import BARS, DISTRIBUTION, FIT, HISTOGRAM, LINES, ROWS, SERIES, TABLE
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

from interp.errors import RecordError
from interp.figures import draw
from interp.figures.style import COLOURS, GREY
from interp.records import FigureRecord, Provenance
from interp.series import (
    Axis,
    BarGroup,
    Bars,
    Group,
    Names,
    Panel,
    Scatter,
    SmallMultiples,
    read_series,
)


class Pie(Bars):
    """A kind that no module draws."""

    kind = "pie"

    def __init__(self) -> None:
        super().__init__(Names("", ["a"]), Axis("y"), [BarGroup("g", [1])])


def drawn(kind: str, **changes: Any) -> Figure:
    return drawn_as(read_series(kind, {**SERIES[kind], **changes}))


def drawn_as(series: Any) -> Figure:
    return draw(FigureRecord("demo/one", "Title", series, Provenance("smollm2")))


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    """Coordinates of the line of this label, or of the markers of an errorbar."""
    handles, labels = axes.get_legend_handles_labels()
    handle: Any = handles[labels.index(label)]
    data = handle.lines[0] if hasattr(handle, "lines") else handle
    return list(data.get_xdata()), list(data.get_ydata())


def labels(axes: Any) -> list[str]:
    legend = axes.get_legend() if isinstance(axes, Axes) else axes.legends[0]
    return [text.get_text() for text in legend.get_texts()]


def whiskers(axes: Axes) -> list[tuple[float, float]]:
    """Lower and upper end of every vertical interval."""
    segments = [s for c in axes.collections if hasattr(c, "get_segments") for s in c.get_segments()]
    return [(s[0][1], s[1][1]) for s in segments if len(s) == 2 and s[0][0] == s[1][0]]


def test_lines_their_bands_and_their_marks() -> None:
    (axes,) = drawn("lines").axes
    ours, paper = LINES["lines"]
    x, y = line(axes, "ours")
    assert x == LINES["x"]["values"]
    np.testing.assert_equal(y, [v if v is not None else np.nan for v in ours["values"]])
    assert line(axes, "paper") == (paper["x"], paper["values"])
    band = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    for place, low, high in zip(x, ours["low"], ours["high"], strict=True):
        ends = set(band[band[:, 0] == place][:, 1])
        assert low is None or {low, high} <= ends
    assert line(axes, "chosen")[0] == [2, 2]
    assert line(axes, "chance")[1] == [0.5, 0.5]


def test_dots_of_rows_lie_at_their_values_with_their_intervals() -> None:
    refused, kl = drawn("rows").axes
    dots = [(h.get_xdata()[0], h.get_ydata()[0]) for h in refused.lines if len(h.get_xdata()) == 1]
    assert dots == [(row["values"][0], y) for y, row in enumerate(ROWS["rows"])]
    spans = [list(h.get_xdata()) for h in refused.lines if len(h.get_xdata()) == 2]
    assert spans == [[row["low"][0], row["high"][0]] for row in ROWS["rows"] if "low" in row]
    assert len([h for h in kl.lines if len(h.get_xdata()) == 1]) == 2, "a missing value has no dot"


def test_points_and_the_least_squares_lines_through_them() -> None:
    (axes,) = drawn_as(read_series("scatter", FIT)).axes
    medical, opinions = FIT["groups"]
    assert line(axes, "medical") == (medical["x"], medical["y"])
    assert line(axes, "opinions") == (opinions["x"][:3], opinions["y"][:3]), "no half-known point"
    found = {
        label.partition(": r =")[0]: line(axes, label) for label in labels(axes) if "r =" in label
    }
    groups = {"medical": medical, "opinions": {k: opinions[k][:3] for k in "xy"}}
    both = {k: [v for group in groups.values() for v in group[k]] for k in "xy"}
    groups["r = 0.97 [0.82, 1.00], n = 7"] = both
    assert found.keys() == groups.keys()
    for label, group in groups.items():
        slope, start = np.polyfit(group["x"], group["y"], 1)
        x, y = found[label]
        assert x == [min(group["x"]), max(group["x"])]
        assert y == pytest.approx([start + slope * v for v in x])


def test_a_paper_s_points_are_grey_and_take_no_part_in_the_fit() -> None:
    ours, theirs = Group("ours", [0, 1, 2], [2, 1, 0]), Group("paper", [9], [99], theirs=True)
    (axes,) = drawn_as(Scatter(Axis("x"), Axis("y"), [ours, theirs], fit="overall")).axes
    assert "r = −1.00, n = 3" in labels(axes)
    handles, names = axes.get_legend_handles_labels()
    assert to_hex(handles[names.index("paper")].lines[0].get_color()) == GREY


def test_an_interval_of_a_point_reaches_to_its_ends() -> None:
    group = Group("a", [1, 2], [5, 6], y_low=[4, None], y_high=[8, None])
    (axes,) = drawn_as(Scatter(Axis("x"), Axis("y"), [group])).axes
    assert whiskers(axes) == [(4, 8), (6, 6)]


def test_bars_stand_side_by_side_with_their_intervals() -> None:
    (axes,) = drawn("bars").axes
    bars = {c.get_label(): list(c) for c in axes.containers if isinstance(c, BarContainer)}
    for group in BARS["groups"]:
        heights = [bar.get_height() for bar in bars[group["label"]]]
        assert heights == [v for v in group["values"] if v is not None]
    spans = sorted((b.get_x(), b.get_x() + b.get_width()) for bars in bars.values() for b in bars)
    assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(spans)), "none overlap"
    base = BARS["groups"][0]
    np.testing.assert_allclose(whiskers(axes), list(zip(base["low"], base["high"], strict=True)))
    assert [t.get_text() for t in axes.get_xticklabels()] == BARS["x"]["names"]
    assert to_hex(bars["paper"][0].get_facecolor()) == "#ffffff"
    assert to_hex(bars["base"][0].get_facecolor()) == COLOURS[0].lower()


@pytest.mark.parametrize("share", [True, False])
def test_steps_of_a_histogram_are_its_counts_or_shares(share: bool) -> None:
    (axes,) = drawn("histogram", share=share).axes
    steps = [p for p in axes.patches if isinstance(p, StepPatch) and not p.get_fill()]
    for patch, group in zip(steps, HISTOGRAM["groups"], strict=True):
        values, edges, _ = patch.get_data()
        total = sum(group["counts"])
        assert list(edges) == HISTOGRAM["edges"]
        assert list(values) == pytest.approx(
            [100 * c / total if share else c for c in group["counts"]]
        )
    assert labels(axes) == ["normal (n = 15)", "evil (n = 13)"]
    assert axes.get_ylabel() == ("share (%)" if share else "count")


def test_every_value_of_a_sample_is_a_point_and_the_box_holds_the_quartiles() -> None:
    (axes,) = drawn("distribution").axes
    points = [h for h in axes.lines if h.get_linestyle() == "None"]
    boxes = [p for p in axes.patches if isinstance(p, Rectangle)]
    for k, group in enumerate(DISTRIBUTION["groups"]):
        assert list(points[k].get_ydata()) == group["values"]
        assert all(abs(x - k) < 0.4 for x in points[k].get_xdata()), "columns stay apart"
        low, high = np.quantile(group["values"], [0.25, 0.75])
        assert boxes[k].get_y() == pytest.approx(low)
        assert boxes[k].get_height() == pytest.approx(high - low)


def test_cells_of_a_table_stand_below_their_heading_and_the_best_is_bold() -> None:
    (axes,) = drawn("table").axes
    found = {t.get_text(): t for t in axes.texts}
    assert {"method", "accuracy (%)", "KL (nats)", "conceptor", "keywords"} <= found.keys()
    assert {"52.2", "49.0 … 55.0", "20.0", "55.5", "0.0123", "0.0005", "–"} <= found.keys()
    bold = {text for text, t in found.items() if t.get_weight() == "bold"}
    heads = {"method", "judge", "accuracy (%)", "KL (nats)"}
    assert bold - heads == {"52.2", "0.0005"}, "a paper's number is not the best of ours"
    assert found["20.0"].get_position()[0] == found["accuracy (%)"].get_position()[0]
    assert found["20.0"].get_position()[1] == found["addition"].get_position()[1]
    assert to_hex(found["55.5"].get_color()) == GREY
    assert len(TABLE["rows"]) == axes.get_ylim()[0]


def test_small_multiples_draw_each_series_and_one_legend() -> None:
    figure = drawn("small_multiples")
    scatter, lines, bars, histogram = figure.axes
    assert scatter.get_title(loc="left").startswith("evil\nmedical: r = 1.00 [0.79, 1.00], n = 4")
    assert line(lines, "paper") == (LINES["lines"][1]["x"], LINES["lines"][1]["values"])
    assert len([c for c in bars.containers if isinstance(c, BarContainer)]) == len(BARS["groups"])
    assert len([p for p in histogram.patches if isinstance(p, StepPatch)]) == 4
    assert len(figure.legends) == 1
    assert {"medical", "ours", "base", "chance", "evil (n = 13)"} <= set(labels(figure))
    assert not any("r = " in label for label in labels(figure))


def test_a_label_has_one_colour_in_all_plots_of_a_legend() -> None:
    x, y = Axis("x"), Axis("y")
    own, others = Group("own", [1], [2]), Group("others", [3], [4])
    panels = [Panel("a", Scatter(x, y, [own, others])), Panel("b", Scatter(x, y, [others, own]))]
    colours = [
        {label: to_hex(handle.lines[0].get_color()) for handle, label in zip(*found, strict=True)}
        for found in (
            axes.get_legend_handles_labels() for axes in drawn_as(SmallMultiples(panels)).axes
        )
    ]
    assert colours[0] == colours[1]
    assert len(set(colours[0].values())) == 2


def test_names_too_long_for_a_small_plot_are_slanted() -> None:
    bars = Bars(
        Names("", ["exclamatory", "uppercase", "apologetic"]), Axis("y"), [BarGroup("b", [1, 2, 3])]
    )
    (alone,) = drawn_as(bars).axes
    panels = [Panel(name, bars) for name in "abc"]
    small = drawn_as(SmallMultiples(panels)).axes[0]
    assert [axes.get_xticklabels()[0].get_rotation() > 0 for axes in (alone, small)] == [
        False,
        True,
    ]


def test_small_multiples_may_share_limits_and_hold_plots_of_several_axes() -> None:
    plots = [Scatter(Axis("x"), Axis("y"), [Group("a", [0, 1], [0, top])]) for top in (1, 50)]
    panels = [Panel(str(i), plot) for i, plot in enumerate(plots)]
    one, two = drawn_as(SmallMultiples(panels, share=("y",))).axes
    assert one.get_ylim() == two.get_ylim()
    assert one.get_ylim()[1] > 50
    assert (one.get_ylabel(), two.get_ylabel()) == ("y", "")
    assert len(labels(one.figure)) == 1
    figure = drawn_as(
        SmallMultiples([
            Panel("costs", read_series("rows", ROWS)),
            Panel("where", read_series("heatmap", SERIES["heatmap"])),
            Panel("plot", plots[0]),
        ])
    )  # fmt: skip
    assert len(figure.subfigs) == 3
    assert [len(part.axes) for part in figure.subfigs] == [2, 4, 1]


def test_a_series_is_drawn_without_a_record(tmp_path: Path) -> None:
    figure = draw(read_series("lines", LINES), tmp_path / "a.png", title="AUC by block")
    assert figure.axes[0].get_title(loc="left") == "AUC by block"
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(RecordError, match="neither a record nor one of interp"):
        draw({"x": [1]})


def test_a_kind_without_a_renderer_says_where_to_add_one() -> None:
    with pytest.raises(
        RecordError, match=r"nothing draws the kind 'pie'; add interp/figures/pie\.py"
    ):
        draw(Pie())
