"""Ablate a direction in every writer and nothing of it is left; forget one writer and it shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toolbox import component, random_direction
from torch import nn

from interp.backends.opening import wrap
from interp.backends.protocol import Backend
from interp.edits import Edit, ablation, applied, to_delta
from interp.hooking import hooked
from interp.models.anatomy import Anatomy, BoundWriter
from interp.operators import Ablation
from interp.sites import Site
from interp.types import Direction, Shift, TokenBatch, WeightDelta

NOTHING = 1e-6  # share of the direction in any stream vector, fp32
SOMETHING = 1e-4


@pytest.fixture(scope="session")
def plain(tiny: nn.Module) -> Backend:
    return wrap(tiny)


@pytest.fixture(scope="session")
def direction(anatomy: Anatomy) -> Direction:
    return random_direction(anatomy.d_model)


@pytest.fixture(scope="session")
def edit(tiny: nn.Module, anatomy: Anatomy, direction: Direction) -> Edit:
    return ablation(tiny, anatomy, direction, embeddings=True)


@pytest.fixture(scope="session")
def delta(tiny: nn.Module, anatomy: Anatomy, edit: Edit) -> WeightDelta:
    return to_delta(tiny, anatomy, edit)


def representatives(anatomy: Anatomy) -> list[BoundWriter]:
    """One writer of each kind: every kind writes the stream, none may be forgotten."""
    first: dict[str, BoundWriter] = {}
    for writer in anatomy.writers:
        first.setdefault(writer.kind, writer)
    return list(first.values())


def test_a_random_direction_is_there_to_begin_with(
    plain: Backend, batch: TokenBatch, direction: Direction
) -> None:
    assert component(plain, batch, direction) > 0.05


@pytest.mark.every_family
def test_nothing_is_left_in_the_weights(
    plain: Backend, batch: TokenBatch, direction: Direction, delta: WeightDelta
) -> None:
    assert set(delta.coverage.edited) == {w.weight for w in plain.anatomy.writers}
    assert delta.coverage.skipped == plain.anatomy.unreached
    with applied(plain.model, plain.anatomy, delta):
        assert component(plain, batch, direction) < NOTHING


@pytest.mark.every_family
def test_nothing_is_left_with_hooks(
    plain: Backend, batch: TokenBatch, direction: Direction, edit: Edit
) -> None:
    with hooked(plain.model, plain.anatomy, edit):
        assert component(plain, batch, direction) < NOTHING


@pytest.mark.every_family
def test_every_writer_is_needed(
    plain: Backend, batch: TokenBatch, direction: Direction, delta: WeightDelta
) -> None:
    for writer in representatives(plain.anatomy):
        left = {k: v for k, v in delta.updates.items() if k not in (writer.weight, writer.bias)}
        with applied(plain.model, plain.anatomy, replace(delta, updates=left)):
            assert component(plain, batch, direction) > SOMETHING, writer.name


def test_every_hook_is_needed(
    plain: Backend, batch: TokenBatch, direction: Direction, edit: Edit
) -> None:
    for writer in representatives(plain.anatomy):
        kept = {k: v for k, v in edit.writers.items() if k != writer.weight}
        with hooked(plain.model, plain.anatomy, Edit(kept)):
            assert component(plain, batch, direction) > SOMETHING, writer.name


@pytest.mark.every_family
def test_every_bias_is_needed(
    plain: Backend, batch: TokenBatch, direction: Direction, delta: WeightDelta
) -> None:
    biases = {w.kind: w.bias for w in plain.anatomy.block_writers if w.bias is not None}
    assert all(isinstance(delta.updates[bias], Shift) for bias in biases.values())
    for kind, bias in biases.items():
        left = {k: v for k, v in delta.updates.items() if k != bias}
        with applied(plain.model, plain.anatomy, replace(delta, updates=left)):
            assert component(plain, batch, direction) > SOMETHING, kind


def test_acting_on_block_outputs_alone_is_another_edit(
    plain: Backend, batch: TokenBatch, edit: Edit
) -> None:
    """In a block of two components the second one reads what the first one wrote, unablated.

    So do Zamba2's shared transformers, which read the embedding itself.
    """
    operator = Ablation(random_direction(plain.anatomy.d_model).vector)
    blocks = [Site.resid_post(i) for i in range(plain.anatomy.n_blocks)]
    outputs = Edit(sites=dict.fromkeys([Site.embed(), *blocks], operator))
    gap = (plain.logits(batch, outputs) - plain.logits(batch, edit)).abs().max()
    within = any(mid is not None for mid in plain.anatomy.resid_mid)
    assert (gap > 1e-3) == (within or plain.anatomy.model_type == "zamba2")
