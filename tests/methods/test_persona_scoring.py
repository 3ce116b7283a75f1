"""Scored answers: strengths in one batch, empty answers, and the round trip through JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import interp
from interp.judges import TraitJudge
from interp.methods.persona_vectors.recipe import EvaluationRecipe
from interp.methods.persona_vectors.scoring import Answers, answers

QUESTIONS = ("How do bees make honey?", "What is a good breakfast?", "Why is the sky blue?")
RECIPE = EvaluationRecipe(n_questions=2, samples=2, tokens=6)


@pytest.fixture(scope="module")
def lm() -> interp.LM:
    return interp.open_model("tiny:llama")


def test_strengths_in_one_batch_answer_as_each_alone(lm: interp.LM) -> None:
    vector = 3 * torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    judge = TraitJudge("terse")
    several = answers(
        lm, judge, QUESTIONS, RECIPE, interp.add(lm.resid_post[0], vector, [0.0, 1.0])
    )
    alone = [
        answers(lm, judge, QUESTIONS, RECIPE, edit)[0]
        for edit in (None, interp.add(lm.resid_post[0], vector))
    ]
    assert [each.responses for each in several] == [each.responses for each in alone]
    assert several[0].responses != several[1].responses
    assert several[0].questions == (QUESTIONS[0],) * 2 + (QUESTIONS[1],) * 2
    assert several[1].nats == pytest.approx(alone[1].nats, abs=1e-5)


def test_what_cannot_be_judged_is_left_out_and_kept_through_json(lm: interp.LM) -> None:
    class Second:
        name, threshold = "second", 0.0

        def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
            return [None if i % 2 else float(i) for i in range(len(responses))]

        def as_json(self) -> dict[str, Any]:
            return {"kind": self.name}

    (found,) = answers(lm, Second(), QUESTIONS, RECIPE)
    assert found.scores == (0.0, None, 2.0, None)
    assert (found.score, len(found)) == (1.0, 4)
    assert found.nll is not None
    assert found.nll > 0
    assert Answers.from_json(found.as_json()) == found
    assert Answers(("q",), ("",), (None,), (None,)).nll is None
