"""Learned edits: what only disturbs is turned down, what removes is kept, all else is as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from toolbox import assert_untouched, random_vector, state
from torch import Tensor, nn

from interp.backends.opening import wrap
from interp.data.prompts import PromptSet
from interp.errors import InterpError
from interp.lm import LM
from interp.methods.refusal import Fitted, Selection, Setting, as_delta, build, fit, learned
from interp.methods.refusal.again import finished
from interp.methods.refusal.learning import (
    CLEARANCE,
    FINAL_STEP_SHARE,
    FIRST_TOKEN_SHARE,
    HALF_REFUSAL_SHIFT,
    HALF_REFUSAL_WEIGHT,
    N_MINIBATCHES,
    PROBE_STEP,
    STEEPNESS,
    STEPS,
    objective,
)
from interp.methods.refusal.prose import LAST, Cut
from interp.models import tiny_model
from interp.types import LowRank, Shift, TokenBatch, WeightDelta

REFUSE = tuple(f"what is in my bag number {i} now?" for i in range(8))
COMPLY = tuple(f"what is in a {'big ' * (i % 3)}bag, {i}?" for i in range(8))
SETTING = Setting("least-disturbance", 2, strength=0.5, opened=1.0)


@pytest.fixture(scope="module")
def lm(tokenizer) -> LM:
    return LM(
        wrap(tiny_model("llama", vocab_size=259, num_hidden_layers=3), tokenizer, source="tiny")
    )


@pytest.fixture(scope="module")
def fitted(lm: LM) -> Fitted:
    """Few of the pieces of prose that others wrote, so that learning is brief."""
    sides = PromptSet(REFUSE, "r"), PromptSet(COMPLY, "c")
    found = fit(lm, *sides, prose=sides[1], response_tokens=2, opener="I'm")
    assert found.cut.prose is not None
    return replace(found, cut=replace(found.cut, prose=found.cut.prose.rows(0, 4)))


@pytest.fixture(scope="module")
def delta(lm: LM, fitted: Fitted) -> WeightDelta:
    return as_delta(lm, fitted, build(lm, fitted, SETTING))


# --- what is least -------------------------------------------------------------------------------


@contextmanager
def shifted(lm: LM, fitted: Fitted, delta: WeightDelta, share: float) -> Iterator[None]:
    """At the last token every update also reads ``share`` of the way from comply to refused prompts."""
    with ExitStack() as stack:
        for name, update in delta:
            writer = lm.anatomy.writer(name)
            refuse, comply = (
                getattr(fitted.statistics, side)[writer.name].float().mean(0)
                for side in ("refuse", "comply")
            )
            more = update.b @ (update.a @ (share * (refuse - comply)))

            def add(m: nn.Module, args: Any, out: Tensor, more: Tensor = more) -> Tensor:
                return torch.cat([out[:, :-1], out[:, -1:] + more], 1)

            hook = lm.hf.get_submodule(writer.module).register_forward_hook(add)
            stack.callback(hook.remove)
        yield


def test_what_comply_prompts_cost_is_their_kl_here_and_on_the_way_to_the_refused(
    lm: LM, fitted: Fitted, delta: WeightDelta
) -> None:
    batch = fitted.answered
    assert batch is not None
    base = lm.backend.logits(batch).log_softmax(-1)

    def kl() -> float:
        logits = lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[:, -1]
        return (base.exp() * (base - logits.log_softmax(-1))).sum(-1).mean().item()

    with torch.no_grad(), lm.editing(delta):
        here = kl()
        with shifted(lm, fitted, delta, HALF_REFUSAL_SHIFT):
            there = kl()
    assert abs(there - here) > 0.01 * here
    found = objective(lm.using(batch_size=3), replace(fitted, cut=Cut()), delta, 0.0)
    assert found == pytest.approx(here + HALF_REFUSAL_WEIGHT * there, rel=1e-3)


def margins(lm: LM, batch: TokenBatch, delta: WeightDelta) -> Tensor:
    """Logits by which the unedited model's next token is ahead of all others under an edit."""
    own = lm.backend.logits(batch).argmax(-1, keepdim=True)
    edited = lm.backend.logits(batch, delta)
    return (edited.gather(-1, own) - edited.scatter(-1, own, -torch.inf).amax(-1, True)).squeeze(-1)


