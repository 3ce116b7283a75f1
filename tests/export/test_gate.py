"""No edit is proven without a figure card of its kind and a measurement of itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from toolbox import card, measured

from interp.data import PromptSet
from interp.errors import ExportError
from interp.export import export, gate, load_delta, save_delta
from interp.export.gate import check, kinds, shipped_cards
from interp.export.measurement import Measurement, content_hash
from interp.export.merged import merge
from interp.records import Provenance

pytestmark = pytest.mark.usefixtures("in_process")

FITTED = PromptSet(("fitted on",), "fit")


def known(delta):
    """The delta, which says what it was fitted on."""
    return replace(delta, provenance={"seen_prompts": sorted(FITTED.fingerprints)})


@pytest.fixture
def edit(saved):
    return known(saved("llama").ablated())


@pytest.fixture
def base(saved):
    """Arguments of ``export`` without the leave to be unproven."""
    return {k: v for k, v in saved("llama").base.items() if k != "unproven"}


def test_a_card_and_a_measurement_prove_an_edit(edit, base, tmp_path) -> None:
    proof = {"cards": [card()], "measured": measured(edit)}
    receipt = export(edit, to="delta", **base, out=tmp_path / "out", **proof)
    assert (receipt.unproven, receipt.missing) == (False, ())
    assert receipt.cards[0]["verdict"] == "shape reproduced"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["cards"] == [dict(receipt.cards[0])]
    assert (manifest["unproven"], manifest["missing"]) == (False, [])
    assert manifest["measured"]["edited"]["refusals"] == 1
    assert manifest["measured"]["prompts"]["refuse"]["n"] == 8
    beside = Measurement.load(tmp_path / "out")
    assert beside is not None
    again = load_delta(tmp_path / "out")
    assert not check(again, [card()], beside).unproven, "the measurement is of what was written"


CARDS = {
    "none": ([], "no figure card stands behind edits by ablation: name one with --card"),
    "another method": ([card(proves=("steering",))], "no figure card stands behind edits by abl"),
    "one that fails": ([card(2.0)], "the figure card paper/figure says 'not reproduced'"),
    "one of two fails": ([card(), card(2.0)], "the figure card paper/figure says 'not reprod"),
    "uncommitted": ([card(commit="c0ffee-dirty")], "was measured with uncommitted changes"),
    "resumed uncommitted": (
        [card(resumed=({"step": "s", "commit": "c0ffee-dirty", "stale": False},))],
        "was measured with uncommitted changes",
    ),
    "stale": (
        [card(resumed=({"step": "s", "commit": None, "stale": True},))],
        r"rests on steps that other code measured \(s\)",
    ),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_is_missing_is_named(name, edit) -> None:
    cards, why = CARDS[name]
    with pytest.raises(ExportError, match=why) as error:
        check(edit, cards, measured(edit))
    assert "measure" not in str(error.value).replace("measured", "").replace("measure it", "")
    passed = check(edit, cards, measured(edit), unproven=True)
    assert passed.unproven
    assert len(passed.missing) == 1
    assert passed.measured is not None


def test_a_doubtful_card_does_no_harm_beside_a_good_one(edit) -> None:
    assert not check(edit, [card(commit="c0ffee-dirty"), card()], measured(edit)).unproven


def test_a_measurement_that_is_missing_is_named(edit, saved) -> None:
    other = known(saved("llama").ablated(seed=5))
    silent = replace(edit, provenance={})
    on_fit = Measurement.of(edit, (_ROW, _ROW), FITTED, FITTED, Provenance("t", edit.base))
    unreadable = replace(edit, base="unverified")
    for delta, found, why in (
        (edit, None, "was not measured on held-out prompts: run `interp measure --delta DIR`"),
        (edit, measured(other), "the measurement is of another delta"),
        (edit.scale(0.5), measured(edit), "the measurement is of another delta"),
        (edit, measured(edit, model="other"), "was made on another model"),
        (edit, measured(edit, n=7), "is on 7 prompts of a class: measure it on at least 8"),
        (silent, measured(silent), "the delta does not say which were"),
        (edit, on_fit, "is on 1 prompts that the edit was fitted or chosen on"),
        (unreadable, measured(unreadable), "whose weights cannot be read"),
    ):
        with pytest.raises(ExportError, match=why):
            check(delta, [card()], found)
        passed = check(delta, [card()], found, unproven=True)
        assert (passed.unproven, passed.measured) == (True, None)
        assert [entry["key"] for entry in passed.cards] == ["paper/figure"]


_ROW = dict.fromkeys(
    ("refusals", "n_refuse", "over_refusals", "n_comply", "kl_first", "kl_continuation", "nll"), 1
)


@pytest.mark.parametrize("to", ["delta", "merged"])
def test_an_unproven_edit_stays_or_says_what_is_missing(to, edit, base, tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=r"no figure card .*; and the edit was not measured"):
        export(edit, to=to, **base, out=out)
    assert list(tmp_path.iterdir()) == []
    receipt = export(edit, to=to, **base, out=out, unproven=True)
    written = json.loads((out / "receipt.json").read_text())
    assert written["unproven"] is receipt.unproven is True
    assert len(written["missing"]) == 2
    assert written["measured"] is None
    assert not (out / "measurement.json").exists()


def test_a_merge_of_files_has_the_same_gate(saved, edit, tmp_path) -> None:
    path = str(saved("llama").path)
    with pytest.raises(ExportError, match="was not measured"):
        merge(edit, path, tmp_path / "out", cards=[card()])
    report = merge(edit, path, tmp_path / "out", cards=[card()], measured=measured(edit))
    assert (report["unproven"], report["missing"]) == (False, ())


def test_a_measurement_beside_a_delta_does_not_stop_it_from_being_replaced(edit, tmp_path) -> None:
    out = save_delta(edit, tmp_path / "delta", cards=[card()], measured=measured(edit))
    assert (out / "measurement.json").is_file()
    save_delta(edit, out)
    assert not (out / "measurement.json").exists(), "it was of what lay there before"


def test_a_damaged_measurement_is_an_error(edit, tmp_path) -> None:
    measured(edit).save(tmp_path)
    path = tmp_path / "measurement.json"
    path.write_text(path.read_text().replace('"seen": 0', '"seen": null'))
    with pytest.raises(ExportError, match="was changed after it was written"):
        Measurement.load(tmp_path)
    path.write_text("[]")
    with pytest.raises(ExportError, match="holds no JSON object"):
        Measurement.load(tmp_path)
    assert Measurement.load(tmp_path / "nowhere") is None


def test_every_method_of_a_sum_needs_its_card(saved) -> None:
    base = saved("llama")
    other = replace(base.disturbed(), recipe={"method": "least-disturbance"})
    both = known(base.ablated().compose(other).scale(0.5))
    assert kinds(both.recipe) == {"ablation", "least-disturbance"}
    with pytest.raises(ExportError, match="edits by least-disturbance"):
        check(both, [card()], measured(both))
    cards = [card(proves=("ablation", "least-disturbance"))]
    assert not check(both, cards, measured(both)).unproven


def test_kinds_of_recipe_need_cards_of_their_own(edit) -> None:
    closed = {"method": "least-disturbance", "strength": 1.0}
    opened = closed | {"after_opener": "I"}
    learned = {"learn": 0.06, "learning": {"steps": 32}, "of": {"sum": [opened, opened]}}
    names = {
        "least-disturbance": closed,
        "least-disturbance, with opener": opened,
        "least-disturbance, learned": {"learn": 0.06, "of": closed},
        "least-disturbance, learned, with opener": learned,
    }
    for name, recipe in names.items():
        assert kinds(recipe) == {name}
        made = replace(edit, recipe=recipe)
        for other in names:
            passed = check(made, [card(proves=(other,))], measured(made), unproven=True)
            assert passed.unproven is (other != name)


def test_an_edit_of_no_known_method_is_unproven(saved) -> None:
    foreign = known(replace(saved("llama").ablated(), recipe={"adapter": "somebody's"}))
    with pytest.raises(ExportError, match="names no method"):
        check(foreign, [card()], measured(foreign))


def test_a_hash_of_a_delta_is_of_what_it_does(edit, saved, tmp_path) -> None:
    assert content_hash(edit) == content_hash(replace(edit, recipe={}, provenance={}))
    assert content_hash(edit) == content_hash(load_delta(save_delta(edit, tmp_path / "delta")))
    name = next(iter(edit.updates))
    fewer = {k: u for k, u in edit if k != name}
    changed = {content_hash(d) for d in (
        edit, edit.scale(2.0), replace(edit, updates=fewer), replace(edit, base="b"),
        replace(edit, untied=True), saved("llama").ablated(seed=7),
    )}  # fmt: skip
    assert len(changed) == 6


def test_a_delta_that_is_only_saved_says_what_stands_behind_it(saved, tmp_path) -> None:
    save_delta(saved("llama").ablated(), tmp_path / "delta")
    manifest = json.loads((tmp_path / "delta" / "manifest.json").read_text())
    assert manifest["unproven"] is True
    assert len(manifest["missing"]) == 2
    assert load_delta(tmp_path / "delta").recipe["method"] == "ablation"
    assert gate.Passed().unproven
    assert shipped_cards()


def test_what_the_shipped_cards_prove(edit) -> None:
    closed = {"method": "least-disturbance"}
    opened = closed | {"after_opener": "I"}
    learned = {"learn": 0.06, "of": opened}
    paper = "representation_engineering"
    for recipe, keys, missing in (
        (edit.recipe, ["refusal/report"], 0),
        (closed, ["refusal/report"], 0),
        # The bar misses one of its claims.
        (learned, [f"{paper}/bar", f"{paper}/frontier"], 1),
        (opened, [], 1),
        ({"learn": 0.06, "of": closed}, [], 1),
    ):
        made = replace(edit, recipe=recipe)
        passed = check(made, shipped_cards(), measured(made), unproven=True)
        assert [entry["key"] for entry in passed.cards] == keys
        assert len(passed.missing) == missing
