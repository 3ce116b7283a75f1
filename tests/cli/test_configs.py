"""The shipped configs run from their first figure to their last on a tiny model of the same class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from interp.cli import main
from interp.records import FigureRecord
from interp.series import SmallMultiples

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))
CLASSES = {"qwen2.5-7b": "qwen2", "llama-3.1-8b": "llama"}
SMALL = (
    "traits=[optimistic]", "layers=[1, 2]", "strengths=[1.0, 2.0]", "controls=2", "shuffles=2",
    "judge=llr", "samples_monitored=1", "extraction.samples=1", "extraction.tokens=4",
    "extraction.n_questions=6", "extraction.validation_questions=0", "evaluation.n_questions=8",
    "evaluation.samples=1", "evaluation.tokens=4",
)  # fmt: skip


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as done:
        main(["run", *map(str, words)])
    return int(done.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_config_runs_on_a_tiny_model_of_its_class(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.models import family_of
    from interp.models.tiny import save_tiny

    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    family = CLASSES[config.stem.removeprefix("persona_vectors_")]
    save_tiny(family, family_of(family), tmp_path / "model")
    small = [word for setting in SMALL for word in ("--set", setting)]
    about = ("--model", tmp_path / "model", "--dtype", "float32", "--folder", tmp_path / "figures")
    file = tmp_path / "verdicts.json"
    assert run("persona_vectors", "--config", config, *about, *small, "--json", file) == 0
    named = [
        name for part in yaml.safe_load(config.read_text())["parts"] for name in part["figures"]
    ]
    assert list(json.loads(file.read_text())) == [f"persona_vectors/{name}" for name in named]
    card = FigureRecord.load(tmp_path / "figures" / "persona_vectors" / "layer_sweep.json")
    assert isinstance(card.series, SmallMultiples)
    (panel,) = card.series.panels
    assert panel.series.x.values == (0, 1)  # type: ignore[attr-defined]


def test_a_config_that_is_none_says_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "own.yaml"
    for text in ("parts: 3", "a: [", "modle: x\nparts: []", "[]"):
        file.write_text(text)
        assert run("persona_vectors", "--config", file) == 1
        assert "it needs parts" in capsys.readouterr().err
    file.write_text("parts:\n  - figures: [layer_sweep]\n    recipe: {extraction: {sampels: 1}}\n")
    assert run("persona_vectors", "--config", file) == 1
    assert "no setting 'sampels'" in capsys.readouterr().err
