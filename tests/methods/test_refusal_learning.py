"""Learned edits: what only disturbs is turned down, what removes is kept, all else is as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from toolbox import assert_untouched, random_vector, state
from torch import Tensor, nn

from interp.backends.opening import wrap
from interp.data.prompts import PromptSet
from interp.lm import LM
from interp.methods.refusal import Fitted, as_delta, build, finished, fit, learned
from interp.methods.refusal.learning import FINAL_STEP_SHARE, Objective
from interp.methods.refusal.texts import LAST_TOKENS, PASSAGE_TOKENS, Texts
from interp.models import tiny_model
from interp.recipes import Learning, LeastDisturbanceEdit
from interp.sites import Site
from interp.types import LowRank, Shift, WeightDelta

REFUSE = tuple(f"what is in my bag number {i} now?" for i in range(8))
COMPLY = tuple(f"what is in a {'big ' * (i % 3)}bag, {i}?" for i in range(8))
RECIPE = LeastDisturbanceEdit(
    after_opener="I'm", learn=0.01, strength=0.5, block=2, first_block=0, opener_strength=1.0,
    attention=1.0, ridge=0.02, learning=Learning(steps=24, minibatches=4, most_texts=4),
)  # fmt: skip
LEARNING = RECIPE.learning


@pytest.fixture(scope="module")
def lm(tokenizer) -> LM:
    model = tiny_model("llama", vocab_size=259, num_hidden_layers=3)
    return LM(wrap(model, tokenizer, source="tiny"), batch_size=3)


@pytest.fixture(scope="module")
def fitted(lm: LM) -> Fitted:
    sides = PromptSet(REFUSE, "r"), PromptSet(COMPLY, "c")
    return fit(lm, *sides, respond_to=sides[1], opener="I'm")


@pytest.fixture(scope="module")
def delta(lm: LM, fitted: Fitted) -> WeightDelta:
    return as_delta(lm, fitted, build(lm, fitted, RECIPE))


def loss(lm: LM, fitted: Fitted, delta: WeightDelta, weight: float) -> float:
    return Objective(lm, fitted, weight, LEARNING).value(delta)


def bare(fitted: Fitted) -> Fitted:
    """Without texts."""
    return replace(fitted, texts=Texts())


# --- what is least -------------------------------------------------------------------------------


@contextmanager
def shifted(lm: LM, fitted: Fitted, delta: WeightDelta, share: float) -> Iterator[None]:
    """At the last token every update also reads ``share`` of the way from answered to refused prompts."""
    with ExitStack() as stack:
        for name, update in delta:
            writer = lm.anatomy.writer(name)
            shift = fitted.probes.shift(Site.writer_in(writer.block, writer.name)).float()
            more = update.b @ (update.a @ (share * shift))

            def add(m: nn.Module, args: Any, out: Tensor, more: Tensor = more) -> Tensor:
                return torch.cat([out[:, :-1], out[:, -1:] + more], 1)

            hook = lm.hf.get_submodule(writer.module).register_forward_hook(add)
            stack.callback(hook.remove)
        yield


@contextmanager
def edited_at_the_end(lm: LM, delta: WeightDelta) -> Iterator[None]:
    """The delta at the last token alone: the tokens before are those of the unedited model."""
    with ExitStack() as stack:
        for name, update in delta:
            module = lm.hf.get_submodule(lm.anatomy.writer(name).module)

            def add(m: nn.Module, args: Any, out: Tensor, update: LowRank = update) -> Tensor:
                more = (args[0][:, -1:] @ update.a.T) @ update.b.T
                return torch.cat([out[:, :-1], out[:, -1:] + more], 1)

            stack.callback(module.register_forward_hook(add).remove)
        yield


def test_what_answers_cost_is_their_kl_here_and_on_the_way_to_the_refused(
    lm: LM, fitted: Fitted, delta: WeightDelta
) -> None:
    batch = lm.tokens(fitted.answered)
    base = lm.backend.logits(batch).log_softmax(-1)

    def kl() -> float:
        logits = lm.hf(input_ids=batch.ids, attention_mask=batch.mask).logits[:, -1]
        return (base.exp() * (base - logits.log_softmax(-1))).sum(-1).mean().item()

    with torch.no_grad(), edited_at_the_end(lm, delta):
        here = kl()
        with shifted(lm, fitted, delta, LEARNING.half_shift):
            there = kl()
    assert abs(there - here) > 0.01 * here
    found = loss(lm, bare(fitted), delta, 0.0)
    assert found == pytest.approx(here + LEARNING.half_weight * there, rel=1e-3)


def margins(lm: LM, fitted: Fitted, delta: WeightDelta) -> list[Tensor]:
    """Logits by which the unedited model's next token is ahead of all others under the edit, which acts on
    the opener and the token before: at the end of the prompt, and after the opener."""
    before = lm.tokens(fitted.requests)
    batch = lm.using(chat=lm.chat.saying(fitted.opener)).tokens(fitted.requests)
    said = int((batch.lengths - before.lengths)[0])
    base = lm.backend.logits(batch, None, tuple(range(-said - 1, 0)))
    with ExitStack() as stack:
        for name, update in delta:
            module = lm.hf.get_submodule(lm.anatomy.writer(name).module)

            def add(m: nn.Module, args: Any, out: Tensor, update: LowRank = update) -> Tensor:
                more = (args[0][:, -said - 1 :] @ update.a.T) @ update.b.T
                return torch.cat([out[:, : -said - 1], out[:, -said - 1 :] + more], 1)

            stack.callback(module.register_forward_hook(add).remove)
        edited = lm.backend.logits(batch, None, tuple(range(-said - 1, 0)))
    own = base.argmax(-1, keepdim=True)
    ahead = edited.gather(-1, own) - edited.scatter(-1, own, -torch.inf).amax(-1, True)
    return [ahead[:, 0, 0], ahead[:, -1, 0]]


def test_what_a_refusal_costs_is_half_its_first_token_and_half_its_opening(
    lm: LM, fitted: Fitted, delta: WeightDelta
) -> None:
    first, after = margins(lm, fitted, delta)
    lost = [
        nn.functional.softplus(m + LEARNING.clearance).mean().item()
        for m in (first, torch.minimum(first, after))
    ]
    assert lost[1] < lost[0]
    found = loss(lm, fitted, delta, 0.3) - loss(lm, fitted, delta, 0.0)
    assert found == pytest.approx(0.15 * (lost[0] + lost[1]), rel=1e-2)


@pytest.mark.parametrize("n", [1, 3])
def test_every_step_has_something_to_learn_from_however_few_prompts_there_are(
    lm: LM, fitted: Fitted, delta: WeightDelta, n: int
) -> None:
    few = bare(fitted).of(*(PromptSet(side[:n], "") for side in (REFUSE, COMPLY)))
    found = learned(lm, few, delta, 0.01, replace(LEARNING, steps=4))
    for name, update in found:
        assert update.b.isfinite().all()
        assert not torch.equal(update.b, delta.updates[name].b)
    assert loss(lm, few, found, 0.01) < loss(lm, few, delta, 0.01)


# --- what is learned -----------------------------------------------------------------------------


def test_texts_are_cut_at_places_of_their_own(lm: LM, fitted: Fitted) -> None:
    for batch, last in fitted.texts:
        assert len(set(batch.lengths.tolist())) > 1
        assert (batch.lengths.diff() >= 0).all()
        assert int(batch.lengths.min()) > last
    assert [last for _, last in fitted.texts] == [LAST_TOKENS, LAST_TOKENS, PASSAGE_TOKENS]
    decoded = lm.tokenizer.batch_decode(fitted.texts.chats.ids, skip_special_tokens=True)
    assert all(any(prompt in text for prompt in COMPLY) for text in decoded)


@pytest.mark.slow
def test_the_loss_falls_and_nothing_else_changes(
    lm: LM, fitted: Fitted, delta: WeightDelta
) -> None:
    before = state(lm.hf)
    found = learned(lm, fitted, delta, 0.01, LEARNING)
    assert_untouched(lm.hf, before)
    assert loss(lm, fitted, found, 0.01) < 0.9 * loss(lm, fitted, delta, 0.01)
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
        rate = LEARNING.probe_step * (1 + FINAL_STEP_SHARE) / 2
        assert moved.max() < 1.2 * rate * LEARNING.steps


def test_no_step_is_no_change(lm: LM, fitted: Fitted, delta: WeightDelta) -> None:
    found = learned(lm, fitted, delta, 0.01, replace(LEARNING, steps=0))
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
    """A part that answers to what answerable prompts share, added to one writer."""
    writer = lm.anatomy.block_writers[-1]
    part = delta.updates[writer.weight]
    mean = fitted.samples.rows(Site.writer_in(writer.block, writer.name), False).float().mean(0)
    noise = LowRank(4 * random_vector(len(part.b), 3).unsqueeze(1), mean.unsqueeze(0) / mean.norm())
    planted = replace(delta, updates={**delta.updates, writer.weight: part.plus(noise)})
    found = learned(lm, fitted, planted, 0.0, replace(LEARNING, steps=32))
    before, after = (loss(lm, fitted, made, 0.0) for made in (planted, found))
    assert before > 2 * loss(lm, fitted, delta, 0.0)
    assert after < 0.5 * before


@pytest.mark.slow
def test_a_refusal_that_is_worth_more_is_beaten_by_more(
    lm: LM, fitted: Fitted, delta: WeightDelta
) -> None:
    def ahead(found: WeightDelta) -> float:
        return loss(lm, fitted, found, 1.0) - loss(lm, fitted, found, 0.0)

    cheap, dear = (learned(lm, fitted, delta, weight, LEARNING) for weight in (0.0, 10.0))
    assert ahead(dear) < ahead(delta) < ahead(cheap) + 1e-6


@pytest.mark.slow
def test_without_an_opener_the_first_token_alone_counts(lm: LM) -> None:
    sides = PromptSet(REFUSE, "r"), PromptSet(COMPLY, "c")
    plain = replace(RECIPE, after_opener=None, opener_strength=None)
    found = finished(lm, fit(lm, *sides), plain)
    assert found.rank == 1
    assert found.recipe["learn"] == 0.01


def test_texts_stay_with_splits_that_are_joined_or_taken_apart(lm: LM, fitted: Fitted) -> None:
    sides = [PromptSet(side[:3], "") for side in (REFUSE, COMPLY)]
    half = fitted.of(*sides)
    assert half.answered.prompts == COMPLY[:3]
    assert half.texts is fitted.texts
    both = fit(lm, *sides, opener="I'm").joined(fitted)
    assert len(both.answered) == 8
    for mine, whole in zip(both.texts, fitted.texts, strict=True):
        assert torch.equal(mine[0].ids, whole[0].ids)


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
    with_bias = replace(delta, updates={**delta.updates, name: bias})
    found = learned(lm, fitted, with_bias, 0.01, replace(LEARNING, steps=1))
    assert found.updates[name] is bias
    assert all(not torch.equal(u.b, found.updates[k].b) for k, u in delta)
