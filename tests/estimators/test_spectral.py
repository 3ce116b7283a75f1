"""The linear algebra below the estimators: primal and dual agree with each other and with others'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planting import LAWS, SEEDS, close, normal
from sklearn.covariance import ledoit_wolf_shrinkage

from interp.errors import NoDirection
from interp.estimators.spectral import (
    Span,
    ledoit_wolf,
    principal_rows,
    shrunk_solve,
)
from interp.maths import orthonormal

ROWS, WIDTHS = st.integers(3, 30), st.integers(2, 30)


def centred(n: int, d: int, seed: int) -> torch.Tensor:
    rows = normal(n, d, seed=seed) * torch.arange(1, d + 1).double().rsqrt()
    return rows - rows.mean(0)


@LAWS
@given(ROWS, WIDTHS, SEEDS)
def test_ledoit_wolf_is_that_of_scikit_learn(n: int, d: int, seed: int) -> None:
    rows = centred(n, d, seed)
    expected = ledoit_wolf_shrinkage(rows.numpy(), assume_centered=True)
    assert ledoit_wolf(rows) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_ledoit_wolf_shrinks_less_with_more_rows() -> None:
    assert 0.0 < ledoit_wolf(centred(4000, 6, 0)) < 0.05 < ledoit_wolf(centred(8, 6, 0)) <= 1.0
    assert ledoit_wolf(centred(5, 1, 0)) == 0.0


@LAWS
@given(ROWS, WIDTHS, SEEDS, st.floats(0.01, 1.0))
def test_shrunk_solve_is_the_dense_solve(n: int, d: int, seed: int, share: float) -> None:
    """n < d takes the dual, n ≥ d the primal; both against Σ formed and solved."""
    rows, rhs = centred(n, d, seed), normal(d, seed=seed + 1)
    sigma = rows.T @ rows / n
    sigma = (1 - share) * sigma + share * sigma.trace() / d * torch.eye(d).double()
    found, used = shrunk_solve(rows, rhs, share)
    assert used == share
    assert close(found, torch.linalg.solve(sigma, rhs), 1e-8)


@LAWS
@given(st.integers(3, 12), SEEDS, st.floats(0.05, 0.9))
def test_primal_is_dual(d: int, seed: int, share: float) -> None:
    """Columns of zeros turn the primal into the dual and leave the solution as it was.

    Three times the width divides the ridge ``s tr/(nd)`` by three; ``other`` keeps the proportion of
    ridge to scatter, and what is left is the factor 1 − s in front of both.
    """
    rows, rhs = centred(d + 1, d, seed), normal(d, seed=seed + 1)
    padded = (torch.nn.functional.pad(x, (0, 2 * d)) for x in (rows, rhs))
    dual, _ = shrunk_solve(*padded, share)
    ratio = share / (1 - share) / 3
    other = ratio / (1 + ratio)
    primal, _ = shrunk_solve(rows, rhs, other)
    assert close(dual[:d] * (1 - share), primal * (1 - other), 1e-9)
    assert not dual[d:].any()


@LAWS
@given(ROWS, WIDTHS, SEEDS, st.integers(1, 2))
def test_principal_rows_are_singular_vectors(n: int, d: int, seed: int, k: int) -> None:
    rows = normal(n, d, seed=seed) * torch.arange(1, d + 1).double().pow(-1)
    found = principal_rows(rows, k)
    expected = torch.linalg.svd(rows).Vh[:k]
    assert close(found @ found.T, torch.eye(k), 1e-9)
    assert close((found * expected).sum(-1).abs(), torch.ones(k), 1e-6)


@LAWS
@given(ROWS, WIDTHS, SEEDS)
def test_a_span_keeps_inner_products(n: int, d: int, seed: int) -> None:
    rows = normal(n, d, seed=seed)
    span = Span.of(rows)
    assert span.coordinates.shape == (n, min(n, d))
    assert close(span.lift(span.coordinates), rows)
    assert close(span.coordinates @ span.coordinates.T, rows @ rows.T)


@LAWS
@given(st.integers(1, 4), st.integers(4, 9), SEEDS)
def test_gram_schmidt_keeps_order_and_signs(k: int, d: int, seed: int) -> None:
    rows = normal(k, d, seed=seed)
    basis = orthonormal(rows)
    assert close(basis @ basis.T, torch.eye(k))
    along = rows @ basis.T
    assert close(along.tril(), along)
    assert (along.diagonal() > 0).all()


def test_too_few_dimensions_are_an_error() -> None:
    line = normal(5, 1, seed=0) * normal(1, 7, seed=1)
    for rows in (line, line.T):
        with pytest.raises(NoDirection, match="span 1 dimensions"):
            principal_rows(rows, 2)
    with pytest.raises(NoDirection, match="span 0"):
        principal_rows(torch.zeros(3, 4).double(), 1)
    with pytest.raises(ValueError, match="at least one component"):
        principal_rows(line, 0)
    for rows in (line[:2], normal(3, 2, seed=0)):
        with pytest.raises(NoDirection, match="in the span of"):
            orthonormal(rows)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shrinkage_outside_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match="must be in"):
        shrunk_solve(centred(5, 3, 0), torch.ones(3).double(), share)


def test_a_covariance_without_inverse_is_an_error() -> None:
    for rows in (centred(4, 9, 0), centred(6, 6, 0), torch.zeros(6, 3).double()):
        with pytest.raises(ValueError, match="no inverse"):
            shrunk_solve(rows, torch.ones(rows.shape[1]).double(), 0.0)
