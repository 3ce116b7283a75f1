"""Series survive a round trip through JSON, say what does not fit, and hold every committed card."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_examples import SERIES, some_lines

import interp.series
from interp.claims import Claim
from interp.errors import RecordError
from interp.records import FigureRecord, Provenance, outcomes
from interp.series import (
    KINDS,
    Axis,
    BarGroup,
    Bars,
    Cells,
    Column,
    Contribution,
    Counts,
    Distribution,
    Group,
    HeatMap,
    Histogram,
    Line,
    Lines,
    MapPanel,
    Mark,
    Names,
    Panel,
    Places,
    Row,
    Rows,
    Sample,
    Scatter,
    SmallMultiples,
    Table,
    correlation,
    read_series,
)

CARDS = sorted((Path(__file__).parent.parent / "figures").glob("*/*.json"))
X, Y = Axis("x"), Axis("y")
PLACES = Places("block", values=[0, 1, 2])


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value with its place."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers(part, f"{place}/{key}")
    elif type(value) in (int, float):
        yield place, value


# --- JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_every_committed_card_is_typed_and_keeps_its_numbers(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    record = FigureRecord.load(path)
    assert record.kind == content["kind"]
    assert type(record.series) is KINDS.get(record.kind, type(None))
    assert dict(numbers(record.as_json())) == dict(numbers(content))


@pytest.mark.parametrize("kind", KINDS)
def test_a_series_survives_a_round_trip_through_json(kind: str) -> None:
    made = read_series(kind, SERIES[kind])
    assert type(made) is KINDS[kind]
    written = json.loads(json.dumps(made.as_json(), allow_nan=False))
    assert read_series(kind, written) == made
    assert dict(numbers(written)) == dict(numbers(SERIES[kind]))


def test_what_is_not_drawn_is_kept_beside_the_series() -> None:
    made = some_lines(openers=["I", "Sorry"], table={"a": [1, None]})
    written = made.as_json()
    assert written["openers"] == ["I", "Sorry"]
    assert read_series("lines", written).beside == made.beside
    with pytest.raises(RecordError, match="'marks' in `beside` is a field of Lines; rename it"):
        some_lines(marks=1)


def test_arrays_are_taken_as_their_numbers() -> None:
    line = Line("a", np.array([0.5, 1.0, 2.0]), low=np.zeros(3), high=np.full(3, 4.0))
    assert Lines(Places("x", values=np.arange(3)), Y, [line]).as_json()["lines"] == [
        {"label": "a", "values": [0.5, 1.0, 2.0], "low": [0.0] * 3, "high": [4.0] * 3}
    ]


def test_every_kind_has_an_example_in_the_readme_that_is_valid() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^\| [^|`]+ \| `((?:[A-Z]\w+)(?:\.of)?\(.*\))` \|$", text, re.MULTILINE)
    made = [eval(example, {**vars(interp.series), "X": X, "Y": Y}) for example in examples]
    assert {series.kind for series in made} == KINDS.keys() - {"stacked_attribution"}


# --- wrong input ---------------------------------------------------------------------------------

WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: Line("a", [1.0, math.nan]), r"Line\('a'\).values/1 is nan; use None"),
    (lambda: Line("a", [math.inf]), "values/0 is inf; use None"),
    (lambda: Line("a", [True]), r"values/0 is a bool \(True\); give a number"),
    (lambda: Line("a", "123"), "is a str .*; give a sequence"),
    (lambda: Line("a", 1.0), "is a float .*; give a sequence"),
    (lambda: Line(3, [1.0]), r"Line.label is a int \(3\); give a text"),
    (lambda: Line("a", [1.0], low=[0.0]), "one end of its intervals; give low and high"),
    (lambda: Line("a", [1.0], low=[0.0, 0.0], high=[2.0, 2.0]), "2 low for 1 values; give one"),
    (lambda: Line("a", [1.0], low=[0.5], high=[0.9]), "from 0.5 to 0.9 does not contain 1.0"),
    (lambda: Line("a", [1.0], low=[None], high=[2.0]), "one end of interval 0"),
    (lambda: Line("a", [None], low=[2.0], high=[1.0]), "from 2 to 1 does not contain"),
    (lambda: Axis("y", scale="cubic"), r"Axis\('y'\).scale is 'cubic'; use linear or log"),
    (lambda: Axis("y", limits=(1, 0)), "the limits of .* give low, high"),
    (lambda: Axis("y", limits=(1, 2, 3)), "limits has 3 entries; give 2"),
    (lambda: Axis("y", scale="log", limits=(0, 1)), "must be above 0"),
    (lambda: Names("x", ["a", "a"]), "two of the names .* are 'a'"),
    (lambda: Mark("z", 1.0, "m"), "use x or y"),
    (lambda: Lines(PLACES, Y, []), "no lines to draw"),
    (lambda: Lines(PLACES, Y, [Line("a", [1.0])]), "1 values for 3 places"),
    (lambda: Lines(PLACES, Y, [Line("a", [1] * 3)] * 2), "two of the lines are 'a'"),
    (lambda: Lines(PLACES, Y, [{"label": "a", "values": [1] * 3}]), "is a dict .*; give a Line"),
    (lambda: Lines({"label": "x"}, Y, []), "is a dict .*; give a Places"),
    (lambda: Lines(PLACES, Axis("y", scale="log"), [Line("a", [-1, 1, 2])]), "logarithmic axis"),
    (lambda: Scatter(Axis("x", scale="log"), Y, [Group("a", [0], [1])]), "logarithmic axis"),
    (lambda: Group("a", [1, 2], [1]), "1 y for 2 x"),
    (lambda: Group("a", [1], [1], y_low=[2], y_high=[3]), "does not contain 1"),
    (lambda: Scatter(X, Y, [Group("a", [1, 2], [1, 2])], fit="overall"), "give at least 3"),
    (lambda: Scatter(X, Y, [Group("a", [1] * 3, [1, 2, 3])], fit="groups"), "do not vary"),
    (lambda: Scatter(Axis("x", scale="log"), Y, [Group("a", [1, 2, 3], [1, 2, 4])], fit="both"),
     "draw it on linear axes"),
    (lambda: Bars(Names("", ["a", "b"]), Y, [BarGroup("g", [1])]), "1 values for 2 categories"),
    (lambda: Histogram(X, [0, 1], [Counts("a", [1.5])]), "give a whole number"),
    (lambda: Histogram(X, [0, 1], [Counts("a", [-1])]), "negative count"),
    (lambda: Histogram(X, [1, 0], [Counts("a", [1])]), "edges of a histogram rise"),
    (lambda: Histogram(X, [0, 1, 2], [Counts("a", [1])]), "1 counts for 2 bins"),
    (lambda: Histogram(X, [0, 1], [Counts("a", [0])], share=True), "has no values"),
    (lambda: Histogram.of(X, {"a": []}), "at least one value"),
    (lambda: Distribution(Y, [Sample("a", [])]), "no values of 'a'"),
    (lambda: MapPanel("m", [[None]]), "no values to draw"),
    (lambda: HeatMap(Names("", ["a"]), Names("", ["b"]), [MapPanel("m", [[1, 2]])]), "not 1 of 1"),
    (lambda: Rows([X], [Row("a", [1, 2])]), "2 values for 1 columns"),
    (lambda: Table([Column("a")], [Cells("r", [1, 2])]), "2 values for 1 columns"),
    (lambda: Table([Column("a", best="least")], [Cells("r", ["x"])]), "could be the best"),
    (lambda: Contribution("a", "mlp", [1.0], errors=[-1.0]), "give 0 or more"),
    (lambda: Panel("p", SmallMultiples([Panel("q", some_lines())])), "has panels itself"),
    (lambda: SmallMultiples([Panel("q", some_lines())] * 2), "two of the panels are 'q'"),
    (lambda: SmallMultiples([Panel("q", some_lines())], columns=0), "give 1 or more"),
    (lambda: SmallMultiples([Panel("q", Rows([X], [Row("a", [1])]))], share=("x",)),
     "leave out `share`"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_does_not_fit_is_refused_when_it_is_made(make: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        make()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("pie", {}, "no series of kind 'pie'; known: bars, distribution"),
        ("lines", {"lines": [{"values": [1]}]}, "lines/0 has no 'label'; Line needs label, values"),
        ("lines", {"lines": [{"label": "a", "values": [1] * 4, "hi": [1] * 4}]},
         "lines/0 has an unknown field 'hi'"),
        ("lines", {"x": {"label": "x"}}, "lines/x has no 'values'"),
        ("small_multiples", {"panels": [{"title": "a", "series": {"label": "x"}}]},
         "no series of kind ''"),
    ],
)  # fmt: skip
def test_json_that_does_not_fit_is_explained(kind: str, changes: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read_series(kind, {**SERIES.get(kind, {}), **changes})


def test_a_card_with_a_bad_series_names_the_card(tmp_path: Path) -> None:
    path = FigureRecord("demo/one", "One", some_lines(), Provenance("m")).save(tmp_path)
    content = json.loads(path.read_text())
    content["series"]["lines"][0]["values"] = [1.0]
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"demo/one: .*1 values for 2 places"):
        FigureRecord.load(path)


# --- numbers that follow from a series -----------------------------------------------------------


def test_r_and_its_interval_are_those_of_other_software() -> None:
    """Anscombe's first set; the interval is that of ``cor.test`` in R."""
    x = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
    y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
    found = correlation(list(zip(x, y, strict=True)))
    assert (found.n, found.r) == (11, pytest.approx(0.8164205, abs=1e-7))
    assert (found.low, found.high) == pytest.approx((0.4243912, 0.9506933), abs=1e-6)
    assert (found.slope, found.intercept) == pytest.approx((0.5000909, 3.0000909), abs=1e-6)


