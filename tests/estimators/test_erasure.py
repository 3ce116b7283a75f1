"""LEACE: what is erased, what is kept, and that no other eraser changes less."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planting import LAWS, SEEDS, close, cosine, normal, pair_of_classes
from torch import Tensor

from interp.errors import NoDirection
from interp.estimators import LDA, Leace

SHAPES = st.sampled_from([(25, 6), (8, 14)])


def covariance_with_class(pos: Tensor, neg: Tensor) -> Tensor:
    rows = torch.cat([pos, neg])
    labels = torch.cat([torch.ones(len(pos)), torch.zeros(len(neg))]).double()
    return (labels - labels.mean()) @ (rows - rows.mean(0)) / len(rows)


@LAWS
@given(SHAPES, SEEDS, st.sampled_from(["ledoit-wolf", 0.2, 1.0]), st.integers(0, 4))
def test_no_linear_information_is_left(shape, seed: int, shrinkage, fewer: int) -> None:
    pos, neg = pair_of_classes(*shape, seed=seed)
    neg = neg[fewer:]
    fitted = Leace(shrinkage).fit(pos, neg)
    erased = [fitted.erase(x) for x in (pos, neg)]
    assert close(erased[0].mean(0), erased[1].mean(0), 1e-10)
    assert covariance_with_class(*erased).norm() < 1e-10 * covariance_with_class(pos, neg).norm()
    with pytest.raises(NoDirection):
        LDA().fit(*erased)
    # The mean of all rows stays where it was.
    assert close(torch.cat(erased).mean(0), torch.cat([pos, neg]).mean(0), 1e-10)


@LAWS
@given(SHAPES, SEEDS)
def test_erasing_twice_is_erasing_once(shape, seed: int) -> None:
    pos, neg = pair_of_classes(2, *shape, seed=seed)
    fitted = Leace().fit(pos, neg)
    X = normal(2, 5, shape[1], seed=seed + 9)
    once = fitted.erase(X)
    assert close(fitted.erase(once), once, 1e-10)
    matrix = fitted.matrix_
    assert matrix.shape == (2, shape[1], shape[1])
    assert close(matrix @ matrix, matrix, 1e-9)
    assert close((matrix @ X.mT).mT + fitted.bias_[:, None], once, 1e-10)
    assert close((matrix @ fitted.vector_[..., None]), torch.zeros(2, shape[1], 1))


@LAWS
@given(SEEDS)
def test_no_other_eraser_disturbs_less(seed: int) -> None:
    """Any q with q·Δ = 1 erases; unshrunk LEACE changes the rows least in mean square."""
    pos, neg = pair_of_classes(40, 5, seed=seed)
    fitted = Leace(0.0).fit(pos, neg)
    rows = torch.cat([pos, neg])
    gap = fitted.vector_

    def change(q: Tensor) -> float:
        return torch.outer((rows - rows.mean(0)) @ q, gap).square().mean().item()

    least = change(fitted.read_)
    assert least == pytest.approx((rows - fitted.erase(rows)).square().mean().item())
    assert (fitted.read_ @ gap).item() == pytest.approx(1.0)
    assert change(gap / gap.square().sum()) >= least  # the orthogonal projection
    for k in range(6):
        step = normal(5, seed=seed + k)
        step = 0.1 * (step - gap * (step @ gap) / gap.square().sum())
        assert change(fitted.read_ + step) >= least * (1 - 1e-12)


@LAWS
@given(SEEDS, st.integers(0, 10))
def test_unshrunk_it_reads_as_lda_does(seed: int, fewer: int) -> None:
    """Total and within-class covariance differ by ΔΔᵀ, which does not turn Σ⁻¹Δ."""
    pos, neg = pair_of_classes(30, 5, seed=seed)
    one, two = (e(0.0).fit(pos, neg[fewer:]) for e in (Leace, LDA))
    assert cosine(one.read_, two.read_).item() == pytest.approx(1.0, abs=1e-10)


@LAWS
@given(SEEDS, st.integers(0, 10))
def test_correlation_is_that_of_the_best_linear_reader(seed: int, fewer: int) -> None:
    pos, neg = pair_of_classes(30, 4, seed=seed, shift=1.0)
    neg = neg[fewer:]
    fitted = Leace(0.0).fit(pos, neg)
    labels = torch.cat([torch.ones(len(pos)), torch.zeros(len(neg))]).double()
    read = torch.cat([fitted.score(pos), fitted.score(neg)])
    expected = torch.corrcoef(torch.stack([labels, read]))[0, 1]
    assert fitted.correlation_.item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_concept_below_the_tolerance_is_left_alone() -> None:
    pos, neg = pair_of_classes(30, 4, seed=0)
    near = neg + 1e-4 * (pos.mean(0) - neg.mean(0))
    assert torch.equal(Leace().fit(near, neg).erase(pos), pos)
    assert not torch.equal(Leace(svd_tol=1e-9).fit(near, neg).erase(pos), pos)
    # At equal classes the singular value is half of the correlation.
    strength = Leace().fit(pos, neg).correlation_.item() / 2
    assert not Leace(svd_tol=strength * 1.01).fit(pos, neg).left_.any()
    assert Leace(svd_tol=strength * 0.99).fit(pos, neg).left_.any()


def test_rows_keep_their_dtype_and_layers() -> None:
    pos, neg = (x.bfloat16() for x in pair_of_classes(2, 3, 20, 4, seed=0))
    fitted = Leace().fit(pos, neg)
    assert fitted.erase(pos).dtype == torch.bfloat16
    assert fitted.erase(pos.float().numpy()).shape == (2, 3, 20, 4)
    assert fitted.bias_.shape == fitted.mean_.shape == (2, 3, 4)
    with pytest.raises(ValueError, match="layers that it was fitted on"):
        fitted.erase(pos[0])
