"""Matrices as thin products: exact where nothing is cut, and honest about what is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toolbox import relative
from torch import Tensor

from interp.export.factors import (
    FIRST_GUESS,
    LARGEST_SIDE,
    Cut,
    effective_rank,
    factor,
    rounding_floor,
)

EXACT = 1e-5


def planted(rank: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(*shape[:-1], rank, generator=generator)
    a = torch.randn(*shape[:-2], rank, shape[-1], generator=generator)
    return 0.1 * b @ a


sizes = st.integers(3, 60)


@given(sizes, sizes, st.integers(1, 3), st.integers(0, 5))
def test_a_factor_is_the_matrix_when_nothing_is_cut(m: int, n: int, rank: int, seed: int) -> None:
    matrix = planted(rank, m, n, seed=seed)
    made = factor(matrix, Cut(), 0.0)
    assert made.exact
    assert made.rank <= min(rank, m, n) + (rank > min(m, n))
    assert relative(made.b @ made.a, matrix) < EXACT
    assert made.left_out / made.norm < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("cut", [Cut(), Cut(rank=4), Cut(tolerance=0.3)])
def test_a_large_matrix_is_cut_as_its_planted_factors_are(cut: Cut) -> None:
    """Beyond ``LARGEST_SIDE`` the range is drawn at random, first smaller than the rank that is here."""
    rank, shape = FIRST_GUESS + 6, (LARGEST_SIDE + 4, LARGEST_SIDE + 60)
    matrix = planted(rank, *shape)
    matrix += 1e-6 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    core = factor(_small(rank, *shape), cut, 1e-3)
    state = torch.get_rng_state()
    drawn = factor(matrix, cut, 1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not drawn.exact
    assert drawn.rank == core.rank
    assert drawn.left_out == pytest.approx(core.left_out, rel=0.05, abs=1e-2)
    rows = torch.arange(0, shape[0], 97)
    left = (matrix[rows] - drawn.b[rows] @ drawn.a).norm() / matrix[rows].norm()
    assert left.item() == pytest.approx(core.left_out / core.norm, rel=0.1, abs=1e-4)


def _small(rank: int, m: int, n: int) -> Tensor:
    """``[rank, rank]``: the singular values of ``planted(rank, m, n)``."""
    generator = torch.Generator().manual_seed(0)
    b, a = torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator)
    return 0.1 * torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T


@pytest.mark.parametrize("uneven", [1.0, 40.0])
def test_the_floor_is_what_rounding_gives(uneven: float) -> None:
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    weight[3] *= uneven
    weight[:, 5] *= uneven
    noise = weight.bfloat16().float() - weight
    largest = torch.linalg.svdvals(noise)[0].item()
    assert 0.3 < largest / rounding_floor(weight, torch.finfo(torch.bfloat16).eps) < 1.0


def test_effective_rank_counts_equal_values() -> None:
    assert effective_rank(torch.ones(7)) == pytest.approx(7)
    assert effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(0)) == 0.0
