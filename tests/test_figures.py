"""Every kind draws without torch, twice alike, with units, and nothing of it is off the page."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from figure_examples import ATTRIBUTION, BLOCKS, SERIES
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interp.errors import RecordError
from interp.figures import draw, render
from interp.figures.scatter import frontier
from interp.figures.style import COLOURS, KIND_COLOURS
from interp.records import Claim, FigureRecord, Provenance
from interp.series import KINDS, read_series


def record(kind: str, **changes: Any) -> FigureRecord:
    given: dict[str, Any] = {
        "key": f"demo/{kind}", "title": f"Title of {kind}", "series": read_series(kind, SERIES[kind]),
        "provenance": Provenance("smollm2"), "n": {"refuse": 24}, "intervals": "95 % Wilson",
    }  # fmt: skip
    return FigureRecord(**{**given, **changes})


def with_series(kind: str, **changes: Any) -> FigureRecord:
    return record(kind, series=read_series(kind, {**SERIES[kind], **changes}))


def texts(figure: Figure) -> str:
    from matplotlib.text import Text

    figure.draw_without_rendering()
    return "\n".join(t.get_text() for t in figure.findobj(Text) if t.get_visible())


def test_every_kind_is_tried_here() -> None:
    assert set(SERIES) == set(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERIES)
def test_the_same_record_gives_the_same_bytes_without_a_date(kind: str, tmp_path: Path) -> None:
    path = record(kind).save(tmp_path)
    svg = render(path)
    first = svg.read_bytes()
    assert svg == path.with_suffix(".svg")
    assert render(path).read_bytes() == first
    assert b"<dc:date>" not in first
    assert f"Title of {kind}".encode() in first
    assert str(tmp_path).encode() not in first
    assert render(path, ".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("stacked_attribution", ["contribution (logits)", "total (logits)", "block", "MLP", "2.7"]),
        ("scatter", ["first-token KL (nats)", "refusals (%)", "base", "search", "paper"]),
        ("lines", ["block", "held-out AUC", "ours", "paper", "chosen", "chance"]),
        ("rows", ["refusals (%)", "KL (nats)", "least disturbance", "54.2", "0.0053"]),
        ("heatmap", ["block", "size (%)", "share", "attention", "chance (0.25)", "0.5"]),
    ],
)
def test_axes_have_units_and_everything_is_named(kind: str, labels: list[str]) -> None:
    shown = texts(draw(record(kind)))
    assert all(label in shown for label in labels)


@pytest.mark.parametrize("kind", SERIES)
def test_every_kind_has_its_footer_and_all_of_it_is_on_the_page(kind: str) -> None:
    """Model, n, intervals and verdict stand below the picture, and no legend covers data."""
    figure = draw(record(kind, paper_figure="figure 3", caption="What is drawn."))
    shown = texts(figure)
    assert f"Title of {kind}" in shown
    assert "smollm2 · n = 24 refuse · 95 % Wilson · for figure 3 · measured" in shown
    assert "What is drawn." in shown
    page = figure.bbox
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert page.x0 - 1 <= box.x0
        assert box.x1 <= page.x1 + 1
        assert page.y0 - 1 <= box.y0
        assert box.y1 <= page.y1 + 1
        if (legend := axes.get_legend()) is not None:
            assert legend.get_window_extent().x0 >= axes.get_window_extent().x1


# --- what the pictures show --------------------------------------------------------------------


def bars(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """Bottom and top of each bar, by label."""
    return {
        c.get_label(): [(p.get_y(), p.get_y() + p.get_height()) for p in c]
        for c in axes.containers
        if c.get_label() and not c.get_label().startswith("_")
    }


def test_bars_stack_away_from_zero_on_both_sides() -> None:
    top, bottom = draw(record("stacked_attribution")).axes
    found = bars(top)
    assert found["MLP"][1] == (0.5, 1.0), "on top of attention"
    assert found["MLP"][2] == (-0.25, -0.5), "below it where both are negative"
    assert found["MLP"][3] == (0.0, -1.0), "from zero where the signs differ"
    sums = next(line for line in bottom.lines if line.get_label() == "sum so far")
    assert list(sums.get_ydata()) == ATTRIBUTION["cumulative"]["values"]
    marker = next(line for line in bottom.lines if "measured" in str(line.get_label()))
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (BLOCKS, 2.7)
    assert "residual: 1.5e-06" in str(marker.get_label())


def test_whiskers_lie_within_their_bar_and_apart() -> None:
    parts = [
        {"label": f"{n}", "kind": kind, "values": [0.0, 0.5], "errors": [0.0, 0.1]}
        for n, kind in enumerate(KIND_COLOURS)
    ]
    series = {"positions": ["embed", "0"], "parts": parts}
    series |= {"cumulative": {"values": [0.0, 2.5]}, "lens": {"values": [0.0, 2.5]}}
    top, _ = draw(with_series("stacked_attribution", **series)).axes
    lines = [c for c in top.collections if c.get_segments()]
    x = [segment[0][0] for c in lines for segment in c.get_segments()]
    assert len(set(x)) == len(parts)
    assert all(0.6 < v < 1.4 for v in x)


def test_ticks_of_a_deep_model_do_not_collide() -> None:
    depth = 81
    deep = {
        "unit": "logits", "positions": ["embed", *(str(i) for i in range(depth - 1))],
        "parts": [{"label": "SSM", "kind": "ssm", "values": [0.1] * depth}],
        "cumulative": {"values": [0.1] * depth}, "measured": 1.0, "residual": 0.0,
    }  # fmt: skip
    figure = draw(record("stacked_attribution", series=read_series("stacked_attribution", deep)))
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[1].get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))
    assert len(boxes) <= 17


def test_colours_tell_the_kinds_apart() -> None:
    assert len(set(KIND_COLOURS.values())) == len(KIND_COLOURS)
    assert set(KIND_COLOURS.values()) - {"#6b6b6b"} <= set(COLOURS)


def test_a_zero_on_a_logarithmic_axis_is_drawn_and_named() -> None:
    axes = draw(record("scatter")).axes[0]
    base = axes.containers[0].lines[0]
    x = base.get_xdata()[0]
    low, high = axes.get_xlim()
    assert low < x < 0.02, "left of every value, inside the axes"
    labels = [t.get_text() for t in axes.get_xticklabels()]
    named = dict(zip(labels, axes.get_xticks(), strict=True))
    assert named["0"] == pytest.approx(x)
    assert all(low <= p <= high for p in named.values())


def test_a_logarithmic_axis_within_one_decade_keeps_numbers() -> None:
    groups = [{"label": "a", "x": [0.031, 0.06], "y": [1, 2]}]
    axes = draw(with_series("scatter", groups=groups)).axes[0]
    assert len(axes.get_xticks()) >= 2


def test_the_frontier_holds_what_nothing_beats() -> None:
    points = [(0.1, 0.0), (0.02, 20.0), (0.2, 10.0), (0.05, 4.0), (0.05, 9.0)]
    assert frontier(points) == [(0.02, 20.0), (0.05, 4.0), (0.1, 0.0)]


def test_a_missing_value_is_a_gap_not_a_zero() -> None:
    line = draw(record("lines")).axes[0].lines[0]
    assert [v != v for v in line.get_ydata()] == [False, False, True, False]


def test_missing_cells_are_left_empty() -> None:
    _, kl = draw(record("rows")).axes
    assert [t.get_text() for t in kl.texts] == ["0", "0.0053"]


# --- errors ------------------------------------------------------------------------------------


def test_nothing_to_draw_says_what_is_needed() -> None:
    with pytest.raises(RecordError, match="nothing to draw: not run here: needs a GPU"):
        draw(record("lines", series=None, needs="a GPU"))


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"written as \.svg or \.png, not '\.pdf'"):
        draw(record("rows"), tmp_path / "a.pdf")


# --- surroundings ------------------------------------------------------------------------------


def test_drawing_needs_no_torch_and_no_window(tmp_path: Path) -> None:
    path = record("rows").save(tmp_path)
    code = (
        "import sys; from interp.figures import render; render(sys.argv[1]);"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, str(path)], check=False)
    assert done.returncode == 0
    assert path.with_suffix(".svg").is_file()


def test_importing_figures_does_not_import_matplotlib() -> None:
    code = "import sys, interp.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_notebook_shows_what_draw_returns() -> None:
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(draw(record("rows")))
    assert shown["image/svg+xml"].startswith("<?xml")


def test_the_global_style_is_left_alone() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw(record("lines", claims=(Claim("rises", "rises", "/x/values"),)))
    assert dict(mpl.rcParams) == before


def test_numbers_on_a_short_axis_are_told_apart() -> None:
    """Whatever the order of the rows; on a long axis they stay short."""
    values = [[3.7122, 3.125], [3.70591, 0.0], [3.8237, 50.0]]
    for order in (values, values[::-1]):
        rows = [{"label": str(k), "values": row} for k, row in enumerate(order)]
        columns = [{"label": "NLL"}, {"label": "refused", "limits": [0, 100]}]
        left, right = draw(with_series("rows", columns=columns, rows=rows)).axes
        assert {text.get_text() for text in left.texts} == {"3.7122", "3.7059", "3.8237"}
        assert {text.get_text() for text in right.texts} == {"3.1", "0", "50"}


# --- texts of tokenizers and users --------------------------------------------------------------

NASTY = {
    "\x00\x1b[31m\ud800.\udfff": "\\x00\\x1b[31m\\ud800.\\udfff",
    "a<b>&amp;]]>--$x_1$ \\frac{": "a<b>&amp;]]>--$x_1$ \\frac{",
    "\u202ebidi\u2066two\nlines\r\t": "\\u202ebidi\\u2066two\\nlines\\r\\t",
    "\ufffd\ufffe\U000e0001抱歉[red]'\"": "\ufffd\\ufffe\\U000e0001\\u62b1\\u6b49[red]'\"",
}
"""Text → what is drawn of it."""
TEXTS = ("label", "unit", "title", "names", "positions")


def with_texts(value: Any, text: str, *, named: bool = False) -> Any:
    """A series with ``text`` after every text that is drawn."""
    if isinstance(value, str):
        return value + text if named else value
    if isinstance(value, dict):
        return {k: with_texts(v, text, named=named or k in TEXTS) for k, v in value.items()}
    if isinstance(value, list):
        return [with_texts(v, text, named=named) for v in value]
    return value


@pytest.mark.slow
@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("kind", SERIES)
def test_a_picture_is_xml_and_shows_every_text(kind: str, text: str, tmp_path: Path) -> None:
    series = read_series(kind, with_texts(SERIES[kind], text))
    made = record(kind, series=series, title=f"T {text}", caption=text, intervals=text,
                  n={text: 3}, paper_figure=text)  # fmt: skip
    path = made.save(tmp_path)
    assert FigureRecord.load(path).series == made.series, "the data stay as they are"
    root = ElementTree.parse(render(path)).getroot()
    title = next(e.text for e in root.iter() if e.tag.endswith("}title"))
    assert title == f"T {NASTY[text]}"
    assert texts(draw(made)).count(NASTY[text]) > 3


def test_a_long_label_leaves_the_axes_their_room() -> None:
    rows = [{"label": "word " * 100, "values": [1, 2]}]
    shown = texts(draw(with_series("rows", rows=rows)))
    assert "word word" in shown
    assert "…" in shown


def test_characters_of_the_font_are_drawn_as_they_are() -> None:
    shown = texts(draw(record("rows", title="Größe, ελληνικά, русский, عربي, ×")))
    assert "Größe, ελληνικά, русский, عربي, ×" in shown
