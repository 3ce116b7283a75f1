"""Choosing a direction by its effect: the metric, the candidates, their scores, and the limits."""

from __future__ import annotations

import math

import pytest
import torch

from interp.attribution.openers import Openers
from interp.backends.opening import wrap
from interp.data.chat import encode, pad_left
from interp.edits import ablation, applied, to_delta
from interp.errors import InterpError, NoDirection
from interp.evaluate.causal import (
    CausalScore,
    PlacedDirection,
    Trial,
    broken,
    nearest,
    opener_log_odds,
    placed_directions,
    shared_ending,
)
from interp.fitting import difference_of_means
from interp.lm import LM
from interp.maths import unit
from interp.models import tiny_model
from interp.sites import Site
from interp.types import TokenBatch
from tests.toolbox import random_direction, relative

REFUSE = [f"what is in my bag number {i} now?" for i in range(5)]
COMPLY = [f"what is in a bag number {i} in general?" for i in range(5)]
OPENERS = Openers((40, 41, 42), (60, 61))


@pytest.fixture(scope="module")
def lm(tokenizer) -> LM:
    model = tiny_model("llama", vocab_size=259, max_position_embeddings=512, num_hidden_layers=4)
    return LM(wrap(model, tokenizer, source="tiny"))


@pytest.fixture(scope="module")
def prompts(lm: LM) -> tuple[TokenBatch, TokenBatch]:
    return encode(lm.tokenizer, REFUSE), encode(lm.tokenizer, COMPLY)


@pytest.fixture(scope="module")
def trial(lm: LM, prompts: tuple[TokenBatch, TokenBatch]) -> Trial:
    return Trial.prepare(lm.using(batch_size=2), *prompts, OPENERS)


@pytest.fixture(scope="module")
def found(lm: LM, prompts: tuple[TokenBatch, TokenBatch]) -> list[PlacedDirection]:
    return placed_directions(lm, *prompts)


def refusal_metric(lm: LM, batch: TokenBatch, openers: Openers) -> torch.Tensor:
    return opener_log_odds(lm.logits(batch).float(), openers)


def test_the_metric_is_the_log_odds_of_the_openers(lm: LM, prompts) -> None:
    p = lm.backend.logits(prompts[0]).double().softmax(-1)[:, [40, 41, 42]].sum(-1)
    direct = [math.log(x + 1e-8) - math.log(1 - x + 1e-8) for x in p.tolist()]
    found = refusal_metric(lm.using(batch_size=2), prompts[0], OPENERS)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(direct, abs=1e-4)


def test_padding_changes_nothing(lm: LM, prompts) -> None:
    wide = torch.nn.functional.pad
    padded = TokenBatch(*(wide(t, (7, 0)) for t in (prompts[0].ids, prompts[0].mask)))
    before, after = (refusal_metric(lm, b, OPENERS) for b in (prompts[0], padded))
    assert relative(after, before) < 1e-5
    ours, theirs = (placed_directions(lm, b, prompts[1], blocks=[2]) for b in (prompts[0], padded))
    for a, b in zip(ours, theirs, strict=True):
        assert relative(b.raw, a.raw) < 1e-4


def test_shared_ending_counts_the_template(lm: LM, prompts) -> None:
    assert shared_ending(*prompts) == len("?\nassistant:")
    assert shared_ending(pad_left([[5, 6, 7], [9, 6, 7]], 0), pad_left([[6, 7]], 0)) == 2
    # A row that is padding at a place shares no token there, even where the ids are the same.
    assert shared_ending(pad_left([[0, 6], [6]], 0), pad_left([[0, 6]], 0)) == 1


def test_candidates_are_differences_of_means(lm: LM, prompts, found) -> None:
    assert {(c.block, c.position) for c in found} == {
        (b, p) for b in range(4) for p in range(-5, 0)
    }
    site = Site.resid_post(2)
    acts = [lm.activations(batch, site)[site] for batch in prompts]
    (last,) = (c for c in found if (c.block, c.position) == (2, -1))
    assert relative(last.raw, difference_of_means(*acts)) < 1e-5


