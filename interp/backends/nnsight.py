"""nnsight: the same model behind a tree of envoys, read and edited inside traces.

nnsight replaces the forward method of every module it wraps, so it gets a twin of the model:
weights and forward hooks are shared, and an edit of ``model`` edits ``lm``. Every site is read, and
every operator applied, in an intervention of its own: nobody needs to know the order of modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any, ClassVar

from torch import Tensor, nn

from interp.backends.generation import greedy_config, new_ids, step_arguments
from interp.backends.protocol import (
    AnyEdit,
    Positions,
    SharedBackend,
    in_order,
    kept_logits,
    model_inputs,
    take,
)
from interp.backends.reading import Reading, reading
from interp.backends.steps import Steps
from interp.backends.support import require_support
from interp.backends.twin import twin
from interp.edits import Edit
from interp.hooking import (
    Act,
    Location,
    act_at,
    counting,
    edit_acts,
    first,
    first_argument,
    hooked,
    inside_experts,
    intervened,
    place,
    with_first,
)
from interp.interventions import Interventions
from interp.models.anatomy import Anatomy, BoundWriter
from interp.operators import Operator
from interp.sites import Site
from interp.types import Ids, TokenBatch


class NNsightBackend(SharedBackend):
    """nnsight; see :class:`interp.backends.Backend` for what the methods return.

    lm: the nnsight model, to go on with in nnsight; a ``TransformersModel`` where there is a tokenizer
    and the model reads text alone, else an ``NNsight``. model: the transformers model as it was given,
    with the same weights.
    """

    name: ClassVar[str] = "nnsight"

    def __init__(self, model: nn.Module, tokenizer: Any, anatomy: Anatomy, source: str) -> None:
        require_support(self.name, anatomy.model_type)
        super().__init__(model, tokenizer, anatomy, source)
        # nnsight's tasks with a tokenizer are those of models that read text alone.
        named = None if anatomy.image_writers else tokenizer
        self.lm: Any = wrapped(twin(model), named)

    def _capture(
        self, batch: TokenBatch, sites: Sequence[Site], positions: Positions
    ) -> dict[Site, Tensor]:
        wanted = {s: reading(self.anatomy, s, positions, batch.ids.shape) for s in sites}
        found: dict[Site, Tensor] = {}
        self._read(model_inputs(self.model, batch), wanted, found)
        return in_order(found, wanted)

    def _both(self, batch: TokenBatch, sites: Sequence[Site]) -> tuple[Tensor, dict[Site, Tensor]]:
        wanted = {s: reading(self.anatomy, s, None, batch.ids.shape) for s in sites}
        found: dict[Site, Tensor] = {}
        logits: list[Tensor] = []
        lm = self.lm
        with _quiet(), lm.trace() as tracer:
            with tracer.invoke(**model_inputs(self.model, batch), use_cache=False):
                logits.append(lm.output.logits.cpu())
            for site, place in wanted.items():
                with tracer.invoke():
                    found[site] = _value(lm.get(place.path), place).cpu()
        return logits[0], in_order(found, wanted)

    def _read(
        self, inputs: dict[str, Any], wanted: dict[Site, Reading], found: dict[Site, Tensor]
    ) -> None:
        """One trace; the intervention that reads the last site stops it."""
        lm = self.lm
        with _quiet(), lm.trace() as tracer:
            with tracer.invoke(**inputs, use_cache=False):
                pass
            for site, place in wanted.items():
                with tracer.invoke():
                    found[site] = _value(lm.get(place.path), place).cpu()
                    if len(found) == len(wanted):
                        tracer.stop()

    def _logits(self, batch: TokenBatch, positions: Positions) -> Tensor:
        inputs = model_inputs(self.model, batch) | kept_logits(self.model, positions)
        with _quiet():
            out = self.lm.trace(**inputs, use_cache=False, trace=False)
        return take(out.logits, positions).cpu()

    def _generate(self, batch: TokenBatch, tokens: int, pad: int, steps: Steps) -> Ids:
        with greedy_config(self.lm._module, tokens, pad) as config, _quiet():
            out = self.lm.trace(
                fn="generate",
                trace=False,
                input_ids=batch.ids,
                attention_mask=batch.mask,
                generation_config=config,
                **step_arguments(batch.mask, steps),
            )
        return new_ids(out, batch, tokens, pad)

    @contextmanager
    def editing(self, edit: AnyEdit) -> Iterator[None]:
        """The nnsight and the transformers model with an edit in place: a delta in the weights, an Edit as
        interventions of nnsight and hooks of transformers."""
        if isinstance(edit, Interventions):
            with self._intervening(edit):
                yield
            return
        if not isinstance(edit, Edit):
            with super().editing(edit):
                yield
            return
        with hooked(self.model, self.anatomy, edit, alone=True), self._rewritten():
            for writer in self.anatomy.writers:
                if (operator := edit.writers.get(writer.weight)) is not None:
                    self.lm = _with_writer(self.lm, writer, operator)
            for at, act in edit_acts(self.anatomy, edit):
                self.lm = _with_act(self.lm, at, act)
            yield

    @contextmanager
    def _intervening(self, edit: Interventions) -> Iterator[None]:
        with (
            self._running(edit) as run,
            counting(self.model, self.anatomy, run),
            self._rewritten(),
            ExitStack() as stack,
        ):
            for _, at, act in intervened(self.model, self.anatomy, edit, run):
                self.lm = _with_act(self.lm, at, act)
                stack.callback(place(self.model, at, act, alone=True).remove)
            yield

    @contextmanager
    def _rewritten(self) -> Iterator[None]:
        """``lm`` may be replaced while the context lasts, and is put back."""
        before = self.lm
        try:
            yield
        finally:
            self.lm = before


def wrapped(module: nn.Module, tokenizer: Any) -> Any:
    """The nnsight object for a module that it may instrument."""
    import nnsight

    if tokenizer is None:
        return nnsight.NNsight(module)
    from nnsight.modeling.transformers import TransformersModel

    return TransformersModel(module, tokenizer=deepcopy(tokenizer), task="text-generation")


@contextmanager
def _quiet() -> Iterator[None]:
    """Edits wait for one more step when a run ends, which nnsight warns about by design."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was never reached")
        yield


