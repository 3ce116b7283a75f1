"""Opener sets: first tokens, once each, on one side only; from texts or from the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.attribution.openers import Openers, find_openers, openers_from_model
from interp.backends.opening import wrap
from interp.errors import PromptError
from interp.methods.refusal.attributing import phrase_openers
from interp.models import tiny_model
from interp.types import TokenBatch


def prompts(n: int = 6, seed: int = 0) -> TokenBatch:
    ids = torch.randint(3, 97, (n, 9), generator=torch.Generator().manual_seed(seed))
    return TokenBatch(ids, torch.ones_like(ids))


class Words:
    """A tokenizer of whole words, with a fixed vocabulary."""

    vocabulary = ("I", "'m", "Sorry", "Sure", "The", "As")

    def __call__(self, text: str, *, add_special_tokens: bool) -> Any:
        assert not add_special_tokens, "a begin-of-text token would be every opener"
        found = [self.vocabulary.index(w) for w in text.split() if w in self.vocabulary]
        return type("Encoding", (), {"input_ids": found})

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.vocabulary[i] for i in ids)


def test_openers_are_first_tokens_once_each() -> None:
    found = find_openers(Words(), ["I 'm", "I", "Sorry"], ["Sure", "The", "unknown"])
    assert (found.positive, found.negative) == ((0, 2), (3, 4))
    assert (found.positive_words, found.negative_words) == (("I", "Sorry"), ("Sure", "The"))
    assert found.weights.tolist() == [0.5, 0.5, -0.5, -0.5]


def test_a_token_that_opens_both_is_dropped() -> None:
    found = find_openers(Words(), ["I 'm", "Sorry"], ["I", "Sure"])
    assert (found.positive, found.negative) == ((2,), (3,))


def test_the_default_openers_suit_a_tokenizer_of_words() -> None:
    found = phrase_openers(Words())
    assert set(found.positive_words) == {"I", "Sorry", "As"}
    assert set(found.negative_words) == {"Sure", "The"}


@pytest.mark.parametrize(
    ("refuse", "comply", "message"),
    [(["I"], ["I", "Sure"], "only positive"), (["Sorry"], ["unknown"], "only negative")],
)
def test_an_empty_side_says_what_to_do(refuse: list[str], comply: list[str], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        find_openers(Words(), refuse, comply)


def test_openers_must_differ_and_need_a_tokenizer() -> None:
    with pytest.raises(PromptError, match="token 7 opens both"):
        Openers((5, 7), (7,))
    with pytest.raises(PromptError, match="use openers_from_model"):
        phrase_openers(None)


def test_openers_from_the_model_are_its_largest_probability_differences() -> None:
    backend = wrap(tiny_model("llama"))
    refuse, comply = prompts(5, seed=1), prompts(7, seed=2)
    found = openers_from_model(backend, refuse, comply, 3, batch_size=2)
    mean = [backend.logits(b).double().softmax(-1).mean(0) for b in (refuse, comply)]
    ranked = (mean[0] - mean[1]).argsort().tolist()
    assert list(found.negative) == ranked[:3]
    assert list(found.positive) == ranked[::-1][:3]
    assert found.positive_words == ()


def test_classes_that_do_not_differ_have_no_openers() -> None:
    with pytest.raises(PromptError, match="no token opens only positive"):
        openers_from_model(wrap(tiny_model("gpt2")), prompts(), prompts(), 3)
