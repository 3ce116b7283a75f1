"""Planted truths: what each estimator finds, how well, and where it is known to fail."""

from __future__ import annotations

from math import exp, sqrt

import pytest
import torch
from hypothesis import given
from planting import LAWS, SEEDS, auroc, close, cosine, normal, pair_of_classes
from scipy.stats import trim_mean
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from interp.errors import NoDirection
from interp.estimators import (
    CCS,
    LDA,
    SOM,
    DiffMeans,
    Estimator,
    IterativeProjection,
    KMeans2,
    Logistic,
    PCADiff,
    PCASubspace,
    RandomOrderPCA,
    SymmetricPCA,
)
from interp.estimators.means import geometric_median

# --- means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "size"), [(64, 64, 3.0), (64, 200, 3.0), (30, 30, 6.0)])
def test_difference_of_means_is_as_good_as_predicted(n: int, m: int, size: float) -> None:
    """``cos ≈ 1/√(1 + dσ²(1/n⁺ + 1/n⁻)/‖δ‖²)``, here the mean over 40 layers of noise, σ = 1."""
    d = 128
    delta = size * torch.nn.functional.normalize(normal(40, d, seed=1), dim=-1)
    pos, neg = normal(40, n, d, seed=2) + delta[:, None], normal(40, m, d, seed=3)
    predicted = 1 / sqrt(1 + d * (1 / n + 1 / m) / size**2)
    found = cosine(DiffMeans().fit(pos, neg).vector_, delta)
    assert found.mean().item() == pytest.approx(predicted, abs=0.012)


@LAWS
@given(SEEDS)
def test_geometric_median_has_the_least_sum_of_distances(seed: int) -> None:
    for n, d in ((15, 4), (6, 11)):
        rows = normal(1, n, d, seed=seed).exp()
        best = geometric_median(rows)[0]
        least = (rows[0] - best).norm(dim=-1).sum()
        for k in range(6):
            other = best + 10.0 ** (-k) * normal(d, seed=seed + k)
            assert (rows[0] - other).norm(dim=-1).sum() >= least * (1 - 1e-12)


def test_geometric_median_may_be_a_row() -> None:
    """Most rows in one place: the median is there, though Weiszfeld divides by a distance of 0."""
    rows = torch.zeros(1, 7, 3).double()
    rows[0, :2] = normal(2, 3, seed=0)
    assert geometric_median(rows).norm() < 1e-6


def test_trimmed_means_are_those_of_scipy() -> None:
    pos, neg = pair_of_classes(23, 5, seed=0)
    expected = trim_mean(pos.numpy(), 0.2) - trim_mean(neg.numpy(), 0.2)
    assert close(DiffMeans("trimmed", trim=0.2).fit(pos, neg).vector_, torch.from_numpy(expected))
    assert close(
        DiffMeans("trimmed", trim=0.0).fit(pos, neg).vector_, DiffMeans().fit(pos, neg).vector_
    )


def test_one_wild_row_moves_the_mean_only() -> None:
    pos, neg = pair_of_classes(100, 16, seed=0)
    truth = DiffMeans().fit(pos, neg).vector_
    pos[3] += 1e4 * normal(16, seed=9)
    assert cosine(DiffMeans().fit(pos, neg).vector_, truth) < 0.5
    for centre in ("trimmed", "geometric median"):
        assert cosine(DiffMeans(centre).fit(pos, neg).vector_, truth) > 0.98


# --- components ----------------------------------------------------------------------------------