def _value(envoy: Any, place: Reading) -> Tensor:
    """Inside a trace: what ``place`` reads at a module."""
    if place.before:
        args, kwargs = envoy.inputs
        return place.read(envoy._module, args, kwargs, None)
    return place.read(envoy._module, (), {}, envoy.output)


def _with_writer(lm: Any, writer: BoundWriter, operator: Operator) -> Any:
    """``lm`` with an operator on what a writer writes, at every step of every later run."""
    with lm.edit() as (tracer, edited):
        envoy = edited.get(writer.module)
        for _ in tracer.iter[:]:
            args, kwargs = envoy.inputs
            envoy.output = act_at(writer, operator, envoy._module, args, kwargs, envoy.output)
    return edited


def _with_act(lm: Any, at: Location, act: Act) -> Any:
    """``lm`` with a function at a location, at every step of every later run."""
    if at.inside_experts:
        with lm.edit() as (tracer, edited):
            envoy = edited.get(at.path)
            for _ in tracer.iter[:]:
                args, kwargs = envoy.inputs
                envoy.output = inside_experts(at, act, envoy._module, args, kwargs, envoy.output)
    elif at.before:
        with lm.edit() as (tracer, edited):
            envoy = edited.get(at.path)
            for _ in tracer.iter[:]:
                envoy.input = act(envoy.input)
    else:
        with lm.edit() as (tracer, edited):
            envoy = edited.get(at.path)
            for _ in tracer.iter[:]:
                args, kwargs = envoy.inputs
                value = act(first(envoy.output), first_argument(args, kwargs))
                envoy.output = with_first(envoy.output, value)
    return edited
