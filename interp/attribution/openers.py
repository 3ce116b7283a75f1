"""First tokens of two kinds of response: the two sets whose logits a margin compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.backends.protocol import Backend
from interp.data.tokens import Tokens, token_ids
from interp.errors import PromptError
from interp.types import TokenBatch

BATCH = 32
"""Prompts of one forward pass, by default."""


@dataclass(frozen=True, slots=True)
class Openers:
    """Token ids that open positive and negative responses; words: the same as text, for people.

    Raises PromptError when a set is empty or the two overlap.
    """

    positive: tuple[int, ...]
    negative: tuple[int, ...]
    positive_words: tuple[str, ...] = ()
    negative_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.positive or not self.negative:
            side = "negative" if self.positive else "positive"
            raise PromptError(
                f"no token opens only {side} responses; give other opener texts, or take them from the model "
                "with openers_from_model"
            )
        if both := sorted(set(self.positive) & set(self.negative)):
            raise PromptError(f"token {both[0]} opens both kinds of response; leave it out")

    @property
    def ids(self) -> tuple[int, ...]:
        """Positive tokens, then negative ones."""
        return self.positive + self.negative

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """``1/n⁺`` for positive tokens, ``−1/n⁻`` for negative ones: means over the two sets."""
        plus = torch.full((len(self.positive),), 1.0 / len(self.positive), dtype=torch.float64)
        minus = torch.full((len(self.negative),), -1.0 / len(self.negative), dtype=torch.float64)
        return torch.cat([plus, minus])

    @classmethod
    def of(cls, tokenizer: Any, positive: Tokens, negative: Tokens) -> Openers:
        """Tokens by id or text. Raises PromptError for a text of several tokens."""
        sides = [token_ids(tokenizer, each) for each in (positive, negative)]
        return _named(tokenizer, *sides)

    def margin(self, logits: Float[Tensor, "*n vocab"]) -> Float[Tensor, " *n"]:
        """Mean logit of the positive tokens minus that of the negative ones, float64."""
        weights = self.weights.to(logits.device)
        return logits[..., list(self.ids)].double() @ weights


def find_openers(tokenizer: Any, positive: Sequence[str], negative: Sequence[str]) -> Openers:
    """The first tokens of opener texts. A token that opens both kinds is dropped.

    Raises PromptError without a tokenizer, or when nothing is left of one side.
    """
    if tokenizer is None:
        raise PromptError(
            "openers need a tokenizer; use openers_from_model for a model without one"
        )
    sides = [_first_tokens(tokenizer, texts) for texts in (positive, negative)]
    both = set(sides[0]) & set(sides[1])
    return _named(tokenizer, *([i for i in side if i not in both] for side in sides))


def _first_tokens(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    return list(dict.fromkeys(row[0] for row in rows if row))


def _named(tokenizer: Any, positive: Sequence[int], negative: Sequence[int]) -> Openers:
    words = [
        tuple(tokenizer.decode([i]) for i in side) if tokenizer is not None else ()
        for side in (positive, negative)
    ]
    return Openers(tuple(positive), tuple(negative), *words)


def openers_from_model(
    backend: Backend, positive: TokenBatch, negative: TokenBatch, k: int, *, batch_size: int = BATCH
) -> Openers:
    """The ``k`` tokens each way whose mean first-token probability differs most between classes.

    They come from the model's own predictions, so no list of phrases is needed; give prompts of the
    fit split. Raises PromptError when the classes do not differ.
    """
    difference = _mean_probabilities(backend, positive, batch_size)
    difference -= _mean_probabilities(backend, negative, batch_size)
    sides = []
    for sign in (1, -1):
        value, index = (sign * difference).topk(k)
        sides.append(index[value > 0].tolist())
    return _named(backend.tokenizer, *sides)


def _mean_probabilities(backend: Backend, batch: TokenBatch, size: int) -> Float[Tensor, " vocab"]:
    total: Tensor | None = None
    for part in batch.split(size):
        found = backend.logits(part).double().softmax(-1).sum(0)
        total = found if total is None else total + found
    if total is None:
        raise PromptError("no prompts to take openers from")
    return total / len(batch)
