"""``transformers.Trainer`` with a loss given as a function, and checkpoints that count only when whole."""

from __future__ import annotations

import inspect
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from interp.errors import InterpError, NotFinite
from interp.recipes.training import COSINE, TrainingRecipe
from interp.watching import Progress

Loss: TypeAlias = Callable[[nn.Module, Mapping[str, Tensor], Any], Tensor | Mapping[str, Tensor]]
"""``loss(model, batch, outputs)``: a scalar, or scalars by name of which ``"loss"`` is minimised. ``outputs``
are the model's for this batch; ``outputs.loss`` is the cross-entropy of its labels."""

CHECKPOINTS = 10
"""Checkpoints of one run, unless ``save_every`` says otherwise."""
LOGGED = 1000
"""Greatest number of points of a loss history, up to a factor of two."""
WHOLE = "whole"
"""The file that a checkpoint gets when all others are written."""


class LossTrainer(Trainer):
    """A Trainer whose loss is a function, and that logs the named parts of it.

    A loss of one's own is averaged over the micro-batches of a step; the model's own is averaged over tokens.
    """

    def __init__(self, loss: Loss | None, **given: Any) -> None:
        self._caching = getattr(given["model"].config, "use_cache", True)
        super().__init__(**given)  # sets the model not to cache
        self._own_loss = loss
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        self._accepted = frozenset(inspect.signature(base.forward).parameters)
        if loss is not None:
            self.model_accepts_loss_kwargs = False
            self.loss_is_scaled_for_ga = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        given = {name: value for name, value in inputs.items() if name in self._accepted}
        if self._own_loss is None:
            return super().compute_loss(model, given, return_outputs, num_items_in_batch)
        outputs = model(**given)
        found = self._own_loss(model, inputs, outputs)
        if isinstance(found, Tensor):
            return (found, outputs) if return_outputs else found
        for name, value in found.items():
            if name != "loss":
                self._sums[name].append(value.detach())
        return (found["loss"], outputs) if return_outputs else found["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        means = {name: float(torch.stack(each).mean()) for name, each in self._sums.items()}
        self._sums.clear()
        super().log({**logs, **means}, start_time)

    def save_final(self, folder: Path) -> None:
        """Save the model, or its adapter, with the config that it had."""
        model = self.accelerator.unwrap_model(self.model)
        model.config.use_cache = self._caching
        model.save_pretrained(folder)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: the count costs more than a step of a tiny model, and nobody reads it."""
        return 0


class Watching(TrainerCallback):
    """Progress, an end of runs whose loss is not finite, and the mark of whole checkpoints.

    done: steps of earlier processes. least_seconds: checkpoints that follow another sooner are left out.
    """

    def __init__(self, progress: Progress, done: int, least_seconds: float) -> None:
        self._progress = progress
        self._least_seconds = least_seconds
        self._saved = time.monotonic()
        progress(done)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress(1)
        apart = time.monotonic() - self._saved >= self._least_seconds
        is_last = state.global_step >= state.max_steps  # then the run is published at once
        control.should_save &= apart and not is_last

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float],
        **_: Any,
    ) -> None:
        bad = [name for name, value in logs.items() if name != "epoch" and not _is_finite(value)]
        if bad:
            raise NotFinite(
                f"{bad[0]} is {logs[bad[0]]} at training step {state.global_step}; lower learning_rate, add "
                "warmup, or look for rows without a label"
            )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._saved = time.monotonic()
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            (folder / WHOLE).touch()


def _is_finite(value: float) -> bool:
    return abs(float(value)) < float("inf")


def last_whole(folder: Path) -> Path | None:
    """The last checkpoint in a folder that was written to its end; None where there is none."""
    found = {
        int(path.parent.name.rpartition("-")[2]): path.parent
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{WHOLE}")
    }
    return found[max(found)] if found else None


def remove_broken(folder: Path) -> None:
    """Remove checkpoints that a kill left half-written."""
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not (path / WHOLE).exists():
            shutil.rmtree(path)


def _only_cpu() -> bool:
    """Whether this machine has no accelerator; transformers refuses bf16 there unless told so."""
    return torch.accelerator.current_accelerator() is None


def arguments(
    recipe: TrainingRecipe, rows: int, work: Path, save_every: int | None
) -> TrainingArguments:
    """The recipe as arguments of ``transformers.Trainer``."""
    steps = recipe.total_steps(rows)
    each, micro_batches = _split(recipe)
    logged = max(1, steps // LOGGED)
    saved = max(1, save_every or steps // CHECKPOINTS)
    floor = recipe.final_rate > 0
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=each,
        gradient_accumulation_steps=micro_batches,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=f"{COSINE}_with_min_lr" if floor else recipe.schedule,
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_rate} if floor else {},
        warmup_steps=recipe.warmup,
        optim=recipe.optimizer,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        bf16=recipe.bf16,
        use_cpu=_only_cpu(),
        **({"gradient_checkpointing": True} if recipe.recompute else {}),
        seed=recipe.seed,
        data_seed=recipe.seed,
        train_sampling_strategy="random" if recipe.shuffle else "sequential",
        logging_steps=logged,
        logging_nan_inf_filter=False,
        save_steps=-(-saved // logged) * logged,  # no part of a logged mean is lost
        save_total_limit=2,  # one of them is whole
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )


def _split(recipe: TrainingRecipe) -> tuple[int, int]:
    """Rows of one forward pass on one device, and forward passes of one step.

    Raises InterpError where the batch cannot be split so over the devices.
    """
    count = PartialState().num_processes
    devices = count if count > 1 else max(1, torch.cuda.device_count())
    each = recipe.micro_batch or recipe.batch_size // devices
    if not each or recipe.batch_size % (each * devices):
        raise InterpError(
            f"batch_size={recipe.batch_size} cannot be split over {devices} devices"
            + (f" in micro-batches of {each}" if recipe.micro_batch else "")
        )
    return each, recipe.batch_size // (each * devices)