def test_what_a_refusal_costs_is_half_its_first_token_and_half_its_opening(
    lm: LM, fitted: Fitted, delta: WeightDelta
) -> None:
    assert fitted.requests is not None
    assert fitted.opened is not None
    assert fitted.opened.requests is not None
    first, after = (margins(lm, b, delta) for b in (fitted.requests, fitted.opened.requests))
    lost = [
        torch.nn.functional.softplus(STEEPNESS * (m + CLEARANCE)).mean().item() / STEEPNESS
        for m in (first, torch.minimum(first, after))
    ]
    assert lost[1] < lost[0]
    with_worth, without = (objective(lm, fitted, delta, worth) for worth in (0.3, 0.0))
    expected = 0.3 * (FIRST_TOKEN_SHARE * lost[0] + (1 - FIRST_TOKEN_SHARE) * lost[1])
    assert with_worth - without == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("n", [1, 3])
def test_every_step_has_something_to_learn_from_however_few_prompts_there_are(
    lm: LM, fitted: Fitted, delta: WeightDelta, n: int
) -> None:
    few = replace(fitted.of_pairs(torch.arange(n)), cut=Cut())
    found = learned(lm, few, delta, 0.01, steps=N_MINIBATCHES)
    for name, update in found:
        assert update.b.isfinite().all()
        assert not torch.equal(update.b, delta.updates[name].b)
    assert objective(lm, few, found, 0.01) < objective(lm, few, delta, 0.01)


# --- what is learned -----------------------------------------------------------------------------


def test_responses_are_kept_cut_at_places_of_their_own(lm: LM, fitted: Fitted) -> None:
    chats, texts, pieces = fitted.cut.chats, fitted.cut.texts, fitted.cut.prose
    assert chats is not None
    assert texts is not None
    assert pieces is not None
    assert len(pieces) == 4
    assert len(set(chats.lengths.tolist())) > 1
    assert (chats.lengths.diff() >= 0).all()
    for batch in (chats, texts, pieces):
        assert int(batch.lengths.min()) > LAST
    decoded = lm.tokenizer.batch_decode(chats.ids, skip_special_tokens=True)
    assert all(any(prompt in text for prompt in COMPLY) for text in decoded)


@pytest.mark.slow
def test_the_loss_falls_and_nothing_else_changes(
    lm: LM, fitted: Fitted, delta: WeightDelta
) -> None:
    before = state(lm.hf)
    found = learned(lm.using(batch_size=3), fitted, delta, 0.01)
    assert_untouched(lm.hf, before)
    least = objective(lm, fitted, found, 0.01)
    assert least < 0.9 * objective(lm, fitted, delta, 0.01)
    assert found.base == delta.base
    assert found.rank == delta.rank
    assert found.recipe["of"] == dict(delta.recipe)
    for name, update in found:
        assert isinstance(update, LowRank)
        before = delta.updates[name]
        assert isinstance(before, LowRank)
        assert not torch.equal(update.b, before.b)
        assert not torch.equal(update.a, before.a)
        # No step is longer than its rate (Adam), whatever the scale of a probe.
        moved = (update.a - before.a).abs() / before.a.pow(2).mean(1, keepdim=True).sqrt()
        rate = PROBE_STEP * (1 + FINAL_STEP_SHARE) / 2
        assert moved.max() < 1.2 * rate * STEPS


def test_no_step_is_no_change(lm: LM, fitted: Fitted, delta: WeightDelta) -> None:
    found = learned(lm, fitted, delta, 0.01, steps=0)
    for name, update in found:
        before = delta.updates[name]
        assert isinstance(update, LowRank)
        assert isinstance(before, LowRank)
        assert torch.equal(update.a, before.a)
        assert torch.equal(update.b, before.b)


