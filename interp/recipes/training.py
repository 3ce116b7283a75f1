"""Settings of a training run: what is learned how fast on which rows, and which weights are trained."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from math import ceil, inf
from typing import Any

from interp.errors import InterpError
from interp.recipes.base import setting

COSINE = "cosine"


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """Settings of one run, of ``steps`` or of ``epochs``; each of them changes the trained weights.

    Raises InterpError for a setting outside its bounds, and unless exactly one of ``steps`` and ``epochs`` is
    given.
    """

    steps: int = setting(0, "optimiser steps", least=0)
    epochs: float = setting(0.0, "passes over the rows, in place of steps", least=0)
    batch_size: int = setting(32, "rows of one step, over all devices", least=1)
    micro_batch: int = setting(
        0, "rows of one forward pass on one device; 0 takes the whole batch", least=0, advanced=True
    )
    learning_rate: float = setting(1e-3, "highest learning rate", above=0)
    schedule: str = setting(COSINE, "learning-rate schedule of transformers", advanced=True)
    final_rate: float = setting(
        0.0, "share of the highest learning rate that a cosine schedule ends at", least=0, most=1,
        advanced=True,
    )  # fmt: skip
    warmup: int = setting(0, "steps over which the learning rate rises from 0", least=0)
    optimizer: str = setting("adamw_torch", "optimiser of transformers", advanced=True)
    betas: tuple[float, float] = setting((0.9, 0.999), "AdamW's two decay rates", advanced=True)
    weight_decay: float = setting(0.0, "AdamW's weight decay", least=0)
    clip: float = setting(1.0, "greatest norm of the gradient; 0 clips nothing", least=0)
    shuffle: bool = setting(True, "another order of the rows in each epoch", advanced=True)
    bf16: bool = setting(False, "compute in bfloat16, keep the weights as they are", advanced=True)
    recompute: bool = setting(
        False, "recompute activations in the backward pass: less memory, more time", advanced=True
    )
    seed: int = setting(0, "seed of weights, order, dropout and adapters", least=0)

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_bounds(each, getattr(self, each.name))
        if (self.steps > 0) == (self.epochs > 0):
            raise InterpError("a training recipe has either steps or epochs; give one of them")
        if self.final_rate and self.schedule != COSINE:
            raise InterpError(f"final_rate needs schedule='cosine', not {self.schedule!r}")
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise InterpError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch={self.micro_batch}"
            )

    def total_steps(self, rows: int) -> int:
        """Optimiser steps of a run over so many rows."""
        return self.steps or max(1, round(self.epochs * ceil(rows / self.batch_size)))


@dataclass(frozen=True, slots=True)
class LoRA:
    """Low-rank adapters in place of full finetuning: ``W + scale · B A`` with A and B trained.

    alpha: scale is ``alpha / rank``, or ``alpha / √rank`` with ``rslora``. targets: endings of module names;
    empty for every linear layer but the unembedding. blocks: blocks that get adapters; empty for all.
    """

    rank: int = setting(16, "rank of each adapter", least=1)
    alpha: float = setting(32.0, "scale of the adapters, times their rank", above=0)
    targets: tuple[str, ...] = setting((), "endings of module names; none for all linear layers")
    blocks: tuple[int, ...] = setting((), "blocks that get adapters; none for all")
    dropout: float = setting(0.0, "dropout in front of an adapter", least=0, most=1)
    rslora: bool = setting(False, "scale by 1/√rank in place of 1/rank")

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_bounds(each, getattr(self, each.name))


def _check_bounds(setting: Field[Any], value: Any) -> None:
    """Raise InterpError for a number outside the bounds of its setting."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    least, above, most = (setting.metadata.get(key) for key in ("least", "above", "most"))
    low = -inf if least is None else least
    if not low <= value <= (inf if most is None else most) or (
        above is not None and value <= above
    ):
        bounds = f"above {above}" if above is not None else f"from {low}"
        upper = "" if most is None else f" to {most}"
        raise InterpError(f"{setting.name}={value} is outside its bounds: {bounds}{upper}")
