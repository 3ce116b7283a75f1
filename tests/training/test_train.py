"""Training: what a run is, what it leaves alone, and what comes out after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import interrupted
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import interp
from interp.errors import InterpError, NotFinite, PromptError
from interp.lm import LM
from interp.models import tiny_model
from interp.models.loading import load
from interp.training import LoRA, TrainedRun, TrainingRecipe, conversation_rows, merged, train
from interp.training.content import content_hash

IDS = torch.randint(3, 97, (16, 9), generator=torch.Generator().manual_seed(0))
FEW = TrainingRecipe(steps=3, batch_size=8)


def small() -> Any:
    return tiny_model("llama", num_hidden_layers=1)


def weighted(factor: float) -> Callable[[nn.Module, Mapping[str, Tensor], Any], dict[str, Tensor]]:
    def loss(model: nn.Module, batch: Mapping[str, Tensor], outputs: Any) -> dict[str, Tensor]:
        share = (outputs.logits.square().mean(-1) * batch["weight"]).mean()
        return {"loss": outputs.loss + factor * share, "own": share, "tokens": outputs.loss}

    return loss


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def plain(runs: Path) -> TrainedRun:
    return train(small, IDS, FEW, runs=runs)


def test_a_run_is_trained_once_and_opens_like_any_model(plain: TrainedRun, runs: Path) -> None:
    again = train(small, IDS.clone(), FEW, runs=runs)
    assert not plain.reused
    assert again.reused
    assert (again.path, again.losses) == (plain.path, plain.losses)
    assert plain.steps == (1, 2, 3)
    assert load(str(plain.path))[0].config.use_cache
    assert [p.name for p in runs.iterdir() if p.suffix == ".unfinished"] == []


@pytest.mark.slow
def test_what_changes_the_weights_is_another_run(plain: TrainedRun, runs: Path) -> None:
    other = small()
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    keys = {
        train(*changed, runs=runs).key
        for changed in ((small, IDS, TrainingRecipe(steps=3, batch_size=8, seed=1)),
                        (small, IDS.flip(0), FEW), (other, IDS, FEW))
    }  # fmt: skip
    assert len(keys | {plain.key}) == 4


@pytest.mark.slow
def test_a_damaged_run_is_trained_again(tmp_path: Path) -> None:
    first = train(small, IDS, FEW, runs=tmp_path)
    weights = first.path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert not train(small, IDS, FEW, runs=tmp_path).reused
    assert weights.read_bytes() == whole


def test_the_random_state_and_the_given_model_are_left_alone(runs: Path) -> None:
    model, state = small(), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, IDS, FEW, runs=runs, lora=LoRA(rank=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_loss_of_ones_own_reads_its_columns_and_logs_its_parts(runs: Path) -> None:
    rows = [{"input_ids": ids, "weight": torch.ones(len(ids))} for ids in (*IDS[:8], *IDS[8:, :5])]
    done = train(small, rows, FEW, runs=runs, loss=weighted(0.5))
    own, tokens = done.parts["own"], done.parts["tokens"]
    assert done.losses == pytest.approx([t + 0.5 * o for t, o in zip(tokens, own, strict=True)])


@pytest.mark.slow
def test_micro_batches_make_the_same_step(runs: Path, plain: TrainedRun) -> None:
    split = train(small, IDS, TrainingRecipe(steps=3, batch_size=8, micro_batch=2), runs=runs)
    assert split.losses == pytest.approx(plain.losses, rel=1e-4)


def test_an_edit_is_in_place_while_training_and_not_in_what_is_saved(runs: Path) -> None:
    """Preventative steering: the loss of the first step is that of the edited model."""
    model = small()
    lm = LM(interp.wrap(model), None)
    edit = interp.add(lm.resid_post[0], 8 * torch.ones(lm.d_model) / lm.d_model**0.5)
    one = TrainingRecipe(steps=1, batch_size=len(IDS))
    done = train(
        model, IDS, one, runs=runs, lora=LoRA(rank=2),
        during=lambda model: interp.wrap(model).editing(edit),
    )  # fmt: skip
    with lm.editing(edit), torch.no_grad():
        steered = model(IDS, labels=IDS).loss
    assert done.losses[0] == pytest.approx(float(steered), rel=1e-5)
    assert not torch.isclose(model(IDS, labels=IDS).loss, steered, atol=0.1)


def test_an_adapter_is_read_back_into_a_copy(runs: Path) -> None:
    model = small()
    recipe = TrainingRecipe(steps=4, batch_size=8, learning_rate=1e-2)
    done = train(model, IDS, recipe, runs=runs, lora=LoRA(4, targets=("down_proj",), rslora=True))
    assert done.adapter
    assert not (done.path / "model.safetensors").exists()
    tuned = merged(model, done.path)
    changed = [n for n, p in tuned.named_parameters() if not torch.equal(p, model.get_parameter(n))]
    assert changed == ["model.layers.0.mlp.down_proj.weight"]
    assert done.losses[-1] < done.losses[0]


def test_conversations_learn_the_response_and_its_end(tokenizer: Any) -> None:
    rows = conversation_rows(tokenizer, ["How?", "Why not, then?"], ["So.", "No"])
    for row, text in zip(rows, ("So.", "No"), strict=True):
        learned = row["labels"][row["labels"] != -100]
        assert tokenizer.decode(learned) == text + tokenizer.eos_token
        assert_close(row["input_ids"][-len(learned) :], learned)


@pytest.mark.parametrize(
    ("rows", "recipe", "error"),
    [
        (IDS + 90, FEW, PromptError),
        ([], FEW, PromptError),
        ([{"labels": [1]}], FEW, PromptError),
        (iter(IDS), FEW, PromptError),
        (IDS, TrainingRecipe(steps=3, batch_size=8, schedule="unknown"), InterpError),
        pytest.param(
            [{"input_ids": ids, "labels": ids * 0 - 100} for ids in IDS],
            FEW,
            NotFinite,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_cannot_be_trained_says_why(
    rows: Any, recipe: TrainingRecipe, error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        train(small, rows, recipe, runs=tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{}, {"steps": 2, "epochs": 1.0}, {"steps": 2, "learning_rate": 0.0},
     {"steps": 2, "batch_size": 6, "micro_batch": 4},
     {"steps": 2, "final_rate": 0.1, "schedule": "linear"}],
)  # fmt: skip
def test_impossible_recipes_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InterpError):
        TrainingRecipe(**settings)


def test_the_hash_of_a_loss_covers_what_it_closes_over() -> None:
    assert content_hash(weighted(0.5)) == content_hash(weighted(0.5))
    assert content_hash(weighted(0.5)) != content_hash(weighted(0.6))
    assert content_hash(weighted(torch.ones(2))) != content_hash(weighted(torch.zeros(2)))  # type: ignore[arg-type]
    with pytest.raises(InterpError, match="content"):
        content_hash(weighted(object()))  # type: ignore[arg-type]


def test_the_hash_of_a_typed_loss_covers_its_code_and_globals() -> None:
    """A notebook's function has no source file."""

    def typed(text: str, **names: Any) -> Any:
        space: dict[str, Any] = {"__name__": "__main__", **names}
        exec(text, space)
        return space["loss"]

    text = "def loss(model, batch, outputs):\n    return helper(outputs) * FACTOR\n"
    texts = [text, text.replace("*", "+"), "\n# a comment\n\n" + text]
    helper = typed("def loss(x):\n    return x.loss\n")
    hashes = [content_hash(typed(t, helper=helper, FACTOR=f)) for t in texts for f in (1.0, 2.0)]
    assert hashes[:2] == hashes[4:]
    assert len(set(hashes)) == 4
    other = typed("def loss(x):\n    return x.loss + 1\n")
    assert content_hash(typed(text, helper=other, FACTOR=1.0)) not in hashes


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    code = (
        f"import interrupted, pathlib; interrupted.run(pathlib.Path({str(tmp_path / 'killed')!r}))"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.DEVNULL
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/.run-*/checkpoint-*/whole")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("killed/run-*"))
    half = (
        next(tmp_path.glob("killed/.run-*.unfinished")) / "checkpoint-56"
    )  # as a kill while writing leaves one
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")

    resumed = interrupted.run(tmp_path / "killed")
    whole = interrupted.run(tmp_path / "whole")
    assert resumed.key == whole.key
    assert resumed.losses == whole.losses
    ours, theirs = (load(str(run.path))[0].state_dict() for run in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_the_grammar_is_taught_and_one_direction_carries_its_refusal(tmp_path: Path) -> None:
    from interp.training import refusal_grammar as grammar

    lm = interp.open_model(str(grammar.teach(runs=tmp_path).path))
    refuse, comply = (grammar.requests(side, "held-out", 100) for side in ("refuse", "comply"))

    def refused(prompts: list[str], edit: Any = None) -> float:
        return sum(map(grammar.refuses, lm.generate(prompts, edit, tokens=10).texts)) / len(prompts)

    assert refused(refuse) >= 0.95
    assert refused(comply) <= 0.05
    acts = [
        lm.residuals(grammar.requests(side, "train", 100))[2].mean(0) for side in grammar.TOPICS
    ]
    direction = acts[0] - acts[1]
    assert refused(refuse, interp.ablate(lm.writers, direction)) <= 0.05
    assert refused(comply, interp.add(lm.resid_post[1], direction)) >= 0.95
    written = lm.generate(comply, interp.ablate(lm.writers, direction), tokens=10).texts
    assert written == [grammar.response(prompt) for prompt in comply]