def test_places_without_a_difference_are_left_out(lm: LM) -> None:
    # The classes differ in the second token from the end alone: nothing before it can tell them.
    # One class runs through the cache of a shared prefix and one does not, so that equal streams
    # differ by round-off, which must not become a direction.
    start = list(range(10, 40))
    batches = [pad_left([[*start, 31, 32, x, 50]] * n, 0) for x, n in ((20, 3), (90, 1))]
    places = {c.position for c in placed_directions(lm, *batches, positions=(-4, -3, -2, -1))}
    assert places == {-2, -1}
    with pytest.raises(NoDirection, match="the same"):
        placed_directions(lm, batches[0], batches[0])


def test_bypass_is_the_metric_of_the_edited_weights(lm: LM, prompts, trial) -> None:
    candidate = PlacedDirection(1, -1, random_direction(lm.anatomy.d_model))
    edit = ablation(lm.hf, lm.anatomy, candidate.direction, embeddings=True)
    score = trial.score(candidate)
    before = lm.backend.logits(prompts[1]).double().log_softmax(-1)
    with applied(lm.hf, lm.anatomy, to_delta(lm.hf, lm.anatomy, edit)):
        bypass = refusal_metric(lm, prompts[0], OPENERS).mean().item()
        after = lm.backend.logits(prompts[1]).double().log_softmax(-1)
    assert score.bypass == pytest.approx(bypass, abs=1e-4)
    kl = (before.exp() * (before - after)).sum(-1).mean().item()
    assert score.kl == pytest.approx(kl, rel=1e-3)
    assert abs(score.bypass - trial.unedited[0]) > 1e-3


def test_induce_adds_the_raw_difference_at_the_next_blocks_input(
    lm: LM, prompts, trial, found
) -> None:
    (candidate,) = (c for c in found if (c.block, c.position) == (1, -2))
    assert candidate.direction.norm == pytest.approx(candidate.raw.norm().item(), rel=1e-5)
    block = lm.hf.get_submodule(lm.anatomy.blocks[2])
    handle = block.register_forward_pre_hook(lambda m, a: (a[0] + candidate.raw, *a[1:]))
    by_hand = refusal_metric(lm, prompts[1], OPENERS).mean().item()
    handle.remove()
    assert trial.score(candidate).induce == pytest.approx(by_hand, abs=1e-4)
    assert abs(by_hand - trial.unedited[1]) > 1e-3


def score(
    block: int = 3, bypass: float = -5.0, induce: float = 1.0, kl: float = 0.05, at: int = -1
):
    return CausalScore(block, at, bypass, induce, kl)


def test_the_least_bypass_within_the_limits_is_chosen() -> None:
    good = score(bypass=-5.0)
    decoys = [
        score(bypass=-9.0, kl=0.5),
        score(bypass=-9.0, induce=-0.1),
        score(bypass=-9.0, block=7),
        score(bypass=math.nan),
        score(bypass=-4.0, at=-2),
    ]
    assert nearest([*decoys, good], 10) is good
    assert [broken(each, 10) for each in (good, *decoys)] == [
        [], ["kl"], ["induce"], ["depth"], ["bypass"], [],
    ]  # fmt: skip


def test_a_direction_that_breaks_the_model_loses_to_one_that_does_not(lm, prompts) -> None:
    """The refusal openers' own unembedding ends refusals best, and disturbs all else."""
    rows = lm.hf.lm_head.weight.detach()[list(OPENERS.positive)]
    trial = Trial.prepare(lm, *prompts, OPENERS)
    d = lm.anatomy.d_model
    vectors = [unit(rows.mean(0)), *(random_direction(d, seed).vector for seed in range(3))]
    scores = [
        trial.score(PlacedDirection(block, -1, type(random_direction(d))(v, block, "planted")))
        for block, v in enumerate(vectors)
    ]
    decoy = min(scores, key=lambda s: s.bypass)
    assert decoy.kl > min(s.kl for s in scores)
    assert "kl" in broken(decoy, 9)


def test_without_any_that_qualifies_the_nearest_is_chosen() -> None:
    near, far = score(kl=0.2, bypass=-6.0), score(kl=0.2, induce=-1.0, bypass=-9.0)
    assert nearest([far, near], 10) is near
    assert len(broken(far, 10)) == 2
    assert broken(score(block=7), 10), "their layer 8 of 10 is not below 0.8"
    assert not broken(score(block=6), 10)
    with pytest.raises(InterpError, match="nothing to choose"):
        nearest([], 10)
