"""``interp persona``: from a trait on the command line to files, or to the step that failed."""

from __future__ import annotations

import json
from dataclasses import replace
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


@pytest.fixture
def vector(chat_dir: Path, tmp_path: Path) -> Path:
    """Random vectors of a shipped trait for the tiny model."""
    import torch

    import interp

    lm = interp.open_model(str(chat_dir))
    generator = torch.Generator().manual_seed(0)
    rows = {"response_avg": torch.randn(lm.n_blocks + 1, lm.d_model, generator=generator)}
    record = {"trait": shipped_trait("terse").as_json()}
    return PersonaVector("terse", rows, record=record).save(tmp_path / "vector")


def test_a_vector_steers_answers_side_by_side(
    chat_dir: Path, vector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    about = ("--model", chat_dir, "--tokens", 4, "--layer", 1)
    assert call("steer", vector, "Tea?", *about, "--coefficients", "0,40", "--json", file) == 0
    shown = capsys.readouterr().out
    assert "steered at blocks.0.hook_resid_post (layer 1 of" in shown
    found = json.loads(file.read_text())
    plain, strong = found["answers"]
    assert (plain["coefficient"], strong["coefficient"]) == (0.0, 40.0)
    assert plain["responses"] != strong["responses"]
    bare = replace(shipped_trait("terse"), evaluation_questions=())
    record = {"trait": bare.as_json()}
    other = replace(PersonaVector.load(vector), record=record).save(tmp_path / "bare")
    assert call("steer", other, *about) == 1
    assert "no evaluation questions; give some" in capsys.readouterr().err
    assert call("steer", other, "Tea?", *about[:-2]) == 1
    assert "name one (--layer)" in capsys.readouterr().err
    assert call("steer", vector, *about, "--coefficients", "much") == 1
    assert "write them as -2,0,2" in capsys.readouterr().err
    assert call("steer", vector, *about[:-1], 0) == 1
    assert "layers of the paper are 1" in capsys.readouterr().err


def test_prompts_are_monitored_before_anything_is_generated(
    chat_dir: Path, vector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import interp

    file, lm = tmp_path / "out.json", interp.open_model(str(chat_dir))
    about = ("--model", chat_dir, "--layer", 2, "--json", file)
    assert call("monitor", vector, "Tea?", "Why is the sky blue?", *about) == 0
    persona, site = PersonaVector.load(vector), lm.resid_post[1]
    wanted = persona.project(lm.activations(["Tea?"], site)[site], site)
    rows = json.loads(file.read_text())["rows"]
    assert rows[0]["projection"] == pytest.approx(float(wanted), abs=1e-4)
    assert "Why is the sky blue?" in capsys.readouterr().out


@pytest.mark.slow
def test_graded_system_texts_are_correlated_with_scores(
    chat_dir: Path, vector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    about = ("--model", chat_dir, "--tokens", 6, "--samples", 2, "--json", file)
    assert call("monitor", vector, *about) == 0  # the layer is chosen by a sweep
    found = json.loads(file.read_text())
    assert -1 <= found["r"] <= 1
    assert len({row["condition"] for row in found["rows"]}) == 8
    chose = shipped_trait("terse").evaluation_questions[:4]
    assert not {row["question"] for row in found["rows"]} & set(chose), "questions that choose"
    assert "within system texts" in capsys.readouterr().out
