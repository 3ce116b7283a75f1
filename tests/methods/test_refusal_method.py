"""Choosing on held-out prompts: the least KL that is good enough, and honest bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.backends.hooks import HooksBackend
from interp.backends.opening import wrap
from interp.data.prompts import PromptSet
from interp.edits import applied
from interp.errors import InterpError
from interp.lm import LM
from interp.methods.refusal import (
    Fitted,
    Selection,
    Setting,
    as_delta,
    build,
    candidates,
    choose,
    find_opener,
    fit,
    random_control,
    rebased,
    refit_on_remaining,
    rotated,
    run,
)
from interp.methods.refusal.choose import depth_blocks
from interp.methods.refusal.fit import FEWEST_REFUSED
from interp.methods.refusal.opener import shared_beginning
from interp.methods.refusal.pipeline import Prompts
from interp.models import tiny_model
from interp.types import Shift, TokenBatch

REFUSE = tuple(f"what is in my bag number {i} now?" for i in range(8))
COMPLY = tuple(f"what is in a bag number {i} in general?" for i in range(8))
DOZEN = tuple(f"what did I put in box {'ABCDEFGHIJKL'[i]} today?" for i in range(12))
VOCABULARY = 259


@pytest.fixture(scope="module")
def lm(tokenizer) -> LM:
    model = tiny_model(
        "llama", vocab_size=VOCABULARY, max_position_embeddings=512, num_hidden_layers=4
    )
    return LM(wrap(model, tokenizer, source="tiny"))


@pytest.fixture(scope="module")
def fitted(lm: LM) -> Fitted:
    return fit(lm, PromptSet(REFUSE[:5], "r"), PromptSet(COMPLY[:5], "c"), response_tokens=2)


@pytest.fixture(scope="module")
def selection(lm: LM, fitted: Fitted) -> Selection:
    return Selection.prepare(lm, fitted, PromptSet(REFUSE[5:], "r"), PromptSet(COMPLY[5:], "c"))


class Scripted:
    """A selection whose scores are given, to test the search alone."""

    def __init__(self, scores: dict[int, tuple[float, int]]) -> None:
        self.scores, self.refuse, self.asked = scores, range(56), []

    def kl(self, setting: Setting) -> float:
        return self.scores[setting.direction_block][0]

    def refusals(self, setting: Setting, enough: int | None = None) -> int:
        self.asked.append(setting.direction_block)
        return self.scores[setting.direction_block][1]


def settings(*blocks: int) -> list[Setting]:
    return [Setting("ablation", b) for b in blocks]


def test_least_kl_that_is_good_enough_wins_and_ends_the_search() -> None:
    scripted = Scripted({1: (0.5, 0), 2: (0.1, 9), 3: (0.2, 0), 4: (0.3, 0)})
    choice = choose(scripted, settings(1, 2, 3, 4))
    assert choice.setting.direction_block == 3
    assert scripted.asked == [2, 3]
    assert [s.refusals for s in choice.scores] == [9, 0, None, None]


def test_the_fewest_refusals_when_none_is_good_enough() -> None:
    scripted = Scripted({1: (0.1, 9), 2: (0.2, 4), 3: (0.3, 4)})
    assert choose(scripted, settings(1, 2, 3)).setting.direction_block == 2


def test_nothing_to_choose_from() -> None:
    with pytest.raises(InterpError, match="no candidate"):
        choose(Scripted({}), [])


def test_depths_become_blocks_that_have_a_direction() -> None:
    assert depth_blocks(30, range(30), (0.55, 0.67, 0.73)) == [16, 20, 22]
    assert depth_blocks(3, (0, 2), (0.5, 0.6)) == [2]


def test_real_selection_scores_real_edits(selection: Selection, lm: LM, fitted: Fitted) -> None:
    nothing = Setting("ablation", 1, strength=0.0)
    assert selection.kl(nothing) == pytest.approx(0.0, abs=1e-9)
    assert selection.kl(Setting("ablation", 1)) > 1e-5
    grid = list(candidates(lm, fitted, "least-disturbance"))
    assert len(grid) == len(set(grid)) > 3
    choice = choose(selection, grid[:3])
    assert choice.setting in grid[:3]
    assert choice.as_json()["candidates"][0]["n_refuse"] == 3


def test_unknown_method_and_block(lm: LM, fitted: Fitted) -> None:
    with pytest.raises(InterpError, match="no method"):
        build(lm, fitted, Setting("magic", 1))
    with pytest.raises(InterpError, match="no direction at block 99"):
        build(lm, fitted, Setting("ablation", 99))


def test_random_control_has_equal_norm_at_every_writer(lm: LM, fitted: Fitted) -> None:
    edit = build(lm, fitted, Setting("least-disturbance", 2))
    control = random_control(edit)
    ours, theirs = (as_delta(lm, fitted, e) for e in (edit, control))
    for name, update in ours:
        other = theirs.updates[name]
        assert update.dense().norm() == pytest.approx(other.dense().norm().item(), rel=1e-5)
    some = next(iter(edit.writers))
    cosine = edit.writers[some].unit @ control.writers[some].unit
    assert abs(cosine) < 0.9
    with pytest.raises(InterpError, match="least-disturbance"):
        random_control(build(lm, fitted, Setting("ablation", 2)))


def test_a_rotated_edit_has_equal_norm_and_rank_at_every_writer(lm: LM, fitted: Fitted) -> None:
    delta = as_delta(lm, fitted, build(lm, fitted, Setting("least-disturbance", 2)))
    other = rotated(delta)
    for name, update in delta:
        turned = other.updates[name]
        assert turned.rank == update.rank
        assert turned.dense().norm() == pytest.approx(update.dense().norm().item(), rel=1e-5)
        assert torch.equal(turned.a, update.a)
        cosine = torch.cosine_similarity(turned.b.flatten(), update.b.flatten(), 0)
        assert abs(cosine) < 0.9
    written = [u.b[:, 0] for _, u in other]
    assert abs(torch.cosine_similarity(written[0], written[-1], 0)) > 0.999  # still one direction
    biases = replace(delta, updates={"b": Shift(torch.ones(4))})
    with pytest.raises(InterpError, match="one stream"):
        rotated(biases)
    again = rotated(delta, seed=1)
    assert not torch.allclose(again.updates[name].b, other.updates[name].b)


# --- what refusals open with ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def twice(lm: LM) -> Fitted:
    sides = PromptSet(REFUSE[:6], "r"), PromptSet(COMPLY[:6], "c")
    return fit(lm, *sides, response_tokens=2, opener="I'm")


def test_what_follows_an_opener_is_read_and_moved(lm: LM, twice: Fitted) -> None:
    assert twice.opened is not None
    assert twice.opened.requests is not None
    assert twice.requests is not None
    ids = lm.tokenizer("I'm", add_special_tokens=False).input_ids
    assert torch.equal(twice.opened.requests.ids[:, -len(ids) :], torch.tensor([ids] * 6))
    assert torch.equal(twice.opened.requests.ids[:, : -len(ids)], twice.requests.ids)
    setting = Setting("least-disturbance", 2, strength=0.5, opened=1.0)
    delta = as_delta(lm, twice, build(lm, twice, setting))
    assert delta.rank == 2
    assert delta.recipe["opened"] == 1.0
    plain = as_delta(lm, twice, build(lm, twice, replace(setting, opened=0.0)))
    assert plain.rank == 1


def test_an_opener_that_was_not_read_is_an_error(lm: LM, fitted: Fitted, twice: Fitted) -> None:
    setting = Setting("least-disturbance", 2, opened=1.0, again=0.5)
    with pytest.raises(InterpError, match="give `opener` to fit"):
        build(lm, fitted, setting)
    delta = as_delta(lm, twice, build(lm, twice, setting))
    with pytest.raises(InterpError, match="give `opener` to fit"):
        refit_on_remaining(lm, fitted, setting, delta)
    with pytest.raises(InterpError, match="different openers"):
        fitted.joined(twice)
    without = replace(twice, opened=replace(twice.opened, directions={}))
    with pytest.raises(InterpError, match="no direction after"):
        build(lm, without, setting)


def test_splits_read_after_an_opener_can_be_joined(lm: LM, twice: Fitted) -> None:
    rest = fit(
        lm,
        PromptSet(("where did I put the long green umbrella?", *REFUSE[6:]), "r"),
        PromptSet(COMPLY[6:], "c"),
        response_tokens=0,
        opener="I'm",
    )
    whole = twice.joined(rest)
    name = lm.anatomy.block_writers[0].name
    assert whole.statistics.opened is whole.opened.statistics
    assert len(whole.opened.statistics.comply[name]) == 8
    assert len(whole.requests) == len(whole.opened.requests) == 9


class Counting:
    """A judge that calls so many responses refusals, the first ones, each time it is asked."""

    name = "counting"

    def __init__(self, *counts: int) -> None:
        self.left, self.judged = list(counts), []

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        self.judged.append(len(responses))
        count = self.left.pop(0)
        return [float(i < count) for i in range(len(responses))]


class Saying(HooksBackend):
    """A tiny model whose responses are given by request, and where given its next-token chances."""

    def __init__(
        self,
        lm: LM,
        says: Callable[[str], str],
        chance: Callable[[str], tuple[int, float]] | None = None,
    ) -> None:
        super().__init__(lm.hf, lm.tokenizer, lm.anatomy, "tiny")
        self.says, self.chance, self.captured = says, chance, []

    def texts(self, batch: TokenBatch) -> list[str]:
        return self.tokenizer.batch_decode(batch.ids, skip_special_tokens=True)

    def generate(self, batch: TokenBatch, *args: Any, tokens: int, **more: Any) -> torch.Tensor:
        said = [self.tokenizer(self.says(text)).input_ids for text in self.texts(batch)]
        return torch.tensor(
            [(ids + [self.tokenizer.eos_token_id] * tokens)[:tokens] for ids in said]
        )

    def logits(self, batch: TokenBatch, *args: Any, **more: Any) -> torch.Tensor:
        if self.chance is None:
            return super().logits(batch, *args, **more)
        rows = []
        for token, p in map(self.chance, self.texts(batch)):
            row = torch.full((VOCABULARY,), (1 - p) / (VOCABULARY - 1))
            row[token] = p
            rows.append(row.log())
        return torch.stack(rows)

    def capture(self, batch: TokenBatch, *args: Any, **more: Any) -> Any:
        self.captured.append(len(batch))
        return super().capture(batch, *args, **more)


@pytest.fixture(scope="module")
def dozen(lm: LM) -> Fitted:
    """Enough requests to fit again on."""
    sides = PromptSet(DOZEN, "r"), PromptSet(COMPLY, "c")
    return fit(lm, *sides, response_tokens=0, opener="I'm")


AGAIN = Setting("least-disturbance", 2, strength=0.5, opened=1.0, again=0.5)


def test_it_is_fitted_again_on_what_is_left_until_hardly_any_is(lm: LM, dozen: Fitted) -> None:
    first = as_delta(lm, dozen, build(lm, dozen, AGAIN))
    judge = Counting(10, FEWEST_REFUSED)
    found = refit_on_remaining(lm, replace(dozen, judge=judge), AGAIN, first, rounds=2)
    assert judge.judged == [12, 10]
    assert found.rank == 6  # two for the first edit and for each round
    assert found.base == first.base
    judge = Counting(10, 10)
    assert refit_on_remaining(lm, replace(dozen, judge=judge), AGAIN, first, rounds=1).rank == 4
    assert judge.judged == [12]
    few = replace(dozen, judge=Counting(FEWEST_REFUSED - 1))
    assert refit_on_remaining(lm, few, AGAIN, first) is first


def test_what_only_begins_as_a_refusal_counts_at_the_first_token_alone(
    lm: LM, dozen: Fitted
) -> None:
    """Eight requests are refused, two more answered after the opener of a refusal."""
    first = as_delta(lm, dozen, build(lm, dozen, AGAIN))

    def says(prompt: str) -> str:
        number = next(i for i, request in enumerate(DOZEN) if request in prompt)
        return " I'm sorry" if number < 8 else "I'm glad" if number < 10 else "Here"

    saying = Saying(lm, says)
    refit_on_remaining(LM(saying), dozen, AGAIN, first, rounds=1)
    assert saying.captured == [10, 8]


def test_fitting_again_moves_the_mean_of_what_is_left(lm: LM, dozen: Fitted) -> None:
    """At the first edited block, nothing before which is edited: ``(W + ΔW₁ + ΔW₂)Δ'`` along u is that of
    the first edit times one minus the share."""
    setting = replace(AGAIN, attention=0.0, again=0.8)
    first = as_delta(lm, dozen, build(lm, dozen, setting))
    judged = replace(dozen, judge=Counting(9))
    both = refit_on_remaining(lm, judged, setting, first, rounds=1)
    writer = next(w for w in lm.anatomy.block_writers if w.kind != "attention")
    rows = dozen.statistics
    left = rows.refuse[writer.name][:9].double().mean(0) - rows.comply[writer.name].double().mean(0)
    u = dozen.directions[2].vector.double()
    weight = lm.hf.get_parameter(writer.weight).detach().double()
    along = [
        (u @ (weight + delta.updates[writer.weight].stored().double()) @ left).item()
        for delta in (first, both)
    ]
    assert abs(along[0]) > 1e-4
    assert along[1] == pytest.approx((1 - 0.8 * 0.5) * along[0], rel=1e-3)


def test_the_shared_beginning_is_what_half_of_the_rows_share() -> None:
    rows = [[5, 6, 7, 1], [5, 6, 7, 2], [5, 6, 8, 3], [9, 6]]
    assert shared_beginning(rows) == [5, 6, 7]
    assert shared_beginning([[1], [2], [3]]) == []
    assert shared_beginning([]) == []
    assert len(shared_beginning([list(range(20))] * 3)) == 5


def test_the_opener_is_where_the_classes_part(lm: LM) -> None:
    """After "I" both classes go on alike, after "I a" least."""
    refusal = "I am sorry, I cannot"
    ids = lm.tokenizer(refusal, add_special_tokens=False).input_ids
    beginnings = {lm.tokenizer.decode(ids[:n]): ids[n] for n in range(1, 5)}

    def find(refused: int, parts: dict[str, float]) -> str:
        def says(prompt: str) -> str:
            return refusal if any(request in prompt for request in DOZEN[:refused]) else "It is red"

        def chance(text: str) -> tuple[int, float]:
            said = max((b for b in beginnings if text.endswith(b)), key=len)
            more = parts.get(said, 0.0) if any(r in text for r in DOZEN[:refused]) else 0.0
            return beginnings[said], 0.2 + more

        sides = PromptSet(DOZEN, "r"), PromptSet(COMPLY, "c")
        return find_opener(LM(Saying(lm, says, chance)), *sides)

    parted = {lm.tokenizer.decode(ids[:n]): p for n, p in ((2, 0.3), (3, 0.6))}
    assert find(FEWEST_REFUSED, parted) == lm.tokenizer.decode(ids[:3])
    assert find(FEWEST_REFUSED, {}) == ""
    assert find(FEWEST_REFUSED - 1, parted) == ""


def test_a_delta_remembers_its_prompts(lm: LM, fitted: Fitted) -> None:
    delta = as_delta(lm, fitted, build(lm, fitted, Setting("ablation", 2)))
    assert delta.provenance["model"] == "tiny"
    assert set(PromptSet(REFUSE[:5], "r").fingerprints) <= set(delta.provenance["seen_prompts"])
    assert delta.recipe["method"] == "ablation"


def test_an_edit_on_an_edit_adds_up(lm: LM, fitted: Fitted) -> None:
    first = as_delta(lm, fitted, build(lm, fitted, Setting("ablation", 2)))
    with applied(lm.hf, lm.anatomy, first):
        second = as_delta(lm, fitted, build(lm, fitted, Setting("ablation", 1)))
        ids = torch.arange(3, 20)[None]
        with applied(lm.hf, lm.anatomy, second):
            stacked = lm.hf(ids).logits
    both = first.compose(rebased(second, first))
    with applied(lm.hf, lm.anatomy, both):
        summed = lm.hf(ids).logits
    assert (stacked - summed).abs().max() < 1e-4


@pytest.mark.slow
def test_pipeline_writes_everything(tmp_path: Path, chat_dir: Path) -> None:
    from interp import open_model

    part = PromptSet(REFUSE, "r"), PromptSet(COMPLY, "c")
    said: list[str] = []
    out = tmp_path / "out"
    outcome = run(open_model(str(chat_dir)), Prompts(part, part, part), out, say=said.append)
    names = [row.name for row in outcome.rows]
    assert names == [
        "original", "directional ablation", "least-disturbance",
        "random direction",
    ]  # fmt: skip
    assert outcome.exports["delta"]["verdict"] == outcome.exports["peft"]["verdict"] == "verified"
    assert all(path.exists() for path in outcome.paths.values())
    assert outcome.as_json()["seconds"].keys() >= {"fit", "select", "report", "export"}
    assert outcome.rows[0] == replace(outcome.rows[0], kl_first=0.0)
    assert said