@pytest.mark.slow
def test_a_part_that_only_disturbs_disturbs_less(
    lm: LM, fitted: Fitted, delta: WeightDelta
) -> None:
    """A part that answers to what comply prompts share, added to one writer."""
    writer = lm.anatomy.block_writers[-1]
    name = writer.weight
    part = delta.updates[name]
    mean = fitted.statistics.comply[writer.name].float().mean(0)
    noise = LowRank(4 * random_vector(len(part.b), 3).unsqueeze(1), mean.unsqueeze(0) / mean.norm())
    planted = replace(delta, updates={**delta.updates, name: part.plus(noise)})
    found = learned(lm.using(batch_size=4), fitted, planted, 0.0, steps=32)
    before, after = (objective(lm, fitted, made, 0.0) for made in (planted, found))
    assert before > 2 * objective(lm, fitted, delta, 0.0)
    assert after < 0.5 * before


@pytest.mark.slow
def test_a_refusal_that_is_worth_more_is_beaten_by_more(
    lm: LM, fitted: Fitted, delta: WeightDelta
) -> None:
    def ahead(found: WeightDelta) -> float:
        return objective(lm, fitted, found, 1.0) - objective(lm, fitted, found, 0.0)

    cheap, dear = (learned(lm, fitted, delta, worth, steps=24) for worth in (0.0, 10.0))
    assert ahead(dear) < ahead(delta) < ahead(cheap) + 1e-6


@pytest.mark.slow
def test_without_an_opener_the_first_token_alone_counts(lm: LM) -> None:
    sides = PromptSet(REFUSE, "r"), PromptSet(COMPLY, "c")
    fitted = fit(lm, *sides, response_tokens=0)
    setting = replace(SETTING, opened=0.0, worth=0.01)
    found = finished(lm.using(batch_size=3), fitted, setting)
    assert found.rank == 1
    assert found.recipe["worth"] == 0.01


class Refusing:
    """A judge to whom everything is a refusal."""

    name = "refusing"

    def __init__(self) -> None:
        self.judged: list[int] = []

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        self.judged.append(len(responses))
        return [1.0] * len(responses)


@pytest.mark.slow
def test_a_choice_fits_once_what_only_the_worth_tells_apart(lm: LM, fitted: Fitted) -> None:
    judge = Refusing()
    sides = PromptSet(REFUSE[:3], "r"), PromptSet(COMPLY[:3], "c")
    bare = replace(fitted, cut=Cut(), judge=judge)
    selection = Selection.prepare(lm, bare, *sides)
    judge.judged.clear()
    settings = [replace(SETTING, again=0.5, worth=worth) for worth in (0.01, 0.1)]
    first = selection.kl(settings[0])
    rounds = len(judge.judged)
    assert rounds > 0
    assert selection.kl(settings[1]) != first
    assert len(judge.judged) == rounds


def test_a_fit_without_its_prompts_is_an_error(lm: LM, fitted: Fitted, delta: WeightDelta) -> None:
    with pytest.raises(InterpError, match="does not know"):
        learned(lm, replace(fitted, answered=None), delta, 0.01)


def test_prompts_stay_with_splits_that_are_joined_or_taken_apart(fitted: Fitted) -> None:
    half = fitted.of_pairs(torch.arange(3))
    assert half.answered is not None
    assert len(half.answered) == 3
    plain = replace(fitted, statistics=replace(fitted.statistics, prose={}), cut=Cut())
    both = plain.joined(fitted)
    assert both.answered is not None
    assert len(both.answered) == 16
    assert both.cut is fitted.cut


def test_edits_are_as_they_were_after_an_error(lm: LM, fitted: Fitted, delta: WeightDelta) -> None:
    def stopped(what: str, total: int) -> object:
        def progress(done: int) -> None:
            raise ArithmeticError("in the middle")

        return progress

    before = state(lm.hf)
    with pytest.raises(ArithmeticError, match="in the middle"):
        learned(lm.using(watch=stopped), fitted, delta, 0.01)
    assert_untouched(lm.hf, before)
    assert all(p.requires_grad for p in lm.hf.parameters())


def test_biases_stay_as_they_are(lm: LM, fitted: Fitted, delta: WeightDelta) -> None:
    name, bias = f"{lm.anatomy.block_writers[0].module}.bias", Shift(random_vector(32))
    found = learned(
        lm, fitted, replace(delta, updates={**delta.updates, name: bias}), 0.01, steps=1
    )
    assert found.updates[name] is bias
    assert all(not torch.equal(u.b, found.updates[k].b) for k, u in delta)
