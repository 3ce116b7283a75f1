"""Kept scores, and agreement with labels."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from interp.errors import JudgeError
from interp.judges import Judge, TraitJudge, agreement, cached


@dataclass
class Lengths:
    """The length of a response; None for "?", NaN for "nan". Counts what it was given."""

    name: str = "lengths"
    threshold: float = 4.0
    seen: list[str] = field(default_factory=list)
    fails_at: str = ""
    is_killed: bool = False

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        if self.fails_at in responses and self.is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails_at in responses:
            raise JudgeError("the server is gone")
        self.seen += responses
        odd = {"?": None, "nan": math.nan}
        return [odd.get(text, float(len(text))) for text in responses]

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name}


@dataclass
class DoubledLengths(Lengths):
    """Describes itself as its base does and scores otherwise, as a judge does whose code was changed."""

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        found = super().score(prompts, responses)
        return [None if score is None else 2 * score for score in found]


TEXTS = ["a", "bb", "?", "nan", "ccc", "dddd", "eeeee"]
SCORES = [1.0, 2.0, None, None, 3.0, 4.0, 5.0]


def test_what_was_scored_is_kept(tmp_path: Path) -> None:
    judge = Lengths()
    kept = cached(judge, tmp_path / "new" / "place", batch=2)
    assert isinstance(kept, Judge)
    assert (kept.name, kept.threshold, kept.as_json()) == ("lengths", 4.0, {"name": "lengths"})
    assert kept.score([], [*TEXTS, "a"]) == [*SCORES, 1.0]
    assert judge.seen == TEXTS, "each once, those without a score as well"
    assert cached(judge, tmp_path / "new" / "place").score([], TEXTS[::-1]) == SCORES[::-1]
    assert judge.seen == TEXTS
    assert kept.score([], []) == []


def test_another_prompt_response_or_judge_is_scored(tmp_path: Path) -> None:
    judge = Lengths()
    kept = cached(judge, tmp_path)
    kept.score(["p", "q"], ["a", "a"])
    kept.score(["p", "pa"], ["a", "a"])
    kept.score(["", "p"], ["pa", "a"])
    assert judge.seen == ["a", "a", "a", "pa"]
    other = Lengths(name="other")
    cached(other, tmp_path).score(["p"], ["a"])
    assert other.seen == ["a"]
    assert cached(DoubledLengths(), tmp_path).score(["p"], ["a"]) == [2.0], "of other code"


def test_a_failure_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="gone"):
        cached(Lengths(fails_at="ccc"), tmp_path, batch=2).score([], TEXTS)
    judge = Lengths()
    assert cached(judge, tmp_path).score([], TEXTS) == SCORES
    assert judge.seen == TEXTS[4:]


def test_a_kill_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    dying = cached(Lengths(fails_at="ccc", is_killed=True), tmp_path, batch=2)
    process = multiprocessing.get_context("fork").Process(target=dying.score, args=([], TEXTS))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    judge = Lengths()
    assert cached(judge, tmp_path).score([], TEXTS) == SCORES
    assert judge.seen == TEXTS[4:]


def test_what_is_no_file_of_scores_is_an_error(tmp_path: Path) -> None:
    cached(Lengths(), tmp_path).score([], TEXTS)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"no database, but long enough to be read as the head of one" * 99)
    with pytest.raises(JudgeError, match="remove the file if it is damaged"):
        cached(Lengths(), tmp_path).score([], TEXTS)
    with pytest.raises(JudgeError, match="name another directory"):
        cached(Lengths(), file / "below").score([], TEXTS)


def test_progress_counts_what_is_new(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    def watch(label: str, total: int) -> Any:
        told.append((label, total))
        return lambda done: told.append(("done", done))

    kept = cached(Lengths(), tmp_path, batch=4, watch=watch)
    kept.score([], TEXTS[:2])
    kept.score([], TEXTS)
    assert told == [("lengths", 2), ("done", 2), ("lengths", 5), ("done", 4), ("done", 1)]


# --- agreement -----------------------------------------------------------------------------------


def test_agreement_with_labels() -> None:
    labels = [False, True, True, False, False, True, True]
    found = agreement(Lengths(), [], TEXTS, labels)
    assert (found.n_positive, found.n_negative, found.n_unscorable) == (3, 2, 2)
    assert found.auc == pytest.approx(5 / 6)
    assert found.auc == roc_auc_score([0, 1, 0, 1, 1], [1, 2, 3, 4, 5])
    assert (found.threshold, found.accuracy) == (4.0, 4 / 5)
    low, high = found.accuracy_interval
    assert low < 4 / 5 < high
    assert agreement(Lengths(), [], TEXTS, labels, threshold=5.0).accuracy == 3 / 5
    assert "AUC 0.833" in str(found)
    assert "3 positive and 2 negative examples, 2 unscorable" in str(found)
    assert found.as_json()["auc"] == found.auc


def test_an_interval_of_an_auc() -> None:
    """Ties count half; wider for fewer examples; one point for a judge that is never wrong."""
    texts = ["a" * n for n in (1, 2, 2, 3, 4, 2, 3, 3, 5, 6)]
    labels = [False] * 5 + [True] * 5
    few = agreement(Lengths(), [], texts, labels)
    many = agreement(Lengths(), [], texts * 8, labels * 8)
    assert few.auc == many.auc == roc_auc_score(labels, [len(t) for t in texts])
    widths = []
    for each in (few, many):
        assert each.auc_interval is not None
        low, high = each.auc_interval
        assert low < each.auc < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    never = agreement(Lengths(), [], ["a", "aa", "aaaaa", "aaaaaa"], [False, False, True, True])
    assert (never.auc, never.auc_interval) == (1.0, (1.0, 1.0))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([True] * 7, "both classes, got 5 positive and 0 negative; 2 are"),
        ([False, True], "2 labels for 7 responses"),
    ],
)
def test_agreement_needs_both_classes(labels: list[bool], message: str) -> None:
    with pytest.raises(JudgeError, match=message):
        agreement(Lengths(), [], TEXTS, labels)


def test_agreement_of_one_example_each_has_no_interval() -> None:
    found = agreement(TraitJudge("exclamatory"), [], ["No.", "Yes!"], [False, True])
    assert (found.auc, found.auc_interval, found.accuracy) == (1.0, None, 1.0)
    assert "None" not in str(found)
