"""Answers to evaluation questions with trait scores, under one edit or several in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from interp.backends.protocol import AnyEdit
from interp.backends.steps import Sampling
from interp.evaluate.scores import t_interval
from interp.judges import Judge
from interp.judges.protocol import finite
from interp.lm import LM
from interp.methods.persona_vectors.recipe import EvaluationRecipe

Value = float | None


@dataclass(frozen=True, slots=True)
class Answers:
    """Responses with their scores, all samples of the first question first.

    questions, responses: one per row. scores: of the judge; None where a response cannot be judged. nats:
    NLL per token of the response to the bare question under the unedited model, which rises when an edit
    damages the text; None for an empty response.
    """

    questions: tuple[str, ...]
    responses: tuple[str, ...]
    scores: tuple[Value, ...]
    nats: tuple[Value, ...]

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def scored(self) -> list[float]:
        """The scores that there are."""
        return [score for score in self.scores if score is not None]

    @property
    def score(self) -> Value:
        """Mean score of the responses that have one."""
        return fmean(self.scored) if self.scored else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The t interval of the mean score at 95 %."""
        return t_interval(self.scored)

    @property
    def nll(self) -> Value:
        """Mean over responses of the NLL per token, in nats."""
        known = [value for value in self.nats if value is not None]
        return fmean(known) if known else None

    def as_json(self) -> dict[str, Any]:
        return {name: list(values) for name, values in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Answers:
        return cls(**{name: tuple(values) for name, values in content.items()})


def answers(
    lm: LM,
    judge: Judge,
    questions: Sequence[str],
    recipe: EvaluationRecipe,
    edit: AnyEdit = None,
    *,
    unedited: LM | None = None,
) -> list[Answers]:
    """Scored answers to questions, one :class:`Answers` for each strength of the edit.

    Strengths run in one batch and share their random draws, so that two of them differ by the edit alone.
    unedited: the model that NLL is read with; None for ``lm`` without the edit.
    """
    asked = [q for q in questions[: recipe.n_questions] for _ in range(recipe.samples)]
    sampling = Sampling(recipe.temperature, seed=recipe.seed)
    found = lm.generate(asked, edit, tokens=recipe.tokens, sampling=sampling)
    groups = found.texts if "strength" in found.axes else [found.texts]
    texts = [text for group in groups for text in group]
    prompts = asked * len(groups)
    scores = [finite(score) for score in judge.score(prompts, texts)]
    nats = _nats(unedited or lm, prompts, texts)
    size = len(asked)
    return [
        Answers(tuple(asked), *(tuple(each[i : i + size]) for each in (texts, scores, nats)))
        for i in range(0, len(texts), size)
    ]


def _nats(lm: LM, prompts: Sequence[str], responses: Sequence[str]) -> list[Value]:
    """NLL per token of every response; None for an empty one."""
    rows = [i for i, text in enumerate(responses) if text]
    found: list[Value] = [None] * len(responses)
    if rows:
        means = lm.logprobs([prompts[i] for i in rows], [responses[i] for i in rows]).means
        for row, value in zip(rows, means.tolist(), strict=True):
            found[row] = -value
    return found
