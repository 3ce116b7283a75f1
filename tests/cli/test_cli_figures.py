"""The commands for figure cards: list, draw again, measure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toolbox import card

from interp.cli import main
from interp.records import FigureRecord, Provenance
from interp.source import code_hash

ROOT = Path(__file__).parent.parent.parent
SHIPPED = ROOT / "figures"


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(words))
    return int(done.value.code or 0)


@pytest.mark.slow
def test_every_card_is_listed_with_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("figures", "--folder", str(SHIPPED), "--json", str(tmp_path / "all.json")) == 0
    rows = {row["key"]: row for row in json.loads((tmp_path / "all.json").read_text())}
    for path in SHIPPED.glob("*/*.json"):
        found = FigureRecord.load(path)
        assert rows[found.key]["verdict"] == found.verdict
    assert "refusal/report" in capsys.readouterr().out


def test_a_figure_that_nobody_has_measured_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("figures", "--folder", str(tmp_path)) == 0
    assert "interp run representation_engineering --figure frontier" in capsys.readouterr().out
    assert run("figures", "--folder", str(tmp_path / "absent")) == 1
    assert "--folder" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_are_drawn_again_to_the_byte_without_torch(tmp_path: Path) -> None:
    for path in SHIPPED.glob("*/*.json"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name)
    code = (
        "import sys\nfrom interp.cli import main\n"
        "try:\n    main(['draw', '--folder', sys.argv[1]])\n"
        "except SystemExit as done:\n    assert not done.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    drawn = sorted(tmp_path.glob("*/*.svg"))
    assert drawn
    for picture in drawn:
        shipped = SHIPPED / picture.relative_to(tmp_path)
        assert picture.read_text() == shipped.read_text(), f"interp draw {picture.stem}"


def test_draw_one_and_draw_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("draw", "--folder", str(tmp_path)) == 1
    assert "no cards under" in capsys.readouterr().err
    assert run("draw", "refusal/none", "--folder", str(tmp_path)) == 1
    assert "no figure record" in capsys.readouterr().err
    (tmp_path / "refusal").mkdir()
    shutil.copy(SHIPPED / "refusal/report.json", tmp_path / "refusal")
    assert run("draw", "refusal/report", "--folder", str(tmp_path), "--png") == 0
    assert (tmp_path / "refusal/report.png").stat().st_size > 10_000


def test_run_names_what_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "nothing", "--folder", str(tmp_path)) == 1
    assert (
        "no paper 'nothing'; known: persona_vectors, representation_engineering"
        in capsys.readouterr().err
    )
    words = ("representation_engineering", "--figure", "nothing", "--folder", str(tmp_path))
    assert run("run", *words) == 1
    assert "has no figure 'nothing'" in capsys.readouterr().err


@pytest.mark.slow
def test_run_measures_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    words = ("representation_engineering", "--figure", "frontier", "--figure", "bar")
    where = ("--folder", str(tmp_path), "--model", "tiny:llama", "--limit", "6", "--seeds", "2")
    assert run("run", *words, *where) == 0
    card = FigureRecord.load(tmp_path / "representation_engineering/frontier.json")
    assert card.seeds == (0, 1)
    assert card.provenance.model == "tiny:llama"
    assert (tmp_path / "representation_engineering/bar.svg").is_file()
    kept = sorted((tmp_path / "cache/studies/representation_engineering").iterdir())
    assert len(kept) > 10
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert run("run", *words, *where) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("code", "resumed", "state"),
    [
        ("now", (), "same"),
        ("now", ({"step": "s", "commit": None, "stale": True},), "stale steps"),
        ("now", ({"step": "s", "commit": None, "stale": False},), "same"),
        ("another", (), "changed"),
        (None, (), "unknown"),
    ],
)
def test_cards_whose_code_has_changed_are_marked(
    code: str | None, resumed: tuple[dict[str, Any], ...], state: str, tmp_path: Path
) -> None:
    made_by = "interp.statistics.refusal:report"
    made = code_hash(made_by) if code == "now" else code
    provenance = Provenance("tiny", made_by=made_by, code=made, resumed=resumed)
    replace(card(), provenance=provenance).save(tmp_path / "cards")
    words = ("--folder", str(tmp_path / "cards"), "--json", str(tmp_path / "f.json"))
    assert run("figures", *words) == 0
    rows = {row["key"]: row for row in json.loads((tmp_path / "f.json").read_text())}
    assert rows["paper/figure"]["code"] == state