def shifted_pairs(nuisance: float, size: float = 6.0) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs that differ by δ = size·e₀, unit noise, and a nuisance along e₁: λ_max = nuisance² + 1."""
    d, n = 32, 3000
    difference = normal(n, d, seed=1)
    difference[:, 1] += nuisance * normal(n, seed=2)
    difference[:, 0] += size
    neg = 5 * normal(n, d, seed=3)
    return neg + difference, neg, torch.eye(d).double()[0]


@pytest.mark.parametrize(("nuisance", "found"), [(4.0, True), (8.0, False)])
def test_symmetric_pca_needs_a_shift_above_the_largest_eigenvalue(
    nuisance: float, found: bool
) -> None:
    pos, neg, truth = shifted_pairs(nuisance)
    symmetric = cosine(SymmetricPCA().fit(pos, neg).unit_, truth)
    mixed = cosine(RandomOrderPCA().fit(pos, neg).unit_, truth)
    subspace = PCASubspace(k=1).fit(pos, neg)
    assert cosine(subspace.unit_, truth) == pytest.approx(symmetric.item())
    if found:
        assert symmetric > 0.97
        assert mixed > 0.97
    else:
        assert symmetric < 0.3
        assert mixed.abs() < 0.3
    assert cosine(DiffMeans().fit(pos, neg).unit_, truth) > 0.98
    assert cosine(PCADiff().fit(pos, neg).unit_, truth) < 0.3
    both = PCASubspace(k=2).fit(pos, neg)
    assert cosine(both.unit_, truth) > 0.98


def test_centred_pca_loses_even_a_lone_shift() -> None:
    pos, neg, truth = shifted_pairs(0.0)
    assert cosine(SymmetricPCA().fit(pos, neg).unit_, truth) > 0.999
    assert cosine(PCADiff().fit(pos, neg).unit_, truth) < 0.5
    centred = PCASubspace(k=1, of="centred differences").fit(pos, neg)
    assert close(centred.unit_, PCADiff().fit(pos, neg).unit_, 1e-9)


def test_random_order_goes_by_the_majority_and_not_by_the_mean() -> None:
    """Nine pairs point one way; the tenth is so long that the mean points the other."""
    differences = torch.zeros(10, 3).double()
    differences[:, 0] = torch.linspace(1.0, 1.2, 10)
    differences[9, 0] = -40.0
    differences += 1e-3 * normal(10, 3, seed=0)
    neg = normal(10, 3, seed=1)
    pos = neg + differences
    assert SymmetricPCA().fit(pos, neg).unit_[0] < -0.99
    assert RandomOrderPCA().fit(pos, neg).unit_[0] > 0.99


def test_random_order_settles_a_tie_by_the_largest_entry() -> None:
    neg = torch.zeros(2, 2).double()
    pos = torch.tensor([[3.0, 1.0], [-2.0, -0.5]]).double()
    for sign in (1, -1):
        assert RandomOrderPCA(seed=1).fit(sign * pos, neg).unit_[0] > 0.8


# --- discriminants -------------------------------------------------------------------------------


def test_without_correlation_all_agree() -> None:
    pos, neg = normal(4000, 64, seed=0), normal(4000, 64, seed=1)
    pos[:, 0] += 3.0
    fits: list[Estimator] = [DiffMeans(), LDA(), Logistic(), SymmetricPCA()]
    reads = torch.stack([f.fit(pos, neg).read_ for f in fits])
    for a in reads:
        for b in reads:
            assert cosine(a, b) > 0.96


def correlated(n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """A shift along e₀ + e₁ and a large nuisance along e₁."""
    rows = normal(2, n, d, seed=seed)
    rows[:, :, 1] += 6 * normal(2, n, seed=seed + 1)
    rows[0, :, :2] += 2.0
    return rows[0], rows[1]


@pytest.mark.parametrize("better", [LDA(), LDA(0.0), Logistic(C=10.0)])
def test_a_correlated_nuisance_is_read_around(better: Estimator) -> None:
    fit, held_out = correlated(1000, 8, seed=0), correlated(1000, 8, seed=7)
    plain = auroc(*(DiffMeans().fit(*fit).score(x) for x in held_out))
    assert auroc(*(better.fit(*fit).score(x) for x in held_out)) > plain + 0.1
    assert close(better.vector_, DiffMeans().fit(*fit).vector_)  # but written as the class gap


def test_unshrunk_lda_is_that_of_scikit_learn() -> None:
    pos, neg = pair_of_classes(40, 6, seed=0)
    rows, labels = torch.cat([pos, neg]).numpy(), [1] * 40 + [0] * 40
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(rows, labels)
    fitted = LDA(0.0).fit(pos, neg)
    assert close(fitted.read_, torch.from_numpy(theirs.coef_[0]), 1e-8)
    assert close(fitted.score(pos), torch.from_numpy(theirs.decision_function(pos.numpy())), 1e-8)


def test_shrinkage_helps_where_columns_outnumber_rows() -> None:
    d = 120
    delta = 3 * torch.nn.functional.normalize(normal(d, seed=0), dim=0)
    # As many rows as columns, where the covariance is worst conditioned.
    pos, neg = normal(62, d, seed=1) + delta, normal(62, d, seed=2)
    shrunk = cosine(LDA().fit(pos, neg).read_, delta)
    assert shrunk > 0.75
    assert cosine(LDA(1e-6).fit(pos, neg).read_, delta) < shrunk - 0.3
    assert LDA().fit(pos, neg).shrinkage_ > 0.5


@pytest.mark.parametrize("m", [30, 11])
def test_logistic_score_is_the_logit_at_its_optimum(m: int) -> None:
    """The gradient is zero: ``w s² = C Σ c (y − p) x``, x from the midpoint, c = (n + m)/2n or /2m."""
    pos, neg = pair_of_classes(30, 4, seed=0, shift=1.0)
    neg = neg[:m]
    fitted = Logistic(C=0.7, tol=1e-12).fit(pos, neg)
    rows = torch.cat([pos, neg]) - (pos.mean(0) + neg.mean(0)) / 2
    labels = torch.cat([torch.ones(30), torch.zeros(m)]).double()
    share = torch.cat([torch.full((k,), (30 + m) / (2 * k)) for k in (30, m)]).double()
    residual = share * (labels - torch.sigmoid(torch.cat([fitted.score(x) for x in (pos, neg)])))
    assert close(fitted.read_ * rows.square().mean(), 0.7 * residual @ rows, 1e-5)


# --- unsupervised --------------------------------------------------------------------------------


def test_two_means_of_separate_blobs_are_the_class_means() -> None:
    pos, neg = pair_of_classes(3, 40, 8, seed=0, shift=40.0)
    fitted = KMeans2().fit(pos, neg)
    assert close(fitted.vector_, DiffMeans().fit(pos, neg).vector_)
    assert torch.equal(fitted.agreement_, torch.ones(3).double())


@LAWS
@given(SEEDS)
def test_two_means_is_a_fixed_point(seed: int) -> None:
    """Splitting halfway between the centroids gives the centroids back: some cut along the vector does."""
    pos, neg = pair_of_classes(30, 5, seed=seed, shift=1.0)
    fitted = KMeans2().fit(pos, neg)
    rows = torch.cat([pos, neg])
    rows = rows[(rows @ fitted.vector_).argsort()]
    along = rows @ fitted.vector_
    for k in range(1, 60):
        low, high = rows[:k].mean(0), rows[k:].mean(0)
        halfway = (low + high) @ fitted.vector_ / 2
        if close(high - low, fitted.vector_) and along[k - 1] <= halfway <= along[k]:
            break
    else:
        pytest.fail("no cut along the vector has its centroids")
    labels = torch.cat([torch.ones(30), torch.zeros(30)]).bool()
    shuffled = labels[(torch.cat([pos, neg]) @ fitted.vector_).argsort()]
    right = shuffled[k:].sum() + (~shuffled[:k]).sum()
    assert fitted.agreement_.item() == pytest.approx(right.item() / 60)


def answers(n: int = 200, d: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """True and false rows: topic ± θ, in two formats that the class does not know of."""
    truth = torch.nn.functional.normalize(normal(d, seed=1), dim=0)
    topic = 0.3 * normal(n, d, seed=2)
    noise = 0.2 * normal(2, n, d, seed=3)
    return topic + 2 * truth + noise[0], topic - 2 * truth + noise[1], truth


def test_ccs_finds_truth_from_consistency_alone() -> None:
    pos, neg, truth = answers()
    fitted = CCS(restarts=4, epochs=300, lr=0.02).fit(pos, neg)
    assert cosine(fitted.unit_, truth) > 0.9
    assert auroc(fitted.score(pos), fitted.score(neg)) > 0.99
    assert fitted.loss_ < 0.05


@pytest.mark.slow
def test_ccs_in_the_layout_of_its_paper_needs_a_mix_of_truths() -> None:
    """Sides "yes" and "no" with truth in both: found up to sign. True against false: centred away."""
    pos, neg, truth = answers()
    side = torch.arange(200)[:, None] % 2 == 0
    yes, no = torch.where(side, pos, neg), torch.where(side, neg, pos)
    as_published = CCS(restarts=4, epochs=300, lr=0.02, shuffle=False)
    assert cosine(as_published.fit(yes + 1.0, no - 1.0).unit_, truth).abs() > 0.9
    assert as_published.loss_ < 0.01
    assert as_published.fit(pos, neg).loss_ > 0.15  # nothing is consistent: 0.25 for p = ½


def test_more_ccs_starts_never_end_worse() -> None:
    pos, neg, _ = answers(50)
    one = CCS(restarts=1, epochs=20).fit(pos, neg).loss_
    assert CCS(restarts=8, epochs=20).fit(pos, neg).loss_ < one


# --- subspaces -----------------------------------------------------------------------------------


def test_a_map_of_one_node_is_the_mean() -> None:
    pos, neg = pair_of_classes(2, 60, 10, seed=0)
    one = SOM(1, 1, k=1).fit(pos, neg)
    plain = DiffMeans().fit(pos, neg)
    assert (cosine(one.directions_[:, 0], plain.vector_) > 0.99).all()
    assert (cosine(one.unit_, plain.unit_) > 0.99).all()
    assert torch.equal(one.hits_, torch.full((2, 1), 60))


def test_a_map_finds_the_clusters_of_the_positive_class() -> None:
    neg = 0.1 * normal(60, 6, seed=0)
    pos = 0.1 * normal(60, 6, seed=1)
    pos[:40, 0] += 5.0
    pos[40:, 1] += 5.0
    fitted = SOM(2, 2, k=3, steps=4000, lr=0.05).fit(pos, neg)
    assert fitted.hits_.sum() == 60
    for rows in (pos[:40], pos[40:]):
        towards = rows.mean(0) - neg.mean(0)
        assert (fitted.directions_ - towards).norm(dim=-1).min() < 0.3
    assert close(fitted.basis_ @ fitted.basis_.T, torch.eye(3))
    # The basis is that of the three nodes with most hits, and holds the class gap's part in it.
    top = fitted.directions_[fitted.hits_.argsort(descending=True, stable=True)[:3]]
    assert close(top @ fitted.basis_.T @ fitted.basis_, top)
    assert close(fitted.vector_, (pos.mean(0) - neg.mean(0)) @ fitted.basis_.T @ fitted.basis_)


def test_a_map_step_by_step() -> None:
    """Two nodes in full width, written out."""
    pos, neg = pair_of_classes(6, 9, seed=0)
    steps, lr, sigma = 50, 0.3, 0.8
    generator = torch.Generator().manual_seed(4)
    start = torch.randperm(6, generator=generator)[:2]
    drawn = torch.randint(6, (steps,), generator=generator)
    one, two = pos[start]
    for t, row in enumerate(drawn.tolist()):
        x, cooling = pos[row], 1 + 2 * t / steps
        near, far = lr / cooling, lr / cooling * exp(-0.5 / (sigma / cooling) ** 2)
        first = (x - one).norm() <= (x - two).norm()
        one = one + (near if first else far) * (x - one)
        two = two + (far if first else near) * (x - two)
    found = SOM(1, 2, k=1, steps=steps, lr=lr, sigma=sigma, seed=4).fit(pos, neg)
    assert close(found.directions_, torch.stack([one, two]) - neg.mean(0))


def test_neighbours_on_the_map_move_together() -> None:
    """With a wide neighbourhood all nodes follow every row and end where one node does."""
    pos, neg = pair_of_classes(60, 5, seed=0)
    wide = SOM(2, 2, k=1, steps=3000, sigma=1e5, lr=0.02).fit(pos, neg)
    narrow = SOM(2, 2, k=1, steps=3000, sigma=0.1, lr=0.02).fit(pos, neg)
    assert wide.directions_.std(0).max() < 1e-6
    assert narrow.directions_.std(0).max() > 0.1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_iterative_projection_takes_one_direction_at_a_time(k: int) -> None:
    pos, neg = pair_of_classes(2, 80, 8, seed=0)
    fitted = IterativeProjection(k=k).fit(pos, neg)
    assert fitted.basis_.shape == (2, k, 8)
    assert close(fitted.basis_ @ fitted.basis_.mT, torch.eye(k).expand(2, k, k))
    first = LDA().fit(pos, neg).read_
    assert close(cosine(fitted.basis_[:, 0], first), torch.ones(2))
    q = fitted.basis_
    rest = [x - x @ q.mT @ q for x in (pos, neg)]
    if k > 1:
        before = [x - x @ q[:, :1].mT @ q[:, :1] for x in (pos, neg)]
        second = LDA().fit(*before).read_
        assert close(cosine(q[:, 1], second), torch.ones(2))
    assert auroc(*(LDA().fit(*rest).score(x)[0] for x in rest)) < auroc(
        *(LDA().fit(pos, neg).score(x)[0] for x in (pos, neg))
    )


def test_nothing_is_left_after_the_means_are_projected_out() -> None:
    pos, neg = pair_of_classes(20, 5, seed=0)
    one = IterativeProjection(DiffMeans(), k=1).fit(pos, neg)
    assert close(one.unit_, DiffMeans().fit(pos, neg).unit_)
    with pytest.raises(NoDirection, match="nothing is left to read after 1 of k = 2 rounds"):
        IterativeProjection(DiffMeans(), k=2).fit(pos, neg)
