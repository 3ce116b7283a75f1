"""Learned edits: what only disturbs is turned down, what removes is kept, all else is as it was."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from toolbox import assert_untouched, random_vector, state

from interp.backends.opening import wrap
from interp.backends.protocol import Backend
from interp.backends.tail import Tail
from interp.data.prompts import PromptSet
from interp.data.text import fit_passages
from interp.errors import InterpError
from interp.methods.refusal import (
    Fitted,
    Selection,
    Setting,
    as_delta,
    build,
    fit,
    learned,
    prose,
)
from interp.methods.refusal import learning as module
from interp.methods.refusal.again import finished
from interp.methods.refusal.prose import LAST, Cut
from interp.models import tiny_model
from interp.types import LowRank, Shift, TokenBatch, WeightDelta

REFUSE = tuple(f"what is in my bag number {i} now?" for i in range(8))
COMPLY = tuple(f"what is in a {'big ' * (i % 3)}bag, {i}?" for i in range(8))
SETTING = Setting("least-disturbance", 2, strength=0.5, opened=1.0)


@pytest.fixture(scope="module")
def backend(tokenizer) -> Backend:
    return wrap(tiny_model("llama", vocab_size=259, num_hidden_layers=3), tokenizer, source="tiny")


@pytest.fixture(scope="module")
def fitted(backend: Backend) -> Fitted:
    sides = PromptSet(REFUSE, "r"), PromptSet(COMPLY, "c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prose, "fit_passages", lambda: fit_passages()[:2])
        return fit(backend, *sides, prose=sides[1], response_tokens=2, opener="I'm")


@pytest.fixture(scope="module")
def delta(backend: Backend, fitted: Fitted) -> WeightDelta:
    return as_delta(backend, fitted, build(backend, fitted, SETTING), "tiny")


def loss(backend: Backend, fitted: Fitted, delta: WeightDelta, worth: float) -> float:
    """What is minimised, anew and over all turns, under a delta that is in the weights."""
    terms = all_terms(backend, fitted, delta, worth)
    with torch.no_grad(), backend.editing(delta):
        losses = [term.loss(term.tail.logits(backend.model)).item() for term in terms]
    return sum(losses) / module.TURNS


def all_terms(
    backend: Backend, fitted: Fitted, delta: WeightDelta, worth: float
) -> list[module._Same | module._Gone]:
    made = (module._terms(backend, fitted, delta, worth, k, 3) for k in range(module.TURNS))
    return [term for turn in made for term in turn]


def test_responses_are_kept_cut_at_places_of_their_own(backend: Backend, fitted: Fitted) -> None:
    chats, texts, pieces = fitted.cut.chats, fitted.cut.texts, fitted.cut.prose
    assert chats is not None
    assert texts is not None
    assert pieces is not None
    assert len(pieces) == 4
    assert len(set(chats.lengths.tolist())) > 1
    assert (chats.lengths.diff() >= 0).all()
    for batch in (chats, texts, pieces):
        assert int(batch.lengths.min()) > LAST
    decoded = backend.tokenizer.batch_decode(chats.ids, skip_special_tokens=True)
    assert all(any(prompt in text for prompt in COMPLY) for text in decoded)


def test_the_loss_falls_and_nothing_else_changes(
    backend: Backend, fitted: Fitted, delta: WeightDelta
) -> None:
    before = state(backend.model)
    found = learned(backend, fitted, delta, 0.01, batch_size=3)
    assert_untouched(backend.model, before)
    assert loss(backend, fitted, found, 0.01) < 0.9 * loss(backend, fitted, delta, 0.01)
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
        rate = module.READING * (1 + module.SLOWEST) / 2
        assert moved.max() < 1.2 * rate * module.STEPS


def test_turns_deal_everything_once(backend: Backend, fitted: Fitted, delta: WeightDelta) -> None:
    """Every prompt is in one turn, and each turn weighs what all together would."""
    seen: list[str] = []
    for turn in range(module.TURNS):
        terms = module._terms(backend, fitted, delta, 0.3, turn, 1)
        first = [
            t for t in terms if isinstance(t, module._Same) and t.tail.keep == 1 and not t.share
        ]
        gone = [t for t in terms if isinstance(t, module._Gone)]
        assert sum(t.weight for t in first) == pytest.approx(1.0)
        assert sum(t.weight for t in gone) == pytest.approx(0.3)
        for term in (*first, *gone):
            seen += backend.tokenizer.batch_decode(term.tail.batch.ids, skip_special_tokens=True)
    assert all(sum(prompt in text for text in seen) == 1 for prompt in (*REFUSE, *COMPLY))


@pytest.mark.parametrize("n", [0, 1, 3, 8, 11])
def test_every_turn_has_rows_however_few_there_are(n: int) -> None:
    turns = [module._dealt(torch.arange(n), turn).tolist() for turn in range(module.TURNS)]
    assert all(turns) == bool(n)
    assert {row for turn in turns for row in turn} == set(range(n))
    assert n < module.TURNS or sum(map(len, turns)) == n


def test_no_step_is_no_change(backend: Backend, fitted: Fitted, delta: WeightDelta) -> None:
    found = learned(backend, fitted, delta, 0.01, steps=0)
    for name, update in found:
        before = delta.updates[name]
        assert isinstance(update, LowRank)
        assert isinstance(before, LowRank)
        assert torch.equal(update.a, before.a)
        assert torch.equal(update.b, before.b)


def test_a_part_that_only_disturbs_disturbs_less(
    backend: Backend, fitted: Fitted, delta: WeightDelta
) -> None:
    """A part that answers to what comply prompts share, added to one writer."""
    writer = backend.anatomy.block_writers[-1]
    name = writer.weight
    part = delta.updates[name]
    mean = fitted.statistics.comply[writer.name].float().mean(0)
    noise = LowRank(4 * random_vector(len(part.b), 3).unsqueeze(1), mean.unsqueeze(0) / mean.norm())
    planted = replace(delta, updates={**delta.updates, name: part.plus(noise)})
    found = learned(backend, fitted, planted, 0.0, steps=32, batch_size=4)
    before, after = (loss(backend, fitted, made, 0.0) for made in (planted, found))
    assert before > 2 * loss(backend, fitted, delta, 0.0)
    assert after < 0.5 * before


def test_a_refusal_that_is_worth_more_is_beaten_by_more(
    backend: Backend, fitted: Fitted, delta: WeightDelta
) -> None:
    def ahead(found: WeightDelta) -> float:
        return loss(backend, fitted, found, 1.0) - loss(backend, fitted, found, 0.0)

    cheap, dear = (learned(backend, fitted, delta, worth, steps=24) for worth in (0.0, 10.0))
    assert ahead(dear) < ahead(delta) < ahead(cheap) + 1e-6


def test_a_refusal_counts_half_where_its_first_token_wins_and_half_where_all_do() -> None:
    logits = torch.zeros(2, 2, 5)
    logits[0, 0, 1] = logits[0, 1, 2] = logits[1, 0, 1] = 3.0
    logits[1, 1, 4] = 3.0  # another token after the opener: no refusal
    places, tokens = torch.tensor([[0, 1]] * 2), torch.tensor([[1, 2]] * 2)
    ids = torch.ones(2, 2, dtype=torch.long)
    term = module._Gone(Tail(TokenBatch(ids, ids), 2, None), places, tokens, 1.0)
    soft = torch.nn.functional.softplus
    first, whole = torch.tensor([3.0, 3.0]), torch.tensor([3.0, -3.0])
    lost = [
        soft(module.STEEPNESS * (m + module.CLEARANCE)).sum() / module.STEEPNESS
        for m in (first, whole)
    ]
    expected = module.FIRST * lost[0] + (1 - module.FIRST) * lost[1]
    torch.testing.assert_close(term.loss(logits), expected)


def test_without_an_opener_the_first_token_alone_counts(backend: Backend) -> None:
    sides = PromptSet(REFUSE, "r"), PromptSet(COMPLY, "c")
    fitted = fit(backend, *sides, response_tokens=0)
    setting = replace(SETTING, opened=0.0, worth=0.01)
    found = finished(backend, fitted, setting, "tiny", batch_size=3)
    assert found.rank == 1
    assert found.recipe["worth"] == 0.01


def test_a_choice_fits_once_what_only_the_worth_tells_apart(
    backend: Backend, fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def counted(*args: object, **kwargs: object) -> WeightDelta:
        made.append(args[2])
        return learned(*args, **{**kwargs, "steps": 1})  # type: ignore[arg-type]

    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules["interp.methods.refusal.choose"], "learned", counted)
    sides = PromptSet(REFUSE[:3], "r"), PromptSet(COMPLY[:3], "c")
    selection = Selection.prepare(backend, fitted, *sides)
    settings = [replace(SETTING, again=0.5, worth=worth) for worth in (0.01, 0.1)]
    kl = [selection.kl(setting) for setting in settings]
    assert kl[0] != kl[1]
    assert len(made) == 2
    assert made[0] is made[1]
    selection.refusals(settings[0])
    assert len(made) == 2


def test_a_fit_without_its_prompts_is_an_error(
    backend: Backend, fitted: Fitted, delta: WeightDelta
) -> None:
    with pytest.raises(InterpError, match="does not know"):
        learned(backend, replace(fitted, answered=None), delta, 0.01)


def test_prompts_stay_with_splits_that_are_joined_or_taken_apart(fitted: Fitted) -> None:
    half = fitted.of_pairs(torch.arange(3))
    assert half.answered is not None
    assert len(half.answered) == 3
    plain = replace(fitted, statistics=replace(fitted.statistics, prose={}), cut=Cut())
    both = plain.joined(fitted)
    assert both.answered is not None
    assert len(both.answered) == 16
    assert both.cut is fitted.cut


def test_edits_are_as_they_were_after_an_error(
    backend: Backend, fitted: Fitted, delta: WeightDelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(backend.model)
    monkeypatch.setattr(module._Gone, "loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        learned(backend, fitted, delta, 0.01)
    assert_untouched(backend.model, before)
    assert all(p.requires_grad for p in backend.model.parameters())


def test_a_reading_toward_the_refused_requests_is_the_mean_shift(
    backend: Backend, fitted: Fitted, delta: WeightDelta
) -> None:
    """Moved the whole way, a comply prompt reads what it read and what the shift of the means reads."""
    writer = backend.anatomy.block_writers[-1]
    name = writer.weight
    (part,) = module._parts(backend, fitted, {name: delta.updates[name]}).values()
    refuse, comply = (
        getattr(fitted.statistics, side)[writer.name].float().mean(0)
        for side in ("refuse", "comply")
    )
    linear = torch.nn.Identity()
    plain = torch.zeros(len(part.b))
    part.share = 1.0
    found = part.act(linear, (comply,), {}, plain)
    part.share = 0.0
    torch.testing.assert_close(found, part.act(linear, (refuse,), {}, plain), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, part.act(linear, (comply,), {}, plain), atol=1e-3)


def test_doubt_makes_what_is_read_as_half_a_refusal_cost_less(
    backend: Backend, fitted: Fitted, delta: WeightDelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubted(found: WeightDelta) -> float:
        terms = [t for t in all_terms(backend, fitted, delta, 0.0) if t.share]
        parts = module._parts(backend, fitted, dict(found.updates))  # type: ignore[arg-type]
        for part in parts.values():
            part.share = module.TOWARD
        with torch.no_grad(), module._acting(backend, parts):
            losses = [t.loss(t.tail.logits(backend.model)).item() for t in terms]
        return sum(losses) / module.DOUBT

    careful = learned(backend, fitted, delta, 0.01, steps=24)
    before = doubted(delta)
    monkeypatch.setattr(module, "DOUBT", 1e-9)
    careless = learned(backend, fitted, delta, 0.01, steps=24)
    monkeypatch.undo()
    assert doubted(careful) < min(before, doubted(careless))


def test_biases_stay_as_they_are(delta: WeightDelta) -> None:
    bias = {"a.bias": Shift(torch.ones(4))}
    parts, rest = module._parted(replace(delta, updates={**delta.updates, **bias}))
    assert parts.keys() == delta.updates.keys()
    assert rest is not None
    assert rest.updates.keys() == bias.keys()
