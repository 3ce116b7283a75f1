"""KL, continuations and neutral NLL: zero for nothing, right for a known change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.backends.generation import end_ids
from interp.backends.opening import wrap
from interp.data import encode
from interp.data.prompts import PromptSet
from interp.edits import ablation, to_delta
from interp.evaluate.divergence import (
    divergence,
    kl_nats,
    neutral_batch,
    passage_nats,
    reference,
    until_end,
)
from interp.evaluate.measure import Bench
from interp.lm import LM
from interp.maths import unit
from interp.models import tiny_model
from interp.types import Direction, TokenBatch

PROMPTS = ("what time is it", "name a colour", "hi", "tell me of the sea please")


@pytest.fixture(scope="module")
def lm(tokenizer) -> LM:
    return LM(wrap(tiny_model("llama", vocab_size=259, max_position_embeddings=512), tokenizer))


@pytest.fixture(scope="module")
def delta(lm: LM):
    torch.manual_seed(0)
    direction = Direction(unit(torch.randn(lm.anatomy.d_model)), 1, "random")
    return to_delta(lm.hf, lm.anatomy, ablation(lm.hf, lm.anatomy, direction))


@given(st.integers(0, 10_000))
def test_kl_is_not_negative_and_zero_for_itself(seed: int) -> None:
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(seed))
    p, q = torch.log_softmax(logits, -1)
    assert (kl_nats(p, q) >= -1e-7).all()
    assert kl_nats(p, p).abs().max() == 0


def test_kl_of_two_known_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()
    assert kl_nats(p, q).item() == pytest.approx(expected.item())


def test_tokens_after_the_end_of_text_do_not_count() -> None:
    ids = torch.tensor([[5, 2, 7, 2], [5, 6, 7, 8], [2, 2, 2, 2]])
    assert until_end(ids, [2]).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert until_end(ids, []).all()


def test_the_base_does_not_diverge_from_itself(lm: LM) -> None:
    ref = reference(lm.using(batch_size=2), PROMPTS, tokens=5)
    found = divergence(lm, ref, None)
    assert found.first == found.continuation == 0.0


def test_divergence_does_not_depend_on_batch_size_and_starts_with_the_first_token(
    lm: LM, delta
) -> None:
    batch = encode(lm.tokenizer, PROMPTS)
    results = []
    for size in (1, 4):
        ref = reference(lm.using(batch_size=size), batch, tokens=5)
        results.append(divergence(lm, ref, delta))
    assert results[0].first == pytest.approx(results[1].first, rel=1e-3)
    assert results[0].continuation == pytest.approx(results[1].continuation, rel=1e-3)
    base, edited = (torch.log_softmax(lm.backend.logits(batch, e), -1) for e in (None, delta))
    assert results[0].first == pytest.approx(kl_nats(base, edited).mean().item(), rel=1e-3)
    assert results[0].first > 1e-4


def test_reference_responses_are_the_generated_ones(lm: LM) -> None:
    batch = encode(lm.tokenizer, PROMPTS)
    ref = reference(lm.using(batch_size=3), batch, tokens=6)
    first = ref.first_ids(4)
    assert first is not None
    assert first.equal(lm.backend.generate(batch, tokens=4))
    assert ref.first_ids(9) is None


def neutral_nll(lm: LM, batch: TokenBatch) -> float:
    nats, tokens = passage_nats(lm, batch)
    return nats.sum().item() / int(tokens.sum())


def test_nll_is_that_of_the_model_itself(lm: LM) -> None:
    text = "the sea was calm that night"
    batch = neutral_batch(lm, [text])
    out = lm.hf(input_ids=batch.ids, labels=batch.ids)
    assert neutral_nll(lm, batch) == pytest.approx(out.loss.item(), rel=1e-5)


def test_nll_ignores_padding(lm: LM) -> None:
    texts = ["the sea", "a much longer line about nothing at all"]
    both = neutral_nll(lm, neutral_batch(lm, texts))
    alone = [neutral_batch(lm, [t]) for t in texts]
    total = sum(neutral_nll(lm, b) * (b.ids.shape[1] - 1) for b in alone)
    assert both == pytest.approx(total / sum(b.ids.shape[1] - 1 for b in alone), rel=1e-5)


def test_nats_of_passages_add_up_to_the_mean(lm: LM) -> None:
    batch = neutral_batch(lm, ["the sea", "a much longer line about nothing at all", "a b c"])
    nats, tokens = passage_nats(lm.using(batch_size=2), batch)
    assert tokens.tolist() == [n - 1 for n in batch.lengths.tolist()]
    assert nats.sum().item() / tokens.sum().item() == pytest.approx(neutral_nll(lm, batch))


def test_an_edit_measured_as_hook_or_as_delta_gives_one_row(lm: LM, delta) -> None:
    sets = [PromptSet(PROMPTS, "refuse"), PromptSet(PROMPTS[::-1], "comply")]
    bench = Bench(lm.using(batch_size=3), *sets, response_tokens=4, continuation=4)
    original = bench.row("original")
    assert original.divergence.first == original.divergence.continuation == 0.0
    assert (original.positive.n, original.negative.n) == (4, 4)
    edited = bench.row("edited", delta)
    assert edited.divergence.first > 0
    assert edited.nll != original.nll
    torch.manual_seed(0)
    direction = Direction(unit(torch.randn(lm.anatomy.d_model)), 1, "random")
    as_hook = bench.row("edited", ablation(lm.hf, lm.anatomy, direction))
    assert as_hook.divergence.first == pytest.approx(edited.divergence.first, rel=1e-3)
    assert as_hook.positive.count == edited.positive.count


def test_tokens_agree_as_far_as_an_edit_changes_no_answer(lm: LM, delta) -> None:
    """What teacher forcing says of an edited answer is what generating gives."""
    batch = encode(lm.tokenizer, PROMPTS)
    ref = reference(lm.using(batch_size=3), batch, tokens=6)
    base, ends = lm.backend.generate(batch, tokens=6), end_ids(lm.hf)
    lengths = []
    for scale in (0.0, 0.02, 0.3):
        found = divergence(lm, ref, delta.scale(scale)).agreed
        edited = lm.backend.generate(batch, delta.scale(scale), tokens=6)
        same = ((edited == base) | (until_end(base, ends) == 0)).long().cumprod(1).sum(1)
        assert found == tuple(same.tolist())
        lengths.append(sum(found))
    assert lengths[0] == 6 * len(PROMPTS) > lengths[-1]


def test_answers_that_an_edit_leaves_alone_are_not_generated_again(
    lm: LM, delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [PromptSet(PROMPTS, "refuse"), PromptSet(PROMPTS[::-1], "comply")]
    bench = Bench(lm, *sets, response_tokens=4, continuation=6)
    asked: list[int] = []
    generate = type(lm.backend).generate
    monkeypatch.setattr(
        type(lm.backend), "generate",
        lambda self, batch, *a, **k: asked.append(len(batch)) or generate(self, batch, *a, **k),
    )  # fmt: skip
    for scale in (0.0, 0.02, 0.3):
        edit = delta.scale(scale)
        agreed = divergence(lm, bench.reference, edit).agreed
        asked.clear()
        short = bench.responses(edit, agreed=agreed)
        assert asked == [len(PROMPTS) + sum(n < 4 for n in agreed)]
        for some, every in zip(short, bench.responses(edit), strict=True):
            assert some.equal(every)
        assert asked[-1] == 2 * len(PROMPTS)
