"""The selection figure on a tiny model: it draws, says what it kept, and goes on after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.evaluate.causal import Trial
from interp.figures import render
from interp.methods.representation_engineering import causal as module
from interp.methods.representation_engineering.causal import DENSE, PROMPTS, RANDOM, causal
from interp.records import FigureRecord, outcomes
from interp.study import Study

KEY = "representation_engineering/bypass_induce_kl"
MODEL = "tiny:llama"


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def record(kept: Path) -> FigureRecord:
    return causal(Study(model=MODEL, limit=6, kept=kept))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Places of the directions that are really tried."""
    made: list[tuple[int, int]] = []
    honest = Trial.score

    def counted(self: Trial, candidate):
        made.append((candidate.block, candidate.position))
        return honest(self, candidate)

    monkeypatch.setattr(Trial, "score", counted)
    return made


@pytest.mark.slow
def test_the_figure_draws_and_judges_itself(record: FigureRecord, tmp_path: Path) -> None:
    assert record.key == KEY
    assert render(record.save(tmp_path)).stat().st_size > 10_000
    panels = record.series.panels
    assert [p.label for p in panels] == ["bypass", "induce", "KL"]
    assert len(outcomes(record)) == len(record.claims) == 6
    assert FigureRecord.load(tmp_path / f"{KEY}.json").verdict == record.verdict
    assert record.seeds == ()
    assert record.n == {"refuse": 6, "comply": 6}


def test_comparisons_follow_from_the_panels(record: FigureRecord) -> None:
    found, series = record.series.beside["comparisons"], record.series
    column = series.columns.names.index(str(found["chosen"]["block"]))
    (row,) = (
        i for i, name in enumerate(series.rows.names)
        if name.startswith(f"{found['chosen']['position']} ")
    )  # fmt: skip
    values = [panel.values[row][column] for panel in series.panels]
    assert values == [found["chosen"][name] for name in ("bypass", "induce", "kl")]
    before, after = found["metric_unedited_and_ablated"]
    assert after == values[0]
    assert before == series.panels[0].reference.at
    moved = max(abs(before - control["bypass"]) for control in found["random"])
    share = moved / (before - after) if after < before else 1.0
    assert found["random_share"] == pytest.approx(share)
    assert found["tried"] == sum(v is not None for row in series.beside["auroc"] for v in row)


def test_what_the_model_does_is_recorded(record: FigureRecord) -> None:
    for split in ("fit", "select"):
        counts = record.series.beside["filter"][split]
        assert counts["refuse asked"] == counts["comply asked"] == 6
        # A random model refuses nothing; nothing left to fit on is worse than no filter.
        assert counts["refused"] < 4
        assert counts["kept"] == 6
    assert "benign" in record.caption


def test_a_second_run_tries_nothing_again(record, kept: Path, calls) -> None:
    again = causal(Study(model=MODEL, limit=6, kept=kept))
    assert calls == []
    assert again.series == record.series


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(
    record, tmp_path: Path, calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Trial.score

    def dying(self: Trial, candidate):
        if len(calls) == 4:
            raise Killed
        return counted(self, candidate)

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "score", dying)
        with pytest.raises(Killed):
            causal(Study(model=MODEL, limit=6, kept=tmp_path))
    done = list(calls)
    again = causal(Study(model=MODEL, limit=6, kept=tmp_path))
    assert (
        len(calls)
        == len(set(calls)) + RANDOM
        == record.series.beside["comparisons"]["tried"] + RANDOM
    )
    assert calls[: len(done)] == done
    assert again.series == record.series
    # Other prompts, other files.
    before = len(calls)
    causal(Study(model=MODEL, limit=5, kept=tmp_path))
    assert len(calls) > before


def test_enough_prompts_are_tried() -> None:
    assert PROMPTS > 8
    assert DENSE < 30


def test_the_filter_keeps_what_the_model_refuses() -> None:
    from interp.data.prompts import PromptSet

    prompts = PromptSet(tuple("abcdef"), "six")
    keep = [True, True, False, True, True, False]
    assert module.behaving(prompts, keep).prompts == ("a", "b", "d", "e")
    assert module.behaving(prompts, [False] * 6) is prompts
