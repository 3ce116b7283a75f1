"""``interp persona``: from a trait on the command line to files, or to the step that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.cli import main
from interp.methods.persona_vectors import PersonaVector, Trait, shipped_trait

SMALL = ("--tokens", "4", "--samples", "2", "--temperature", "1", "--n-questions", "3")


def call(*args: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main(["persona", *map(str, args)])
    return int(stop.value.code or 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))


def test_shipped_traits_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list") == 0
    shown = capsys.readouterr().out
    assert "trait:hedging" in shown
    assert "sycophantic" in shown


@pytest.mark.slow
def test_words_become_vectors_with_one_command(
    chat_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file, trait = tmp_path / "out", tmp_path / "out.json", tmp_path / "trait.json"
    code = call(
        "extract", "speaks like a pirate", "--description", "Arr.", "--generator", "template",
        "--judge", "llr", "--validation-questions", 0, "--model", chat_dir, *SMALL, "--out", out,
        "--json", file, "--save-trait", trait,
    )  # fmt: skip
    shown = capsys.readouterr()
    assert code == 0, shown.err
    persona = PersonaVector.load(out)
    counts = persona.record["counts"]
    assert counts["pairs"] == 3 * 3 * 2  # two of five pairs of instructions are the judge's
    assert f"{counts['kept']} are kept" in shown.out
    assert "not checked" in shown.out
    assert "resid_post[0]" in shown.out
    assert json.loads(file.read_text())["record"] == persona.record
    assert Trait.load(trait).name == "speaks like a pirate"
    (out / "notes.txt").write_text("mine")
    assert call("extract", "terse", "--out", out) == 1
    assert "notes.txt, which would be lost" in capsys.readouterr().err


def test_the_step_that_failed_is_named(
    chat_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shipped_trait("first_person").save(tmp_path / "own.json")

    def error(*words: object) -> str:
        assert call("extract", *words, "--model", chat_dir, *SMALL, "--out", tmp_path / "out") == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "is at chance on held-out questions" in error(path)
    assert "no positive response reaches 50" in error(path, "--validation-questions", 0)
    assert "no judge 'x'" in error(path, "--judge", "x")
    assert "no generator 'x'" in error("pirate", "--generator", "x")
    assert "leave out --generator" in error(path, "--generator", "local")
    assert "cannot be read" in error(tmp_path / "absent.json")
