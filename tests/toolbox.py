"""What several test files use: distances, directions, and one tiny model behind each backend."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from figure_examples import some_lines
from torch import Tensor, nn

from interp.backends.opening import wrap
from interp.backends.protocol import Backend, residual_sites
from interp.claims import Claim
from interp.data import PromptSet
from interp.export.measurement import Measurement
from interp.maths import unit
from interp.models import tiny_model
from interp.records import FigureRecord, Provenance
from interp.sites import Site
from interp.types import Direction, TokenBatch, WeightDelta


def relative(actual: Tensor, expected: Tensor) -> float:
    """``‖actual − expected‖ / ‖expected‖`` in float64."""
    assert actual.shape == expected.shape
    difference = (actual.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp_min(1e-30)).item()


def real(values: Tensor, batch: TokenBatch) -> Tensor:
    """The rows of ``[batch, seq, ...]`` that are not padding."""
    return values[batch.mask.bool()]


def random_vector(d: int, seed: int = 0) -> Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def random_direction(d: int, seed: int = 0) -> Direction:
    return Direction(unit(random_vector(d, seed)), 0, "random")


def component(backend: Backend, batch: TokenBatch, direction: Direction) -> float:
    """Largest share of ``direction`` in the stream, over blocks and real positions."""
    sites = residual_sites(backend.anatomy)
    worst = 0.0
    for value in backend.capture(batch, sites, None).values():
        rows = real(value, batch).double()
        share = (rows @ direction.vector.double()).abs() / rows.norm(dim=-1)
        worst = max(worst, share.max().item())
    return worst


def stream(backend: Backend, batch: TokenBatch) -> dict[Site, Tensor]:
    """The stream after every block, real positions only."""
    values = backend.capture(batch, residual_sites(backend.anatomy), None)
    return {site: real(value, batch) for site, value in values.items()}


class State(dict[str, Tensor]):
    """Copies of all parameters and buffers, to compare bit for bit, and the hooks that there were:
    transformers leaves its own on a model that was once asked for hidden states, as tests share one."""

    hooks: frozenset[tuple[str, int]]


def state(model: nn.Module) -> State:
    copies = State({name: value.clone() for name, value in model.state_dict().items()})
    copies.hooks = hooks_of(model)
    return copies


def hooks_of(model: nn.Module) -> frozenset[tuple[str, int]]:
    return frozenset(
        (name, key)
        for name, module in model.named_modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for key in hooks
    )


def assert_untouched(model: nn.Module, before: State) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert not changed
    assert hooks_of(model) == before.hooks


@cache
def opened(model_type: str, backend: str) -> Backend:
    """A tiny model of its own behind a backend; kept for the session, do not change it in place."""
    return wrap(tiny_model(model_type), backend=backend)


def card(
    value: float = 0.0,
    *,
    proves: tuple[str, ...] = ("ablation",),
    commit: str = "c0ffee",
    resumed: tuple[dict[str, Any], ...] = (),
) -> FigureRecord:
    """A figure card that claims its only value is at most 1, and so passes or fails by it."""
    return FigureRecord(
        key="paper/figure",
        title="one value",
        series=some_lines(value=value),
        provenance=Provenance("tiny", commit=commit, resumed=resumed),
        claims=(Claim("the value is at most 1", "at most", "/value", 1),),
        proves=proves,
    )


ROW = {
    "refusals": 5,
    "n_refuse": 8,
    "over_refusals": 0,
    "n_comply": 8,
    "kl_first": 0.01,
    "kl_continuation": 0.01,
    "nll": 3.0,
}


def measured(delta: WeightDelta, *, n: int = 8, model: str | None = None) -> Measurement:
    """A measurement of a delta on ``n`` prompts of each class; the delta says what it was fitted on."""
    refuse, comply = (
        PromptSet(tuple(f"{side} {i}" for i in range(n)), side) for side in ("refuse", "comply")
    )
    made_on = Provenance("tiny", fingerprint=model or delta.base)
    return Measurement.of(delta, (ROW, ROW | {"refusals": 1}), refuse, comply, made_on)
