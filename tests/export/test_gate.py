"""No edit leaves without figure cards that pass, unless its files say that it is unproven."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from toolbox import card

from interp.errors import ExportError
from interp.export import export, gate, load_delta
from interp.export.gate import check, methods, shipped_cards
from interp.export.merged import merge

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def proven(saved):
    """Arguments of ``export`` without the leave to be unproven."""
    base = saved("llama")
    return base.ablated(), {k: v for k, v in base.base.items() if k != "unproven"}


def test_a_card_that_passes_lets_an_edit_out(proven, tmp_path) -> None:
    edit, base = proven
    receipt = export(edit, to="delta", **base, out=tmp_path / "out", cards=[card()])
    assert not receipt.unproven
    assert receipt.cards[0]["verdict"] == "shape reproduced"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["cards"] == [dict(receipt.cards[0])]
    assert manifest["unproven"] is False


@pytest.mark.parametrize(
    ("cards", "why"),
    [
        ([], "no figure card stands behind edits by ablation; name one with --card"),
        ([card(proves=("steering",))], "no figure card stands behind edits by ablation"),
        ([card(2.0)], "the figure card paper/figure says 'not reproduced'"),
        ([card(), card(2.0)], "the figure card paper/figure says 'not reproduced'"),
    ],
)
@pytest.mark.parametrize("to", ["delta", "merged"])
def test_without_one_it_stays_or_says_so(cards, why, to, proven, tmp_path) -> None:
    edit, base = proven
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=why):
        export(edit, to=to, **base, out=out, cards=cards)
    assert list(tmp_path.iterdir()) == []
    receipt = export(edit, to=to, **base, out=out, cards=cards, unproven=True)
    assert receipt.unproven
    assert json.loads((out / "receipt.json").read_text())["unproven"] is True


def test_a_merge_of_files_has_the_same_gate(saved, tmp_path) -> None:
    base = saved("llama")
    with pytest.raises(ExportError, match="no figure card"):
        merge(base.ablated(), str(base.path), tmp_path / "out")
    report = merge(base.ablated(), str(base.path), tmp_path / "out", cards=[card()])
    assert report["unproven"] is False


def test_every_method_of_a_sum_needs_its_card(saved) -> None:
    base = saved("llama")
    other = replace(base.disturbed(), recipe={"method": "least-disturbance"})
    both = base.ablated().compose(other).scale(0.5)
    assert methods(both.recipe) == {"ablation", "least-disturbance"}
    with pytest.raises(ExportError, match="edits by least-disturbance"):
        check(both.recipe, [card()])
    assert not check(both.recipe, [card(proves=("ablation", "least-disturbance"))]).unproven


def test_an_edit_of_no_known_method_is_unproven(saved, tmp_path) -> None:
    foreign = replace(saved("llama").ablated(), recipe={"adapter": "somebody's"})
    with pytest.raises(ExportError, match="names no method"):
        check(foreign.recipe, [card()])


def test_the_shipped_cards_stand_behind_the_refusal_edits() -> None:
    for method in ("ablation", "least-disturbance"):
        passed = check({"method": method}, shipped_cards())
        assert not passed.unproven
        assert [c["key"] for c in passed.cards] == ["refusal/report"]


def test_a_delta_that_is_only_saved_says_what_stands_behind_it(saved, tmp_path) -> None:
    from interp.export import save_delta

    save_delta(saved("llama").ablated(), tmp_path / "delta")
    assert json.loads((tmp_path / "delta" / "manifest.json").read_text())["unproven"] is True
    assert load_delta(tmp_path / "delta").recipe["method"] == "ablation"
    assert gate.Passed().unproven
