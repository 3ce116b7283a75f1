"""Records survive a round trip, refuse what is not data, and compute their verdict."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from figure_examples import some_lines

import interp.records
from interp.claims import TESTS, Claim, claim_test
from interp.errors import RecordError
from interp.records import FigureRecord, Provenance, git_commit, judge, outcomes
from interp.series import Axis, Line, Lines, Places

PROVENANCE = Provenance("smollm2", fingerprint="ab12", prompts={"refuse": "cd34"}, seed=0)
SERIES = some_lines(kl=[0.005, 0.02, 0.06], best=0.0053, name="least disturbance")


def record(**changes: Any) -> FigureRecord:
    given = {"key": "refusal/kl", "title": "KL", "series": SERIES}
    return FigureRecord(**{**given, "provenance": PROVENANCE, **changes})


def value(theirs: Any = 0.005, tolerance: float = 1e-3, ours: str = "/best") -> Claim:
    return Claim("KL of the best edit", "equal", ours, theirs, tolerance, "table 2")


def shape(test: str, theirs: Any = None, ours: str = "/kl") -> Claim:
    return Claim("shape of the curve", test, ours, theirs)


def test_a_record_survives_a_round_trip(tmp_path: Path) -> None:
    before = record(
        n={"refuse": 64}, intervals="95 % Wilson", seeds=(0, 1), paper_figure="figure 3",
        claims=(value(), shape("rises"), shape("peak within", (1, 2))), caption="c",
    )  # fmt: skip
    path = before.save(tmp_path)
    assert path == tmp_path / "refusal/kl.json"
    assert FigureRecord.load(path) == before
    assert [p.name for p in path.parent.iterdir()] == ["kl.json"], "no temporary file is left"


def test_the_file_shows_our_value_beside_theirs(tmp_path: Path) -> None:
    content = json.loads(record(claims=(value(),)).save(tmp_path).read_text())
    assert content["verdict"] == "reproduced"
    assert content["claims"][0]["measured"] == 0.0053
    assert content["claims"][0]["theirs"] == 0.005
    assert content["claims"][0]["holds"] is True


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        ((), "measured"),
        ((value(),), "reproduced"),
        ((value(tolerance=1e-6),), "not reproduced"),
        ((value(), shape("rises")), "reproduced"),
        ((value(), shape("falls")), "not reproduced"),
        ((shape("rises"),), "shape reproduced"),
        ((value(tolerance=1e-6), shape("rises")), "shape reproduced"),
        ((shape("rises"), shape("falls")), "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_data(claims: tuple[Claim, ...], verdict: str) -> None:
    assert record(claims=claims).verdict == verdict


def test_what_was_not_run_says_what_it_needs(tmp_path: Path) -> None:
    missing = record(series=None, needs="Llama-2-7B and a GPU", claims=(value(),))
    assert missing.verdict == "not run here: needs Llama-2-7B and a GPU"
    assert outcomes(missing) == []
    assert FigureRecord.load(missing.save(tmp_path)) == missing


def test_a_record_has_data_or_says_what_it_needs() -> None:
    for changes in ({"series": None}, {"needs": "a GPU"}):
        with pytest.raises(RecordError, match="either a series or `needs`"):
            record(**changes)


def test_an_edited_verdict_is_found(tmp_path: Path) -> None:
    path = record(claims=(value(tolerance=1e-6),)).save(tmp_path)
    path.write_text(path.read_text().replace('"not reproduced"', '"reproduced"'))
    with pytest.raises(RecordError, match="its data give 'not reproduced'"):
        FigureRecord.load(path)
    content = json.loads(path.read_text())
    del content["verdict"]
    path.write_text(json.dumps(content))
    assert FigureRecord.load(path).verdict == "not reproduced", "the advice in the message works"


@pytest.mark.parametrize(
    ("test", "theirs", "ours", "holds"),
    [
        ("equal", [0.005, 0.02, 0.06], "/kl", True),
        ("equal", [0.005, 0.02, 0.07], "/kl", False),
        ("equal relative", 0.0053, "/best", True),
        ("at most", 0.06, "/kl", True),
        ("at most", 0.05, "/kl", False),
        ("at least", 0.005, "/kl", True),
        ("at least", 0.01, "/kl", False),
        ("peak within", [2, 2], "/kl", True),
        ("peak within", [0, 1], "/kl", False),
        ("same order", [1, 2, 3], "/kl", True),
        ("same order", [1, 3, 2], "/kl", False),
        ("falls", None, "/kl", False),
    ],
)
def test_each_claim_test_can_hold_and_fail(test: str, theirs: Any, ours: str, holds: bool) -> None:
    (outcome,) = outcomes(record(claims=(Claim("c", test, ours, theirs, 1e-4, "table 1"),)))
    assert outcome.holds is holds


def test_relative_tolerance_scales_with_the_paper() -> None:
    claim = Claim("c", "equal relative", "/big", 100.0, 0.1, "table 1")
    assert record(series=some_lines(big=109.0), claims=(claim,)).verdict == "reproduced"
    assert record(series=some_lines(big=111.0), claims=(claim,)).verdict == "not reproduced"


def test_every_registered_test_is_tried_above() -> None:
    tried = {"equal", "equal relative", "at most", "at least", "peak within", "same order"}
    assert set(TESTS) == tried | {"rises", "falls"}


def test_a_new_test_registers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.claims.TESTS", dict(TESTS))

    def always(ours: Any, theirs: Any, tolerance: float) -> bool:
        return True

    with pytest.raises(RuntimeError, match="twice"):
        claim_test("equal", shape=True)(always)
    assert claim_test("always", shape=True)(always) is always


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (lambda: shape("rises", ours="/kl/9"), "leads nowhere at '9'"),
        (
            lambda: shape("rises", ours="/nothing"),
            "there is the names x, y, lines, marks, kl, best, name",
        ),
        (lambda: shape("rises", ours="kl"), "starts with '/'"),
        (lambda: shape("rises", ours="/name"), "compares numbers"),
        (lambda: value([1.0, 2.0], ours="/kl"), "cannot be tested"),
        (lambda: shape("wiggles"), "no claim test 'wiggles'; known: at least"),
        (lambda: Claim("digits", "equal", "/best", 1.0), "its source"),
        (lambda: Claim("digits", "equal", "/best", source="table 1"), "paper's value"),
    ],
)
def test_a_claim_that_cannot_be_tested_is_refused(claim: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        record(claims=(claim(),))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "kl"}, "folder/name"),
        ({"key": "../kl"}, "folder/name"),
        ({"key": "refusal/a/b"}, "folder/name"),
        ({"n": {"refuse": math.nan}}, "n/refuse is nan"),
        ({"n": {"refuse": np.int64(1)}}, "numpy.int64; turn it"),
    ],
)
def test_what_is_not_a_figure_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        record(**changes)


def test_a_record_does_not_follow_later_changes_of_its_data() -> None:
    values = [1.0, 2.0]
    made = record(series=some_lines(kl=values))
    values.append(3.0)
    assert made.series.beside == {"kl": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "run the notebook that makes it"),
        ("{", "is not JSON"),
        ("[]", "is not a figure record"),
        ('{"format": "other"}', "is not a figure record"),
        ('{"format": "interp figure 1"}', "not a whole figure record: 'provenance'"),
    ],
)
def test_a_damaged_file_is_explained(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecordError, match=message):
        FigureRecord.load(path)


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    path = record().save(tmp_path)
    path.write_text(path.read_text().replace('"caption"', '"captoin"'))
    with pytest.raises(RecordError, match="no field 'captoin'"):
        FigureRecord.load(path)


# --- provenance --------------------------------------------------------------------------------


def test_provenance_names_versions_and_hardware_but_no_folders(tmp_path: Path) -> None:
    model, prompts = str(tmp_path / "my-model"), {"refuse": ["a", "b"]}
    found = Provenance.collect(model, prompts=prompts, seconds=1)
    assert found.model == "my-model"
    assert {"python", "torch", "transformers"} <= found.versions.keys()
    assert found.hardware is not None
    assert "core" in found.hardware
    assert len(found.prompts["refuse"]) == 64
    assert str(tmp_path) not in json.dumps(record(provenance=found).as_json())


def test_provenance_keeps_hub_ids_given_hashes_and_the_accelerator() -> None:
    found = Provenance.collect("org/name", prompts={"refuse": "ab"}, device="H200")
    assert (found.model, dict(found.prompts), found.hardware) == (
        "org/name",
        {"refuse": "ab"},
        "H200",
    )


def test_moving_a_prompt_boundary_changes_the_hash() -> None:
    one = Provenance.collect("m", prompts={"p": ["ab", "c"]})
    other = Provenance.collect("m", prompts={"p": ["a", "bc"]})
    assert one.prompts != other.prompts


def _checkout(folder: Path, package: Path) -> str:
    """A git checkout of ``folder`` with an empty package in it; its commit."""
    package.mkdir(parents=True)
    (package / "records.py").write_text("")

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "--force", ".")
    git("commit", "-qm", "first")
    return git("rev-parse", "HEAD")


def test_the_commit_is_that_of_the_package_and_says_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = _checkout(tmp_path, tmp_path / "interp")
    module = tmp_path / "interp/records.py"
    monkeypatch.setattr(interp.records, "__file__", str(module))
    assert git_commit() == commit
    module.write_text("changed = True")
    assert git_commit() == f"{commit}-dirty"


def test_the_commit_of_somebody_elses_checkout_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / ".venv/site-packages/interp"
    _checkout(tmp_path, package)
    monkeypatch.setattr(interp.records, "__file__", str(package / "records.py"))
    assert git_commit() is None


def test_no_git_means_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_records_need_no_torch() -> None:
    code = "import sys, interp.records; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_judge_is_the_verdict() -> None:
    made = record(claims=(value(),))
    assert judge(made) == made.verdict


# --- statistics ----------------------------------------------------------------------------------


def test_a_claim_may_be_about_a_statistic_of_the_series() -> None:
    rows = [
        Line("difference of means", [0.5, 0.5, 0.5, 0.95, 0.97]),
        Line("LDA", [0.9, 0.9, 0.9, 0.9, 0.98]),
        Line("centred PCA (known to fail)", [0.5] * 5),
        Line("random direction", [0.5] * 5),
    ]
    drawn = Lines(Places("block", values=range(5)), Axis("AUROC"), rows)
    names = {"difference_of_means_least": 0.95, "lda_best_beyond_difference_of_means": 0.01}
    claims = tuple(
        Claim(name, "at least", "/lines", value - 1e-9, statistic=f"reading/{name}")
        for name, value in names.items()
    )
    found = outcomes(record(series=drawn, claims=claims))
    assert [o.ours for o in found] == pytest.approx(list(names.values()))
    assert all(o.holds for o in found)
    for statistic, series, why in (
        ("reading/nothing", rows, "'reading' has difference_of_means_least"),
        ("nothing/at_all", rows, "no statistics 'nothing'; known: .*bar, "),
        ("reading/difference_of_means_least", rows[1:], "cannot be computed"),
    ):
        claim = Claim("s", "at least", "/lines", 0.0, statistic=statistic)
        with pytest.raises(RecordError, match=why):
            record(series=replace(drawn, lines=series), claims=(claim,))


def test_claims_of_shipped_cards_follow_from_what_is_drawn() -> None:
    """But for the frontier's, whose deals were not kept apart when it was measured, and for the choice of
    a direction, whose controls are not drawn."""
    root = Path(__file__).parent.parent / "figures"
    beside = {
        path.stem
        for path in root.rglob("*.json")
        if "comparisons" in getattr(FigureRecord.load(path).series, "beside", ())
    }
    assert beside <= {"frontier", "bypass_induce_kl"}
