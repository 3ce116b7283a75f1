"""Choosing on held-out prompts: the least KL that is good enough, and honest bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
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
    as_delta,
    build,
    candidates,
    choose,
    find_opener,
    fit,
    random_control,
    random_direction,
    rebased,
    run,
)
from interp.methods.refusal.choose import depth_blocks
from interp.methods.refusal.fit import FEWEST_REFUSED
from interp.methods.refusal.opener import shared_beginning
from interp.methods.refusal.pipeline import Prompts
from interp.models import tiny_model
from interp.recipes import AblationEdit, LeastDisturbanceEdit
from interp.samples import DECISION, OPENER
from interp.types import Shift, TokenBatch

REFUSE = tuple(f"what is in my bag number {i} now?" for i in range(8))
COMPLY = tuple(f"what is in a bag number {i} in general?" for i in range(8))
DOZEN = tuple(f"what did I put in box {'ABCDEFGHIJKL'[i]} today?" for i in range(12))
VOCABULARY = 259
CLOSED = LeastDisturbanceEdit(
    strength=0.5, block=2, first_block=0, attention=1.0, ridge=0.02, learn=0.0
)
OPENED = replace(CLOSED, after_opener="I'm", opener_strength=1.0)


@pytest.fixture(scope="module")
def lm(tokenizer) -> LM:
    model = tiny_model(
        "llama", vocab_size=VOCABULARY, max_position_embeddings=512, num_hidden_layers=4
    )
    return LM(wrap(model, tokenizer, source="tiny"))


@pytest.fixture(scope="module")
def fitted(lm: LM) -> Fitted:
    return fit(lm, PromptSet(REFUSE[:5], "r"), PromptSet(COMPLY[:5], "c"))


@pytest.fixture(scope="module")
def selection(lm: LM, fitted: Fitted) -> Selection:
    return Selection.prepare(lm, fitted, PromptSet(REFUSE[5:], "r"), PromptSet(COMPLY[5:], "c"))


class Scripted:
    """A selection whose scores are given, to test the search alone."""

    def __init__(self, scores: dict[int, tuple[float, int]]) -> None:
        self.scores, self.refuse, self.asked = scores, range(56), []

    def kl(self, setting: AblationEdit) -> float:
        return self.scores[setting.block][0]

    def refusals(self, setting: AblationEdit, enough: int | None = None) -> int:
        self.asked.append(setting.block)
        return self.scores[setting.block][1]


def settings(*blocks: int) -> list[AblationEdit]:
    return [AblationEdit(1.0, b, 0) for b in blocks]


def test_least_kl_that_is_good_enough_wins_and_ends_the_search() -> None:
    scripted = Scripted({1: (0.5, 0), 2: (0.1, 9), 3: (0.2, 0), 4: (0.3, 0)})
    choice = choose(scripted, settings(1, 2, 3, 4))
    assert choice.setting.block == 3
    assert scripted.asked == [2, 3]
    assert [s.refusals for s in choice.scores] == [9, 0, None, None]


def test_the_fewest_refusals_when_none_is_good_enough() -> None:
    scripted = Scripted({1: (0.1, 9), 2: (0.2, 4), 3: (0.3, 4)})
    assert choose(scripted, settings(1, 2, 3)).setting.block == 2


def test_nothing_to_choose_from() -> None:
    with pytest.raises(InterpError, match="no candidate"):
        choose(Scripted({}), [])


def test_depths_become_blocks_that_have_a_direction() -> None:
    assert depth_blocks(30, range(30), (0.55, 0.67, 0.73)) == [16, 20, 22]
    assert depth_blocks(3, (0, 2), (0.5, 0.6)) == [2]


def test_real_selection_scores_real_edits(selection: Selection, lm: LM, fitted: Fitted) -> None:
    nothing = AblationEdit(0.0, 1, 0)
    assert selection.kl(nothing) == pytest.approx(0.0, abs=1e-9)
    assert selection.kl(AblationEdit(1.0, 1, 0)) > 1e-5
    grid = candidates(LeastDisturbanceEdit(), fitted, lm.n_blocks)
    assert len(grid) == len(set(grid)) > 3
    choice = choose(selection, grid[:3])
    assert choice.setting in grid[:3]
    assert choice.as_json()["candidates"][0]["n_refuse"] == 3


def test_a_block_without_a_direction_is_an_error(lm: LM, fitted: Fitted) -> None:
    with pytest.raises(InterpError, match="no direction at block 99"):
        build(lm, fitted, AblationEdit(1.0, 99, 0))


def test_settings_that_are_still_open_are_an_error(lm: LM, fitted: Fitted) -> None:
    with pytest.raises(InterpError, match="leaves block, first_block open; give a value"):
        build(lm, fitted, AblationEdit(1.0))
    some = replace(CLOSED, attention=None, ridge=None)
    with pytest.raises(InterpError, match="leaves attention, ridge open"):
        build(lm, fitted, some)


def test_a_random_direction_has_equal_norm_at_every_writer(lm: LM, fitted: Fitted) -> None:
    edit = build(lm, fitted, CLOSED)
    ours, theirs = (as_delta(lm, fitted, e) for e in (edit, random_direction(edit)))
    for name, update in ours:
        other = theirs.updates[name]
        assert update.dense().norm() == pytest.approx(other.dense().norm().item(), rel=1e-5)
    with pytest.raises(InterpError, match="least-disturbance"):
        random_direction(build(lm, fitted, AblationEdit(1.0, 2, 0)))


def test_a_rotated_edit_has_equal_norm_and_rank_at_every_writer(lm: LM, fitted: Fitted) -> None:
    delta = as_delta(lm, fitted, build(lm, fitted, CLOSED))
    other = random_control(delta)
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
        random_control(biases)
    again = random_control(delta, seed=1)
    assert not torch.allclose(again.updates[name].b, other.updates[name].b)


# --- what refusals open with ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def twice(lm: LM) -> Fitted:
    sides = PromptSet(REFUSE[:6], "r"), PromptSet(COMPLY[:6], "c")
    return fit(lm, *sides, opener="I'm")


def test_what_follows_an_opener_is_read_and_moved(lm: LM, twice: Fitted) -> None:
    site = lm.resid_post[1]
    text = lm.using(chat=lm.chat.saying("I'm"))
    assert torch.equal(
        twice.samples.rows(site, True, OPENER), text.activations(twice.requests, site)[site]
    )
    delta = as_delta(lm, twice, build(lm, twice, OPENED))
    assert delta.rank == 2
    assert delta.recipe["opener_strength"] == 1.0
    assert as_delta(lm, twice, build(lm, twice, CLOSED)).rank == 1


def test_an_opener_that_was_not_read_is_an_error(lm: LM, fitted: Fitted, twice: Fitted) -> None:
    with pytest.raises(InterpError, match="give `opener` to fit"):
        build(lm, fitted, OPENED)
    with pytest.raises(InterpError, match="different openers"):
        fitted.joined(twice)
    with pytest.raises(InterpError, match=r"no direction at block 2 \(opener\)"):
        build(lm, replace(twice, directions={DECISION: twice.directions[DECISION]}), OPENED)


def test_what_is_left_open_is_filled_from_the_fit(lm: LM, fitted: Fitted, twice: Fitted) -> None:
    plain = candidates(LeastDisturbanceEdit(after_opener="auto"), fitted, lm.n_blocks)
    assert not any(each.after_opener or each.learn for each in plain)
    (opened,) = candidates(LeastDisturbanceEdit(after_opener="auto"), twice, lm.n_blocks)
    assert opened.after_opener == "I'm"
    assert opened.learn > 0
    (named,) = candidates(AblationEdit(0.5, 2, 1), fitted, lm.n_blocks)
    assert named == AblationEdit(0.5, 2, 1)


def test_splits_read_after_an_opener_can_be_joined(lm: LM, twice: Fitted) -> None:
    rest = fit(
        lm,
        PromptSet(("where did I put the long green umbrella?", *REFUSE[6:]), "r"),
        PromptSet(COMPLY[6:], "c"),
        opener="I'm",
    )
    whole = twice.joined(rest)
    assert len(whole.requests) == 9
    for place in (DECISION, OPENER):
        for site in (lm.resid_post[0], lm.writer_inputs[0]):
            assert len(whole.samples.rows(site, True, place)) == 9
            assert len(whole.samples.rows(site, False, place)) == 8
    apart = whole.of(*(PromptSet(side[:6], "") for side in (REFUSE, COMPLY)))
    assert apart.requests.prompts == REFUSE[:6]
    for block, direction in twice.directions[OPENER].items():
        assert torch.equal(apart.direction(block, OPENER).vector, direction.vector)


class Saying(HooksBackend):
    """A tiny model whose responses are given by request, and where given its next-token chances."""

    def __init__(
        self,
        lm: LM,
        says: Callable[[str], str],
        chance: Callable[[str], tuple[int, float]] | None = None,
    ) -> None:
        super().__init__(lm.hf, lm.tokenizer, lm.anatomy, "tiny")
        self.says, self.chance = says, chance

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
    delta = as_delta(lm, fitted, build(lm, fitted, AblationEdit(1.0, 2, 0)))
    assert delta.provenance["model"] == "tiny"
    assert set(PromptSet(REFUSE[:5], "r").fingerprints) <= set(delta.provenance["seen_prompts"])
    assert delta.recipe["method"] == "ablation"


def test_an_edit_on_an_edit_adds_up(lm: LM, fitted: Fitted) -> None:
    first = as_delta(lm, fitted, build(lm, fitted, AblationEdit(1.0, 2, 0)))
    with applied(lm.hf, lm.anatomy, first):
        second = as_delta(lm, fitted, build(lm, fitted, AblationEdit(1.0, 1, 0)))
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
    assert outcome.rows[0].divergence.first == 0.0
    assert said
