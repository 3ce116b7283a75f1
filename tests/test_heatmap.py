"""Heat maps: every value at its place, nothing that is missing drawn as a value, safe colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.patches import Rectangle

from interp.errors import RecordError
from interp.figures import draw, render
from interp.records import FigureRecord, Provenance
from interp.series import MapPanel, read_series

HEATMAP: dict[str, Any] = {
    "columns": {"label": "block", "names": ["0", "1", "2", "3"]},
    "rows": {"label": "", "names": ["attention", "ssm", "mlp"]},
    "panels": [
        {"label": "‖ΔW‖ / ‖W‖", "title": "size",
         "values": [[0.5, None, 0.25, 0.0], [None, 0.125, None, None], [0.1, 0.2, 0.3, 0.4]]},
        {"label": "margin", "unit": "logits", "map": "diverging",
         "values": [[-2.0, 1.0, 0.0, None]] * 3},
        {"label": "share", "title": "kept", "limits": [0, 1], "reference": {"at": 0.125, "label": "chance"},
         "values": [[1.0, 0.0, 0.5, None]] * 3},
    ],
}  # fmt: skip


def record(**changes: Any) -> FigureRecord:
    series = read_series("heatmap", {**HEATMAP, **changes})
    return FigureRecord("demo/heatmap", "Title", series, Provenance("smollm2"))


def meshes(figure: Any) -> list[tuple[Any, QuadMesh]]:
    """``(axes, mesh)`` of the panels; colour bars have meshes of their own."""
    found = [(axes, c) for axes in figure.axes for c in axes.collections if isinstance(c, QuadMesh)]
    return [(axes, mesh) for axes, mesh in found if mesh.get_array().shape == (3, 4)]


def test_every_value_lies_in_its_cell_and_nothing_in_the_others() -> None:
    (axes, mesh), *_ = meshes(draw(record()))
    values = np.ma.filled(mesh.get_array().astype(float), np.nan)
    wanted = [[np.nan if v is None else v for v in row] for row in HEATMAP["panels"][0]["values"]]
    np.testing.assert_array_equal(values, wanted)
    low, high = axes.get_ylim()
    assert low > high, "the first row is on top"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["attention", "ssm", "mlp"]
    texts = {(t.get_position()): t.get_text() for t in axes.texts}
    assert texts[0.5, 0.5] == "0.5"
    assert texts[3.5, 0.5] == "0", "a zero is a value"
    assert (1.5, 0.5) not in texts
    hatched = {p.get_xy() for p in axes.patches if isinstance(p, Rectangle) and p.get_hatch()}
    assert hatched == {(1, 0), (0, 1), (2, 1), (3, 1)}


def test_units_titles_and_references_are_written() -> None:
    figure = draw(record())
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert {"‖ΔW‖ / ‖W‖", "margin (logits)", "share"} <= set(labels)
    titles = [axes.get_title(loc="left") for axes, _ in meshes(figure)]
    assert titles == ["size", "", "kept · line on the bar: chance (0.12)"]
    bottom = meshes(figure)[-1][0]
    assert bottom.get_xlabel() == "block"


def test_colours_begin_at_zero_or_are_symmetric() -> None:
    assert [panel.ends for panel in record().series.panels] == [(0, 0.5), (-2.0, 2.0), (0, 1)]
    assert MapPanel("x", [[0.0]]).ends == (0, 1.0)
    assert MapPanel("x", [[0.2, 0.4]]).ends == (0, 0.4), "pale is nothing, not the least"
    assert MapPanel("x", [[-3.0, 1.0]]).ends == (-3.0, 1.0)


@pytest.mark.parametrize("name", ["sequential", "diverging"])
def test_the_map_is_read_by_lightness_alone(name: str) -> None:
    """Without any colour: the larger (or farther from 0), the darker, each step visibly so."""
    from matplotlib import colormaps

    from interp.figures.heatmap import MAPS

    colours = colormaps[MAPS[name]](np.linspace(0.5 if name == "diverging" else 0.0, 1.0, 9))
    lightness = colours[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) < -0.02).all()


def test_long_names_stand_upright_and_nothing_is_off_the_page() -> None:
    names = [f"a long token {i}" for i in range(30)]
    panel = {"label": "x", "values": [[float(i) for i in range(30)]] * 40}
    figure = draw(
        record(
            columns={"label": "position", "names": names},
            rows={"label": "layer", "names": [str(i) for i in range(40)]},
            panels=[panel],
        )
    )
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert {t.get_rotation() for t in axes.get_xticklabels()} == {90.0}
    assert not axes.texts, "numbers do not fit into so many cells"
    assert len(axes.get_yticks()) <= 24
    for each in figure.axes:
        box = each.get_tightbbox()
        assert box is not None
        assert figure.bbox.x0 - 1 <= box.x0
        assert box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0
        assert box.y1 <= figure.bbox.y1 + 1


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        ({"label": "x", "values": [[1.0] * 4] * 2}, "not 3 of 4"),
        ({"label": "x", "values": [[1.0] * 3] * 3}, "not 3 of 4"),
        ({"label": "x", "values": [[None] * 4] * 3}, "no values to draw"),
        ({"label": "x", "values": [[1.0] * 4] * 3, "map": "jet"}, "use sequential or diverging"),
        ({"values": [[1.0] * 4] * 3}, "panels/0 has no 'label'; MapPanel needs label, values"),
    ],
)
def test_a_series_that_does_not_fit_is_explained(panel: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        record(panels=[panel])


@pytest.mark.slow
def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    path = record().save(tmp_path)
    first = render(path).read_bytes()
    assert render(path).read_bytes() == first
