"""Samples: joining and taking apart, and rows in files that are those in memory."""

from __future__ import annotations

import pytest
import torch

from interp.backends.opening import wrap
from interp.data.prompts import PromptSet
from interp.errors import SiteError
from interp.lm import LM
from interp.models import tiny_model
from interp.samples import DECISION, POOL, Capture, Memory, Samples

FIRST = PromptSet(tuple(f"where is my {'old ' * (i % 3)}key {i}?" for i in range(7)), "first")
SECOND = PromptSet(tuple(f"what is a {'new ' * (i % 4)}lock {i}?" for i in range(5)), "second")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def lm(request, tokenizer) -> LM:
    dtype = getattr(torch, request.param)
    model = tiny_model("llama", vocab_size=259, num_hidden_layers=2, dtype=dtype)
    return LM(wrap(model, tokenizer, source="tiny"), batch_size=1)


def captured(lm: LM, in_memory: int) -> Samples:
    capture = Capture(lm, (*lm.resid_post, *lm.writer_inputs), Memory(in_memory))
    return Samples(
        (
            capture(FIRST, DECISION, True),
            capture(SECOND, DECISION, False),
            capture(SECOND, POOL, False, at=(-2, -1)),
        )
    )


@pytest.mark.parametrize("in_memory", [0, 6000])
def test_rows_in_files_are_the_rows_in_memory(lm: LM, in_memory: int) -> None:
    here, there = captured(lm, 1 << 30), captured(lm, in_memory)
    for site in here.sites():
        for positive, place in ((True, DECISION), (False, DECISION), (False, POOL)):
            rows = here.rows(site, positive, place)
            assert torch.equal(there.rows(site, positive, place), rows)
            assert rows.dtype == lm.hf.dtype


def test_rows_are_those_of_the_model_in_the_order_of_the_prompts(lm: LM) -> None:
    found, site = captured(lm, 1 << 30), lm.writer_inputs[-1]
    assert torch.equal(found.rows(site, True), lm.activations(FIRST, site)[site])
    pairs = lm.activations(SECOND, site, at=(-2, -1))[site]
    assert torch.equal(found.rows(site, False, POOL), pairs.flatten(0, 1))


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_taking_apart_and_joining_gives_the_whole(lm: LM, in_memory: int) -> None:
    whole, site = captured(lm, in_memory), lm.resid_post[1]
    halves = [PromptSet(FIRST.prompts[i::2], "half") for i in range(2)]
    parts = [whole.of(half) for half in halves]
    rows = whole.rows(site, True)
    assert torch.equal(parts[1].rows(site, True), rows[1::2])
    joined = parts[0].joined(parts[1])
    assert torch.equal(joined.rows(site, True), torch.cat([rows[::2], rows[1::2]]))
    # Rows of the pool belong to every part.
    assert torch.equal(parts[0].rows(site, False, POOL), whole.rows(site, False, POOL))
    assert not len(parts[0].rows(site, False))


def test_what_was_not_captured_is_an_error(lm: LM) -> None:
    with pytest.raises(SiteError, match="no pool rows"):
        captured(lm, 0).rows(lm.resid_post[0], True, POOL)
