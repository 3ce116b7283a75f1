"""``train``: one run of training, kept by content and resumed after a kill."""

from __future__ import annotations

import copy
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback, set_seed

from interp.errors import InterpError
from interp.files import publish_directory, sha256_text, write_json
from interp.lm import LM
from interp.models.embedded import cache_directory
from interp.models.loading import without_bars
from interp.recipes.training import LoRA, TrainingRecipe
from interp.source import code_hash
from interp.training.adapters import with_adapters
from interp.training.content import content_hash, described, model_hash
from interp.training.rows import Checked, Rows, collate
from interp.training.trainer import (
    Loss,
    LossTrainer,
    Watching,
    arguments,
    last_whole,
    remove_broken,
)
from interp.watching import Watch, unwatched

LOGS = frozenset({"step", "epoch", "grad_norm", "learning_rate"})
"""What a Trainer logs beside losses."""
FORMAT = "interp run 1"
ABOUT = "run.json"
KEY = 16
"""Hexadecimal digits of a run's key."""
SECONDS_APART = 10.0
"""Checkpoints come no sooner after each other, unless ``save_every`` is given or several processes train."""
Model = LM | nn.Module | Callable[[], nn.Module]
During = Callable[[nn.Module], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A finished run. path: directory of the checkpoint or, with LoRA, of the adapter.

    steps, losses: mean loss up to each logged step since the one before. parts: the named parts of a custom
    loss, as ``losses``. reused: whether an earlier call trained it. seconds: how long its last process
    trained.
    """

    path: Path
    key: str
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    parts: dict[str, tuple[float, ...]]
    seconds: float
    adapter: bool
    reused: bool


def train(
    model: Model,
    rows: Rows,
    recipe: TrainingRecipe,
    *,
    runs: Path | str | None = None,
    name: str = "run",
    loss: Loss | None = None,
    during: During | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    lora: LoRA | None = None,
    tokenizer: Any = None,
    save_every: int | None = None,
    watch: Watch = unwatched,
) -> TrainedRun:
    """A trained checkpoint or adapter: read if this very run was trained before, resumed if it was killed.

    A run is the same if its recipe, rows, model, loss, ``during``, adapters and library versions are. It
    appears in ``runs`` when it is whole, as ``NAME-KEY``.

    model: an :class:`LM`, a model (both are copied, never changed), or a function that makes one from the
    recipe's seed. loss: see :data:`~interp.training.trainer.Loss`. during: gets the model before adapters are
    added and gives a context for all of the training, ``lambda model: wrap(model).editing(edit)``.
    callbacks: those of transformers; they watch, are no part of the key, and are not called for a run that
    is read. tokenizer: saved beside the model. save_every: steps between checkpoints.

    Raises InterpError for what cannot be trained or has no content hash, PromptError for rows that do not fit
    the model, NotFinite when the loss is not finite.
    """
    if isinstance(model, LM):
        model, tokenizer = model.hf, tokenizer or model.tokenizer
    options = Options(name, tokenizer, callbacks, save_every, watch)
    with _own_randomness():
        made = _made(model, recipe.seed)
        checked = Checked(rows, made.get_input_embeddings().weight.shape[0])
        job = Job(checked, recipe, loss, during, lora)
        place = Place.of(runs or cache_directory() / "runs", name, job.about(made))
        with _alone(place.lock):
            found = _whole(place.target)
            return found or job.run(copy.deepcopy(made) if made is model else made, place, options)


@dataclass(frozen=True, slots=True)
class Options:
    """Options of :func:`train` that do not change the trained weights."""

    name: str
    tokenizer: Any
    callbacks: Sequence[TrainerCallback]
    save_every: int | None
    watch: Watch

    def watching(self, trainer: LossTrainer, done: int) -> Watching:
        """The callback of this project. done: steps of earlier processes."""
        apart = 0.0 if self.save_every or trainer.args.world_size > 1 else SECONDS_APART
        return Watching(self.watch(self.name, trainer.args.max_steps), done, apart)


@dataclass(frozen=True, slots=True)
class Job:
    """What a run trains with: beside the model, all that its trained weights depend on."""

    rows: Checked
    recipe: TrainingRecipe
    loss: Loss | None
    during: During | None
    lora: LoRA | None

    def about(self, model: nn.Module) -> dict[str, Any]:
        """Everything that the weights trained from this model depend on, in JSON values."""
        libraries = ["torch", "transformers", "accelerate", *(["peft"] if self.lora else [])]
        return {
            "format": FORMAT,
            "recipe": described(self.recipe),
            "lora": described(self.lora),
            "model": model_hash(model),
            "rows": self.rows.sha256,
            "loss": None if self.loss is None else content_hash(self.loss),
            "during": None if self.during is None else content_hash(self.during),
            "code": [code_hash(LossTrainer), code_hash(collate), code_hash(arguments)],
            "versions": {name: version(name) for name in libraries},
        }

    def run(self, model: Any, place: Place, options: Options) -> TrainedRun:
        """Train this very model, with adapters if there are any, and publish the run at its place."""
        context = nullcontext() if self.during is None else self.during(model)
        model = model if self.lora is None else with_adapters(model, self.lora)
        trainer = self._trainer(model, place.work, options.save_every)
        with without_bars():
            seconds = _train(trainer, context, place.work, options)
            _publish(trainer, options.tokenizer, seconds, place)
        trainer.accelerator.wait_for_everyone()
        return _read(place.target, reused=False)

    def _trainer(self, model: Any, work: Path, save_every: int | None) -> LossTrainer:
        try:
            settings = arguments(self.recipe, len(self.rows), work, save_every)
        except (ValueError, TypeError) as error:
            raise InterpError(
                f"transformers refuses this recipe: {str(error).splitlines()[0]}"
            ) from None
        trainer = LossTrainer(
            self.loss,
            model=model,
            args=settings,
            train_dataset=self.rows,
            data_collator=partial(collate, pad=getattr(model.config, "pad_token_id", None) or 0),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run lies: ``target`` when it is whole, ``work`` before. about: all that it depends on."""

    about: dict[str, Any]
    target: Path
    work: Path
    lock: Path

    @classmethod
    def of(cls, runs: Path | str, name: str, about: dict[str, Any]) -> Place:
        """The place of the run with everything in ``about``."""
        stem = f"{name}-{sha256_text(json.dumps(about, sort_keys=True))[:KEY]}"
        folder = Path(runs).absolute()
        return cls(about, folder / stem, folder / f".{stem}.unfinished", folder / f".{stem}.lock")


def _made(model: nn.Module | Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model to start from."""
    set_seed(seed)
    made = model if isinstance(model, nn.Module) else model()
    if not isinstance(made, nn.Module) or not hasattr(made, "save_pretrained"):
        raise InterpError(
            f"training needs a model of transformers or a function that makes one, not {type(made).__name__}"
        )
    return made


@contextmanager
def _own_randomness() -> Iterator[None]:
    """The random states of Python, NumPy and torch as they were, after the block."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (what Trainer seeds)
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """No other call trains this run meanwhile; the processes of one call go on together."""
    from accelerate import PartialState
    from filelock import FileLock

    state = PartialState()
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        yield
        state.wait_for_everyone()


def _train(
    trainer: LossTrainer, context: AbstractContextManager[Any], work: Path, options: Options
) -> float:
    """Train from the last whole checkpoint in ``work``, or from the start; seconds that it took."""
    started = time.perf_counter()
    checkpoint = last_whole(work)
    if trainer.is_world_process_zero():
        remove_broken(work)
    done = 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    for callback in (options.watching(trainer, done), *options.callbacks):
        trainer.add_callback(callback)
    with context:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return time.perf_counter() - started


def _publish(trainer: LossTrainer, tokenizer: Any, seconds: float, place: Place) -> None:
    """Write the finished run beside its place and move it there."""
    if not trainer.is_world_process_zero():
        return
    staged = place.work / "final"
    shutil.rmtree(staged, ignore_errors=True)
    trainer.save_final(staged)
    if tokenizer is not None:
        tokenizer.save_pretrained(staged)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    curves = {k: [e[k] for e in history] for k in (history[0] if history else ()) if k not in LOGS}
    files = {path.name: path.stat().st_size for path in staged.iterdir()}
    steps = [entry["step"] for entry in history]
    found = {"about": place.about, "steps": steps, "curves": curves, "seconds": seconds}
    write_json(staged / ABOUT, {**found, "files": files})
    publish_directory(staged, place.target)
    shutil.rmtree(place.work)


def _whole(folder: Path) -> TrainedRun | None:
    """The run that an earlier call finished; None where there is none with all of its files."""
    try:
        return _read(folder, reused=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(folder: Path, *, reused: bool) -> TrainedRun:
    """A finished run. Raises OSError or ValueError where a file is missing or not whole."""
    found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if any((folder / name).stat().st_size != size for name, size in found["files"].items()):
        raise ValueError(f"{folder} is not whole")
    curves = {name: tuple(values) for name, values in found["curves"].items()}
    return TrainedRun(
        path=folder,
        key=folder.name.rpartition("-")[2],
        steps=tuple(found["steps"]),
        losses=curves.pop("loss"),
        parts=curves,
        seconds=found["seconds"],
        adapter=found["about"]["lora"] is not None,
        reused=reused,
    )
