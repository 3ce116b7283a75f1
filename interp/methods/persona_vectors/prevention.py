"""What acts during a finetune alone: steering, CAFT, and a penalty in the loss (2507.21509, §5.2, J).

All of them have a content hash, so that :func:`interp.training.train` keeps their runs apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from operator import add as joined
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.opening import wrap
from interp.errors import InterpError
from interp.hooking import first
from interp.interventions import Interventions, ablate
from interp.lm import LM
from interp.methods.persona_vectors.edits import check, steering, steering_increments
from interp.methods.persona_vectors.vectors import PersonaVector, projection
from interp.sites import Site
from interp.training.rows import IGNORED
from interp.training.running import During


class WhileTraining:
    """An edit that is in place while a model trains: a ``during`` of :func:`interp.training.train`.

    The adapter or checkpoint is what training changed; the edit is no part of it.
    """

    def __init__(self, edit: Interventions) -> None:
        self.edit = edit

    def __call__(self, model: nn.Module) -> AbstractContextManager[None]:
        return wrap(model).editing(self.edit)


def preventative(persona: PersonaVector, site: Site, coefficient: float) -> During:
    """``h ← h + α v`` at one site on all tokens while training (§5.2)."""
    return WhileTraining(steering(persona, site, coefficient))


def preventative_increments(lm: LM, persona: PersonaVector, coefficient: float) -> During:
    """``h ← h + α (v_ℓ − v_{ℓ−1})`` after every block while training (J.3)."""
    return WhileTraining(steering_increments(lm, persona, coefficient))


def caft(lm: LM, persona: PersonaVector) -> During:
    """``h ← h − (h · v̂_ℓ) v̂_ℓ`` after every block while training: concept ablation finetuning (J.4)."""
    check(lm, persona)
    return WhileTraining(reduce(joined, (ablate(site, persona.at(site)) for site in lm.resid_post)))


class ProjectionPenalty:
    """A loss for adapters: cross-entropy and a penalty on the change of the projection at one site (J.5).

    The penalty is ``weight`` times the mean over response tokens of ((h − h_base) · v̂ / ‖v‖)². The base model
    is the same model without its adapters. Give both its ``during`` and the object itself as ``loss`` to
    :func:`interp.training.train`; the run logs the penalty without its weight as ``projection``.
    """

    def __init__(self, vector: Tensor, site: Site, weight: float) -> None:
        self.vector, self.site, self.weight = vector, site, weight
        self._stream: Tensor | None = None

    @property
    def during(self) -> During:
        """What lets the penalty read the stream at its site in every forward pass."""
        return _Reading(self)

    def read(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook of the block whose output is the site."""
        self._stream = first(output)

    def _projection(self) -> Tensor:
        if self._stream is None:
            raise InterpError("this penalty reads no stream; pass its `during` to train as well")
        return projection(self._stream, self.vector) / float(self.vector.norm())

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Tensor], outputs: Any
    ) -> Mapping[str, Tensor]:
        if not hasattr(model, "disable_adapter"):
            raise InterpError(
                "this penalty compares with the model without adapters; train with lora=LoRA(...)"
            )
        now = self._projection()
        with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]
            model(
                **{name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
            )
            before = self._projection()
        change = (now - before)[batch["labels"] != IGNORED].square().mean()
        return {"loss": outputs.loss + self.weight * change, "projection": change}


class _Reading:
    """A context in which a penalty reads the stream."""

    def __init__(self, penalty: ProjectionPenalty) -> None:
        self.penalty = penalty

    def __call__(self, model: nn.Module) -> AbstractContextManager[None]:
        # Before adapters are added: behind them the model's matrices have other names.
        block = wrap(model).anatomy.blocks[self.penalty.site.block]
        return self._hooked(model.get_submodule(block))

    @contextmanager
    def _hooked(self, block: nn.Module) -> Iterator[None]:
        handle = block.register_forward_hook(self.penalty.read)
        try:
            yield
        finally:
            handle.remove()