def test_three_points_have_an_r_and_no_interval_and_a_line_has_r_one() -> None:
    assert correlation([(0, 0), (1, 1), (2, 1)]).low is None
    exact = correlation([(i, -2 * i + 1) for i in range(5)])
    assert (exact.r, exact.low, exact.high) == pytest.approx((-1.0, -1.0, -1.0))
    assert (exact.slope, exact.intercept) == (-2.0, 1.0)


def test_claims_about_correlations_are_computed_from_the_points_that_are_drawn() -> None:
    """Of all measured points, of one group, and of a plot among several; a paper's points are left out."""
    up = Group("up", [0, 1, 2, None], [0, 1, 2, 5])
    down = Group("down", [0, 1, 2], [2, 1, 0])
    theirs = Group("paper", [9], [9], theirs=True)
    plot = Scatter(X, Y, [up, down, theirs], fit="both")
    series = SmallMultiples([Panel("evil", plot)])
    places = {
        ("/panels/0/series", "r"): 0.0,
        ("/panels/0/series", "n"): 6,
        ("/panels/0/series", "least_group_r"): -1.0,
        ("/panels/0/series/groups/0", "r"): 1.0,
    }
    claims = [
        Claim(name, "equal", pointer, value, 1e-12, "table 1", f"correlation/{name}")
        for (pointer, name), value in places.items()
    ]
    record = FigureRecord("demo/r", "r", series, Provenance("m"), claims=claims)
    assert [o.ours for o in outcomes(record)] == pytest.approx(list(places.values()))
    assert record.verdict == "reproduced"


def test_bins_hold_every_value_once_and_edges_belong_to_the_bin_above() -> None:
    rng = np.random.default_rng(1)
    values = {"a": rng.normal(size=200).tolist(), "b": [0.0]}
    made = Histogram.of(X, values, bins=7)
    for group, found in zip(made.groups, values.values(), strict=True):
        assert list(group.counts) == np.histogram(found, made.edges)[0].tolist()
    assert Histogram.of(X, {"a": [0, 1, 2]}, bins=2).groups[0].counts == (1, 2)
    assert sum(Histogram.of(X, {"a": [3.0, 3.0]}, bins=4).groups[0].counts) == 2


def test_quartiles_are_those_of_numpy() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    wanted = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    assert Sample("a", values).quartiles == pytest.approx(tuple(wanted))
    assert Sample("a", [2]).quartiles == (2.0, 2.0, 2.0)
