"""Bad input gives one clear error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planting import EVERY, normal, pair_of_classes, without
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from interp.errors import NoDirection
from interp.estimators import (
    LDA,
    DiffMeans,
    IterativeProjection,
    KMeans2,
    Leace,
    PCADiff,
    PCASubspace,
    RandomOrderPCA,
    SymmetricPCA,
)

NEED_PAIRS = [
    *("symmetric PCA", "random-order PCA", "PCA of centred differences", "CCS"),
    *("PCA subspace", "PCA subspace, centred"),
]


@pytest.mark.parametrize("name", EVERY)
def test_equal_classes_have_no_direction(name: str) -> None:
    pos, neg = pair_of_classes(3, 10, 5, seed=0)
    neg[1] = pos[1].flip(0)
    with pytest.raises(NoDirection, match="class means are equal at layer 1"):
        clone(EVERY[name]).fit(pos, neg)


def test_equal_rows_have_no_direction_whatever_their_number() -> None:
    row = normal(64, seed=0, dtype=torch.float32) * 1e4
    with pytest.raises(NoDirection):
        DiffMeans().fit(row.repeat(128, 1), row.repeat(97, 1))
    with pytest.raises(NoDirection):
        DiffMeans().fit(row.double().repeat(128, 1) / 3, row.double().repeat(97, 1) / 3)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_row_is_named(name: str, bad: float) -> None:
    pos, neg = pair_of_classes(2, 10, 5, seed=0)
    neg[1, 7, 2] = bad
    neg[1, 8, 2] = -bad
    with pytest.raises(ValueError, match="X_neg: row 7 of layer 1 is NaN or infinite"):
        clone(EVERY[name]).fit(pos, neg)


def test_finite_rows_whose_sum_is_not() -> None:
    with pytest.raises(ValueError, match="X_pos: the sum of rows is NaN or infinite"):
        DiffMeans().fit(torch.full((3, 2), 1e308, dtype=torch.float64), torch.zeros(3, 2).double())


@pytest.mark.parametrize("name", EVERY)
def test_unequal_classes(name: str) -> None:
    pos, neg = pair_of_classes(12, 5, seed=0)
    neg = neg[:9]
    if name not in NEED_PAIRS:
        assert clone(EVERY[name]).fit(pos, neg).vector_.shape == (5,)
    else:
        with pytest.raises(ValueError, match="needs pairs, but the classes have 12 and 9 rows"):
            clone(EVERY[name]).fit(pos, neg)
        assert clone(EVERY[name]).fit(pos, neg, np.arange(12) % 9).vector_.shape == (5,)
    with pytest.raises(ValueError, match="pairs=True needs equal classes, got 12 and 9"):
        clone(EVERY[name]).fit(pos, neg, True)


@pytest.mark.parametrize(
    "pairs",
    [[0, 1], [0, 1, 2, 4], [-1, 0, 1, 2], torch.tensor([0.0, 1.0, 2.0, 3.0]), [[0, 1, 2, 3]]],
)
def test_pairs_that_name_no_rows(pairs) -> None:
    pos, neg = pair_of_classes(4, 5, seed=0)
    with pytest.raises(ValueError, match="pairs must be 4 row numbers of X_neg, each from 0 to 3"):
        SymmetricPCA().fit(pos, neg, torch.as_tensor(pairs))


@pytest.mark.parametrize(
    "name",
    [
        *("LDA", "LDA, fixed", "LEACE", "random-order PCA", "CCS", "iterative projection"),
        "PCA of centred differences",
    ],
)
def test_one_row_has_no_variance(name: str) -> None:
    pos, neg = pair_of_classes(3, 5, seed=0)
    with pytest.raises(ValueError, match="X_neg has 1 rows, this estimator needs 2"):
        clone(EVERY[name]).fit(pos, neg[:1])
    with pytest.raises(ValueError, match="X_pos has 1 rows, this estimator needs 2"):
        clone(EVERY[name]).fit(pos[:1], neg)


def test_one_row_is_enough_for_means() -> None:
    pos, neg = pair_of_classes(1, 5, seed=0)
    for fitted in (DiffMeans(), DiffMeans("geometric median"), SymmetricPCA(), KMeans2()):
        assert torch.allclose(fitted.fit(pos, neg).vector_, (pos - neg)[0])
    with pytest.raises(ValueError, match="X_pos has 0 rows, this estimator needs 1"):
        DiffMeans().fit(pos[:0], neg)


@pytest.mark.parametrize("name", without())
def test_shapes_that_do_not_fit(name: str) -> None:
    pos, neg = pair_of_classes(2, 10, 5, seed=0)
    for bad in (neg[..., :4], neg[0], neg[:1], neg[None]):
        with pytest.raises(ValueError, match="may differ in rows only"):
            clone(EVERY[name]).fit(pos, bad)
    with pytest.raises(ValueError, match=r"X_pos must be real and \[\*layers, rows, d\]"):
        clone(EVERY[name]).fit(pos[0, 0], neg)
    with pytest.raises(ValueError, match="X_neg must be real"):
        clone(EVERY[name]).fit(pos, neg.to(torch.complex64))
    with pytest.raises(ValueError, match="X_pos is empty"):
        clone(EVERY[name]).fit(pos[:0], neg)


def test_whole_numbers_are_rows_too() -> None:
    fitted = DiffMeans().fit(np.array([[1, 2], [3, 4]]), torch.tensor([[1, 1]]))
    assert torch.equal(fitted.vector_, torch.tensor([1.0, 2.0]).double())


def test_scores_want_the_layers_of_the_fit() -> None:
    pos, neg = pair_of_classes(2, 10, 5, seed=0)
    with pytest.raises(NotFittedError):
        DiffMeans().score(pos)
    with pytest.raises(NotFittedError):
        Leace().erase(pos)
    fitted = DiffMeans().fit(pos, neg)
    for bad in (pos[0], pos[:1], pos[..., :3]):
        with pytest.raises(ValueError, match="layers that it was fitted on"):
            fitted.score(bad)


def test_rows_that_want_a_gradient_are_left_alone() -> None:
    pos, neg = pair_of_classes(10, 5, seed=0)
    for name in ("mean", "CCS", "logistic"):
        fitted = clone(EVERY[name]).fit(pos.requires_grad_(), neg)
        assert not fitted.vector_.requires_grad
        assert pos.grad is None
    with torch.inference_mode():
        assert clone(EVERY["mean"]).fit(pos, neg).vector_.isfinite().all()


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (DiffMeans().set_params(centre="mode"), "centre must be"),
        (DiffMeans("trimmed", trim=0.5), r"trim must be in \[0, 0.5\)"),
        (PCASubspace().set_params(of="sums"), "of must be"),
        (PCASubspace(k=0), "at least one component"),
        (IterativeProjection(k=0), "at least one round"),
        (LDA(2.0), r"shrinkage must be in \[0, 1\]"),
        (LDA(0.0), "no inverse"),
        (PCASubspace(k=9), "span 6 dimensions, fewer than k = 9"),
    ],
)
def test_parameters_that_do_not_fit(estimator, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator.fit(*pair_of_classes(6, 12, seed=0))


@pytest.mark.parametrize(
    "estimator", [PCADiff(), RandomOrderPCA(seed=1), LDA(), LDA(0.0), Leace(0.0)]
)
def test_rows_that_never_vary(estimator) -> None:
    """Every pair differs by the same vector and no row differs from its class: nothing to centre."""
    pos, neg = (row.repeat(6, 1) for row in torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]))
    if isinstance(estimator, RandomOrderPCA):
        # Order still differs: this one alone finds the shift.
        assert torch.allclose(estimator.fit(pos, neg).vector_, pos[0] - neg[0])
    else:
        with pytest.raises(ValueError, match=r"span 0 dimensions|no inverse"):
            estimator.fit(pos, neg)
