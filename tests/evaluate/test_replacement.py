"""What replaces a refusal: planted loops, known overlap, and NLL of the base model's own text."""

from __future__ import annotations

import pytest
import torch

from interp import open_model
from interp.backends.generation import end_ids
from interp.data import encode
from interp.evaluate.divergence import until_end
from interp.evaluate.replacement import (
    FIRST_LEFT_OUT,
    content_overlap,
    is_looping,
    measured,
    replaced,
    response_nats,
)
from interp.lm import LM

PROMPTS = ("what is the tide?", "name a long river", "hm", "who wrote it?")


@pytest.fixture(scope="module")
def lm() -> LM:
    return open_model("tiny:llama")


def test_a_response_that_repeats_itself_loops() -> None:
    assert is_looping([7, 8] * 12)
    assert is_looping([1, 2, 3, *[9] * 20])
    assert not is_looping(list(range(24)))
    assert not is_looping([5, 5, 5, 5])  # too short to tell


def test_overlap_counts_content_words_alone() -> None:
    assert content_overlap("What is the tide in Dover today?", "In Dover, the tide is low.") == (
        pytest.approx(2 / 3)
    )
    assert content_overlap("What is the tide?", "Hangul, hangul") == 0.0
    assert content_overlap("What is it?", "It is a thing") is None


def test_rows_are_those_that_were_refused_and_are_not() -> None:
    assert replaced([True, True, False, False], [False, True, True, False]) == [0]


def test_nll_is_that_of_the_base_model_after_the_first_tokens(lm: LM) -> None:
    """Against a plain forward pass over one prompt and its response."""
    batch = encode(lm.tokenizer, PROMPTS)
    ids = lm.backend.generate(batch, tokens=9)
    real = until_end(ids, end_ids(lm.hf))
    nats, tokens = response_nats(lm, batch, ids, real)
    for row in range(len(PROMPTS)):
        prompt = batch.ids[row][batch.mask[row].bool()]
        whole = torch.cat([prompt, ids[row]])[None]
        with torch.no_grad():
            logp = lm.hf(whole).logits[0].log_softmax(-1)
        counted = range(FIRST_LEFT_OUT, int(real[row].sum()))
        wanted = -sum(logp[len(prompt) + t - 1, ids[row, t]].item() for t in counted)
        assert tokens[row] == len(counted)
        assert nats[row].item() == pytest.approx(wanted, rel=1e-4)


def test_text_that_the_base_would_not_write_costs_more(lm: LM) -> None:
    batch = encode(lm.tokenizer, PROMPTS)
    own = lm.backend.generate(batch, tokens=12)
    other = torch.randint(5, 200, own.shape, generator=torch.Generator().manual_seed(0))
    rows = list(range(len(PROMPTS)))
    mine, theirs = (measured(lm, PROMPTS, batch, ids, rows) for ids in (own, other))
    assert mine.n == 4
    assert mine.nll is not None
    assert theirs.nll is not None
    assert mine.nll < theirs.nll
    assert theirs.looping == 0.0


def test_nothing_replaced_is_nothing_measured(lm: LM) -> None:
    batch = encode(lm.tokenizer, PROMPTS)
    found = measured(lm, PROMPTS, batch, batch.ids, [])
    assert found.n == 0
    assert found.cells == [None, None, None]
