"""Choosing on held-out prompts: the least KL that is good enough, and honest bookkeeping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp.backends.opening import wrap
from interp.backends.protocol import Backend
from interp.data.prompts import PromptSet
from interp.edits import applied
from interp.errors import InterpError
from interp.methods.refusal import (
    Fitted,
    Selection,
    Setting,
    as_delta,
    build,
    candidates,
    choose,
    fit,
    random_control,
    rebased,
    run,
)
from interp.methods.refusal.choose import depth_blocks
from interp.methods.refusal.pipeline import Prompts
from interp.models import tiny_model

REFUSE = tuple(f"what is in my bag number {i} now?" for i in range(8))
COMPLY = tuple(f"what is in a bag number {i} in general?" for i in range(8))


@pytest.fixture(scope="module")
def backend(tokenizer) -> Backend:
    model = tiny_model("llama", vocab_size=259, max_position_embeddings=512, num_hidden_layers=4)
    return wrap(model, tokenizer, source="tiny")


@pytest.fixture(scope="module")
def fitted(backend: Backend) -> Fitted:
    return fit(backend, PromptSet(REFUSE[:5], "r"), PromptSet(COMPLY[:5], "c"), response_tokens=2)


@pytest.fixture(scope="module")
def selection(backend: Backend, fitted: Fitted) -> Selection:
    return Selection.prepare(
        backend, fitted, PromptSet(REFUSE[5:], "r"), PromptSet(COMPLY[5:], "c")
    )


class Scripted:
    """A selection whose scores are given, to test the search alone."""

    def __init__(self, scores: dict[int, tuple[float, int]]) -> None:
        self.scores, self.refuse, self.asked = scores, range(56), []

    def kl(self, setting: Setting) -> float:
        return self.scores[setting.direction_block][0]

    def refusals(self, setting: Setting) -> int:
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


def test_real_selection_scores_real_edits(
    selection: Selection, backend: Backend, fitted: Fitted
) -> None:
    nothing = Setting("ablation", 1, strength=0.0)
    assert selection.kl(nothing) == pytest.approx(0.0, abs=1e-9)
    assert selection.kl(Setting("ablation", 1)) > 1e-5
    grid = list(candidates(backend, fitted, "least-disturbance"))
    assert len(grid) == len(set(grid)) > 3
    choice = choose(selection, grid[:3])
    assert choice.setting in grid[:3]
    assert choice.as_json()["candidates"][0]["n_refuse"] == 3


def test_unknown_method_and_block(backend: Backend, fitted: Fitted) -> None:
    with pytest.raises(InterpError, match="no method"):
        build(backend, fitted, Setting("magic", 1))
    with pytest.raises(InterpError, match="no direction at block 99"):
        build(backend, fitted, Setting("ablation", 99))


def test_random_control_has_equal_norm_at_every_writer(backend: Backend, fitted: Fitted) -> None:
    edit = build(backend, fitted, Setting("least-disturbance", 2))
    control = random_control(edit)
    ours, theirs = (as_delta(backend, fitted, e, "tiny") for e in (edit, control))
    for name, update in ours:
        other = theirs.updates[name]
        assert update.dense().norm() == pytest.approx(other.dense().norm().item(), rel=1e-5)
    some = next(iter(edit.writers))
    cosine = edit.writers[some].unit @ control.writers[some].unit
    assert abs(cosine) < 0.9
    with pytest.raises(InterpError, match="least-disturbance"):
        random_control(build(backend, fitted, Setting("ablation", 2)))


def test_a_delta_remembers_its_prompts(backend: Backend, fitted: Fitted) -> None:
    delta = as_delta(backend, fitted, build(backend, fitted, Setting("ablation", 2)), "tiny")
    assert delta.provenance["model"] == "tiny"
    assert set(PromptSet(REFUSE[:5], "r").fingerprints) <= set(delta.provenance["seen_prompts"])
    assert delta.recipe["method"] == "ablation"


def test_an_edit_on_an_edit_adds_up(backend: Backend, fitted: Fitted) -> None:
    first = as_delta(backend, fitted, build(backend, fitted, Setting("ablation", 2)), "tiny")
    with applied(backend.model, backend.anatomy, first):
        second = as_delta(backend, fitted, build(backend, fitted, Setting("ablation", 1)), "tiny")
        ids = torch.arange(3, 20)[None]
        with applied(backend.model, backend.anatomy, second):
            stacked = backend.model(ids).logits
    both = first.compose(rebased(second, first))
    with applied(backend.model, backend.anatomy, both):
        summed = backend.model(ids).logits
    assert (stacked - summed).abs().max() < 1e-4


def test_pipeline_writes_everything(tmp_path: Path, chat_dir: Path) -> None:
    from interp.backends import open_model

    part = PromptSet(REFUSE, "r"), PromptSet(COMPLY, "c")
    said: list[str] = []
    out = tmp_path / "out"
    outcome = run(
        open_model(str(chat_dir)), str(chat_dir), Prompts(part, part, part), out, say=said.append
    )
    names = [row.name for row in outcome.rows]
    assert names == [
        "original", "directional ablation", "partial ablation", "least-disturbance",
        "random direction",
    ]  # fmt: skip
    assert outcome.exports["delta"]["verdict"] == outcome.exports["peft"]["verdict"] == "verified"
    assert all(path.exists() for path in outcome.paths.values())
    assert outcome.as_json()["seconds"].keys() >= {"fit", "select", "report", "export"}
    assert outcome.rows[0] == replace(outcome.rows[0], kl_first=0.0)
    assert said
