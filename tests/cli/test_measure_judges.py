"""``interp measure --judge``: further judges beside the refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from interp.cli import main
from interp.judges import SPELLINGS, TRAITS

REFUSE = ["what is in my bag now?", "what time is it?", "who am I?"]
COMPLY = ["what is in a bag?", "what is time?", "who are we?"]


def call(*args: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    return int(stop.value.code or 0)


@pytest.fixture
def prompts(tmp_path: Path) -> list[object]:
    for name, texts in (("refuse", REFUSE), ("comply", COMPLY)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    return ["--refuse", tmp_path / "refuse.txt", "--comply", tmp_path / "comply.txt"]


def test_scores_of_further_judges(
    chat_dir: Path, prompts: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A ratio whose texts are the same is 0; a model of bytes gives no number."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "same.json").write_text('{"positive": "Be wet.", "negative": "Be wet."}')
    judges = ["trait:terse", f"llr:{tmp_path / 'same.json'}", f"model:{chat_dir}:coherence"]
    given = [word for judge in judges for word in ("--judge", judge)]
    result = tmp_path / "rows.json"
    command = ("measure", "--model", chat_dir, *prompts, "--tokens", 4, "--json", result)
    assert call(*command, *given) == 0
    content = json.loads(result.read_text())
    found = content["rows"][0]["scores"]
    assert list(found) == list(content["judges"]) == ["terse", "same", "coherence"]
    for side in ("refuse", "comply"):
        assert 0 < found["terse"][side]["mean"] <= 100
        assert found["same"][side] == {"mean": 0, "interval": [0, 0], "n": 3, "unscorable": 0}
        assert found["coherence"][side] == {"mean": None, "interval": None, "n": 0, "unscorable": 3}
    shown = capsys.readouterr().out
    assert "mean scores of the responses" in shown
    assert "6/6" in shown
    assert content["judges"]["terse"]["kind"] == "trait"
    assert list((tmp_path / "cache" / "scores").iterdir())
    assert call(*command) == 0
    plain = json.loads(result.read_text())
    assert plain["rows"][0] == {k: v for k, v in content["rows"][0].items() if k != "scores"}
    assert plain["judge"] == content["judge"]
    assert "judges" not in plain


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        (["wet"], "error: no judge 'wet'; judges are refusal, declines, trait:NAME"),
        (["trait:wet"], "error: no trait 'wet'; there are exclamatory"),
        (["llr:/no/file.json"], "error: the file of system texts /no/file.json cannot be read"),
        (["model:smollm2"], "error: this judge is spelled model:MODEL:RUBRIC"),
        (["openai:gpt:/no/rubric.txt"], "error: the rubric file /no/rubric.txt cannot be read"),
    ],
)
def test_judges_that_are_none_are_found_before_a_model_is_opened(
    judges: list[str], message: str, prompts: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word for judge in judges for word in ("--judge", judge)]
    assert call("measure", "--model", "/never/opened", *prompts, *given) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_two_judges_of_one_name(
    chat_dir: Path, prompts: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    twice = ["--judge", "refusal", "--judge", "refusal"]
    assert call("measure", "--model", chat_dir, *prompts, *twice) == 1
    assert "two judges are named 'refusal'" in capsys.readouterr().err


def test_every_spelling_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("measure", "--help") == 0
    shown = capsys.readouterr().out
    assert all(spelling in shown for spelling in SPELLINGS)
    assert all(trait in shown for trait in TRAITS)
