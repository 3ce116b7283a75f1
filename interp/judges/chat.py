"""A local chat model as judge: the expected number of its reply to a rubric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interp.judges.likelihood import model_json
from interp.judges.numbers import number_probabilities
from interp.judges.protocol import HALFWAY, answers, check_prompts, spread
from interp.judges.rubric import HIGHEST, LEAST_MASS, LOWEST, Rubric
from interp.lm import LM


@dataclass(frozen=True, eq=False)
class ChatJudge:
    """Expected score ``Σ k p(k) / Σ p(k)`` over the numbers 0 to 100 as the model's reply to a rubric.

    Numbers of several tokens are followed token by token (:mod:`interp.judges.numbers`). A response has no
    score where it is empty or still thinking, or where numbers have less than ``least_mass`` of the
    probability. lm: the judging model without an edit; for one that thinks first,
    ``lm.using(chat=ChatFormat(thinking=False))``, for one that does not begin with the number,
    ``ChatFormat(prefill="Score:")``.
    """

    lm: LM
    rubric: Rubric
    least_mass: float = LEAST_MASS
    threshold: float = HALFWAY

    @property
    def name(self) -> str:
        return self.rubric.name

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """See :class:`interp.judges.Judge`; needs prompts where the rubric shows them."""
        check_prompts(prompts, responses, self.name if self.rubric.needs_prompt else None)
        rows = answers(responses)
        if not rows:
            return [None] * len(responses)
        texts = [self.rubric.filled(prompts[i] if prompts else "", t) for i, t in rows.items()]
        chances = number_probabilities(self.lm, self.lm.tokens(texts))
        mass = chances.sum(-1)
        means = chances @ torch.arange(LOWEST, HIGHEST + 1, dtype=chances.dtype) / mass
        pairs = zip(means.tolist(), mass.tolist(), strict=True)
        found = [mean if weight >= self.least_mass else None for mean, weight in pairs]
        return spread(found, rows, len(responses))

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": "chat model",
            "name": self.name,
            "rubric": self.rubric.as_json(),
            "least_mass": self.least_mass,
            **model_json(self.lm),
        }
