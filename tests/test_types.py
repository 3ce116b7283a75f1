"""Records refuse bad input when they are made, and their algebra is that of the matrices."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.errors import DeltaError
from interp.types import (
    UNIT_TOLERANCE,
    Coverage,
    Direction,
    LowRank,
    Shift,
    TokenBatch,
    WeightDelta,
)

REFUSED = (ValueError, TypeError)  # under test, jaxtyping may see a wrong shape first


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(k: int = 1, seed: int = 0, axes: Any = "out in", experts: int = 0) -> LowRank:
    lead = (experts,) if experts else ()
    return LowRank(normal(*lead, 4, k, seed=seed), normal(*lead, k, 3, seed=seed + 1), axes)


def delta(seed: int = 0, **changes: Any) -> WeightDelta:
    updates = {"w": low_rank(seed=seed), "b": Shift(normal(4, seed=seed))}
    made = WeightDelta(updates, "base", {"seed": seed}, "exact", Coverage(("w",), {"v": "no"}))
    return dataclasses.replace(made, **changes)


# --- directions ----------------------------------------------------------------------------------


def test_directions_have_norm_one() -> None:
    Direction(torch.tensor([0.6, 0.8]), 3, "here")
    Direction(torch.tensor([1.0 + 0.5 * UNIT_TOLERANCE, 0.0]), 3, "here")
    for vector in ([0.6, 0.9], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 0.0]):
        with pytest.raises(ValueError, match=r"interp\.maths\.unit"):
            Direction(torch.tensor(vector), 3, "here")


def test_records_are_frozen() -> None:
    direction = Direction(torch.tensor([1.0]), 0, "here")
    with pytest.raises(dataclasses.FrozenInstanceError):
        direction.block = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        delta().updates["x"] = Shift(normal(4))  # type: ignore[index]


# --- updates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("b", "a", "axes"),
    [
        ((4, 2), (1, 3), "out in"),
        ((5, 4, 1), (6, 1, 3), "expert out in"),
        ((4, 1), (1, 3), "expert out in"),
        ((5, 4, 1), (5, 1, 3), "out in"),
    ],
)
def test_factors_must_fit(b: tuple[int, ...], a: tuple[int, ...], axes: Any) -> None:
    with pytest.raises(REFUSED):
        LowRank(torch.ones(b), torch.ones(a), axes)


@pytest.mark.parametrize("axes", ["out in", "in out"])
def test_stored_orientation(axes: Any) -> None:
    update = low_rank(2, axes=axes)
    assert update.rank == 2
    assert torch.equal(update.dense(), update.b @ update.a)
    expected = update.dense() if axes == "out in" else update.dense().T
    assert torch.equal(update.stored(), expected)
    inputs = normal(5, 3, seed=9)
    assert torch.allclose(update.act(inputs), inputs @ update.dense().T, atol=1e-6)


@pytest.mark.parametrize("axes", ["expert out in", "expert in out"])
def test_stored_orientation_of_experts(axes: Any) -> None:
    update = low_rank(2, axes=axes, experts=5)
    assert update.dense().shape == (5, 4, 3)
    assert update.stored().shape == ((5, 4, 3) if axes.endswith("out in") else (5, 3, 4))


def test_updates_add_and_scale() -> None:
    one, two = low_rank(1), low_rank(2, seed=5)
    assert torch.allclose(one.plus(two).dense(), one.dense() + two.dense(), atol=1e-6)
    assert one.plus(two).rank == 3
    assert torch.allclose(one.scaled(-0.5).dense(), -0.5 * one.dense())
    shift = Shift(normal(4))
    assert torch.equal(shift.plus(shift.scaled(2.0)).value, 3 * shift.value)
    with pytest.raises(DeltaError, match="'out in' and 'in out'"):
        one.plus(low_rank(axes="in out"))


# --- deltas --------------------------------------------------------------------------------------


def test_a_delta_that_changes_nothing_is_refused() -> None:
    with pytest.raises(DeltaError, match="interp inspect"):
        delta(updates={})


def test_a_delta_keeps_its_own_updates() -> None:
    given = {"w": low_rank()}
    made = delta(updates=given)
    given["x"] = low_rank()
    assert len(made) == 1
    assert [name for name, _ in made] == ["w"]
    assert made.rank == 1
    assert delta(updates={"b": Shift(normal(4))}).rank == 0


def test_norm_of_a_delta() -> None:
    experts = low_rank(2, 7, "expert out in", 5)
    made = delta(updates={"w": low_rank(2), "b": Shift(normal(4)), "e": experts})
    squares = sum(
        (u.value if isinstance(u, Shift) else u.dense()).double().square().sum() for _, u in made
    )
    assert made.norm() == pytest.approx(squares.sqrt().item(), rel=1e-6)


def test_deltas_add_and_scale() -> None:
    one = delta(0, checkpoint={"w": ("w",)})
    two = delta(3, updates={"w": low_rank(2, 3), "x": low_rank(1, 4)}, untied=True)
    both = one.compose(two)
    assert set(both.updates) == {"w", "b", "x"}
    expected = one.updates["w"].dense() + two.updates["w"].dense()  # type: ignore[union-attr]
    assert torch.allclose(both.updates["w"].dense(), expected, atol=1e-6)  # type: ignore[union-attr]
    assert both.untied
    assert both.recipe == {"sum": [{"seed": 0}, {"seed": 3}]}
    assert both.checkpoint == {"w": ("w",)}
    half = one.scale(0.5)
    assert half.norm() == pytest.approx(0.5 * one.norm())
    assert half.recipe == {"scale": 0.5, "of": {"seed": 0}}
    with pytest.raises(DeltaError, match="different bases"):
        one.compose(delta(base="other"))


def test_coverage_adds_up() -> None:
    one = Coverage(("a",), {"b": "not selected", "c": "not selected"})
    both = one.merged(Coverage(("b",), {"a": "not selected", "c": "not selected"}))
    assert (both.edited, dict(both.skipped)) == (("a", "b"), {"c": "not selected"})
    assert one.total == both.total == 3


# --- batches -------------------------------------------------------------------------------------


def padded(*lengths: int) -> TokenBatch:
    width = max(lengths)
    ids = torch.arange(1, len(lengths) * width + 1).reshape(len(lengths), width)
    mask = torch.stack([(torch.arange(width) >= width - n).long() for n in lengths])
    return TokenBatch(ids * mask, mask)


def test_batches_are_left_padded() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="left-padded"):
        TokenBatch(ids, torch.tensor([[1, 1, 1], [1, 1, 0]]))
    with pytest.raises(REFUSED):
        TokenBatch(ids, torch.ones(2, 4, dtype=torch.long))


def test_positions_count_real_tokens() -> None:
    assert padded(4, 2, 1).positions.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 0, 0]]


def test_rows_drop_padding_that_none_of_them_needs() -> None:
    batch = padded(4, 2, 1)
    assert len(batch) == 3
    part = batch.rows(1, 3)
    assert part.ids.tolist() == [[7, 8], [0, 12]]
    assert part.mask.tolist() == [[1, 1], [0, 1]]
    assert torch.equal(batch.rows(0, 3).ids, batch.ids)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_split_keeps_every_real_token(size: int) -> None:
    batch = padded(4, 2, 1)
    parts = list(batch.split(size))
    assert [len(p) for p in parts] == {1: [1, 1, 1], 2: [2, 1], 3: [3], 5: [3]}[size]
    kept = torch.cat([p.ids[p.mask.bool()] for p in parts])
    assert torch.equal(kept, batch.ids[batch.mask.bool()])
    assert all(bool(p.mask[:, 0].any()) for p in parts)


def test_extended_appends_real_tokens() -> None:
    longer = padded(3, 1).extended(torch.tensor([[8, 9], [6, 7]]))
    assert longer.ids.tolist() == [[1, 2, 3, 8, 9], [0, 0, 6, 6, 7]]
    assert longer.mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert longer.to("cpu").ids.device.type == "cpu"


def test_rows_are_chosen_and_sorted_without_the_padding_that_none_needs() -> None:
    batch = padded(5, 2, 3)
    assert batch.lengths.tolist() == [5, 2, 3]
    few = batch.chosen(torch.tensor([2, 1]))
    assert few.ids.shape == (2, 3)
    assert torch.equal(few.ids[0], batch.ids[2, -3:])
    assert torch.equal(batch.chosen(torch.tensor([False, True, True])).ids, few.ids.flip(0))
    ordered = batch.by_length()
    assert ordered.lengths.tolist() == [2, 3, 5]
    assert torch.equal(ordered.ids[2], batch.ids[0])
