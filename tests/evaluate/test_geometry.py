"""Reading measures: equal to sklearn's, and the laws that they keep."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, silhouette_score

from interp.estimators import DiffMeans, PCADiff
from interp.evaluate.geometry import (
    auroc,
    cosines,
    d_prime,
    interval,
    plane,
    residual_geometry,
    silhouette,
    split_half_cosine,
)

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def classes(shift: float = 3.0, n: int = 60, d: int = 16, layers: int = 2):
    """Two Gaussian classes per layer, ``shift`` apart along the first coordinate."""
    pos, neg = gaussian(layers, n, d), gaussian(layers, n, d, seed=1)
    pos[..., 0] += shift
    return pos, neg


# --- AUROC and d′ ------------------------------------------------------------------------------


@given(SCORES, SCORES)
def test_auroc_equals_sklearns(pos: list[float], neg: list[float]) -> None:
    """Whole numbers, so that ties are common."""
    labels = [1] * len(pos) + [0] * len(neg)
    ours = auroc(torch.tensor(pos), torch.tensor(neg)).item()
    assert ours == pytest.approx(roc_auc_score(labels, pos + neg), abs=1e-12)


@given(SCORES, SCORES)
def test_auroc_knows_only_ranks_and_turns_with_the_labels(
    pos: list[float], neg: list[float]
) -> None:
    p, q = torch.tensor(pos), torch.tensor(neg)
    assert auroc(p.double().exp(), q.double().exp()).equal(auroc(p, q))
    assert auroc(q, p).item() == pytest.approx(1 - auroc(p, q).item(), abs=1e-12)


def test_layers_are_measured_on_their_own() -> None:
    pos, neg = gaussian(2, 3, 20), gaussian(2, 3, 11, seed=1)
    for measure in (auroc, d_prime):
        whole = measure(pos, neg)
        assert whole.shape == (2, 3)
        assert whole[1, 2].item() == pytest.approx(measure(pos[1, 2], neg[1, 2]).item())


@given(st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_d_prime_ignores_scale_and_origin(scale: float, origin: float) -> None:
    pos, neg = gaussian(40).double() + 1, gaussian(30, seed=1).double()
    moved = d_prime(scale * pos + origin, scale * neg + origin)
    assert moved.item() == pytest.approx(d_prime(pos, neg).item(), rel=1e-9)
    assert d_prime(neg, pos).item() == pytest.approx(-d_prime(pos, neg).item())


def test_d_prime_of_gaussians_is_their_distance() -> None:
    assert d_prime(gaussian(20000) + 2, gaussian(20000, seed=1)).item() == pytest.approx(2, abs=0.1)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    good = torch.zeros(3)
    with pytest.raises(ValueError, match="positive class has 0"):
        auroc(torch.zeros(0), good)
    with pytest.raises(ValueError, match="negative class has 1"):
        d_prime(good, torch.zeros(1))
    with pytest.raises(ValueError, match="NaN"):
        auroc(good, torch.tensor([0.0, float("nan")]))


# --- intervals ---------------------------------------------------------------------------------


def test_interval_is_sorted_repeatable_and_holds_the_value() -> None:
    pos, neg = gaussian(3, 50) + 1, gaussian(3, 40, seed=1)
    for measure in (auroc, d_prime):
        low, high = interval(measure, pos, neg, n_boot=300).unbind(-1)
        value = measure(pos, neg)
        assert (low < value).all()
        assert (value < high).all()
        assert interval(measure, pos, neg, n_boot=300)[..., 0].equal(low)


def test_interval_covers_the_true_auroc_about_as_often_as_it_says() -> None:
    """60 samples at once, as layers; each has the true value Φ(1/√2)."""
    truth = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.5**0.5)).item()
    ends = interval(auroc, gaussian(60, 50) + 1, gaussian(60, 50, seed=1), n_boot=400)
    covered = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).double().mean().item()
    assert 0.85 <= covered <= 1.0


def test_paired_rows_are_drawn_together() -> None:
    """Scores a pair shares leave the paired difference of means exact, and the unpaired one not."""
    neg = 10 * gaussian(40).double()

    def difference(pos: torch.Tensor, neg: torch.Tensor) -> torch.Tensor:
        return pos.mean(-1) - neg.mean(-1)

    together = interval(difference, neg + 1, neg, n_boot=100, paired=True)
    apart = interval(difference, neg + 1, neg, n_boot=100)
    assert together.tolist() == pytest.approx([1, 1])
    assert (apart[1] - apart[0]).item() > 1
    with pytest.raises(ValueError, match="40 and 39"):
        interval(difference, neg, neg[1:], paired=True)


# --- directions --------------------------------------------------------------------------------


def test_cosines_are_those_of_every_pair() -> None:
    rows = gaussian(4, 9)
    found = cosines(rows)
    assert found.diagonal().tolist() == pytest.approx([1] * 4)
    expected = torch.cosine_similarity(rows[1], rows[3], 0).item()
    assert found[1, 3].item() == found[3, 1].item() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(cosines(-3 * rows), found)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100))
def test_split_half_is_high_for_a_class_gap_and_low_for_a_nuisance(seed: int) -> None:
    pos, neg = classes(shift=8.0)
    assert (split_half_cosine(DiffMeans(), pos, neg, 30, seed) > 0.95).all()
    assert (split_half_cosine(PCADiff(), pos, neg, 30, seed) < 0.95).all()


def test_split_halves_share_no_row() -> None:
    with pytest.raises(ValueError, match="need 62 in each class, got 60"):
        split_half_cosine(DiffMeans(), *classes(), 31)
    # Two rows a class: one half is one pair, the other half the other.
    pos, neg = classes(n=2, layers=1)
    halves = cosines((pos - neg)[0])[0, 1].item()
    assert split_half_cosine(DiffMeans(), pos, neg, 1).item() == pytest.approx(halves, abs=1e-6)


# --- rows --------------------------------------------------------------------------------------


def test_silhouette_is_sklearns_at_every_layer() -> None:
    pos, neg = classes()
    labels = [1] * 60 + [0] * 60
    expected = [silhouette_score(torch.cat([p, q]), labels) for p, q in zip(pos, neg, strict=True)]
    assert silhouette(pos, neg).tolist() == pytest.approx(expected, abs=1e-5)


def test_plane_has_the_gap_on_its_first_axis_and_the_nuisance_on_its_second() -> None:
    pos, neg = classes()
    pos[..., 1] *= 6
    neg[..., 1] *= 6
    each = [plane(*sides) for sides in zip(pos, neg, strict=True)]
    p, q = (torch.stack(side) for side in zip(*each, strict=True))
    assert p.shape == q.shape == (2, 60, 2)
    gap = p.mean(1) - q.mean(1)
    assert gap[:, 0].tolist() == pytest.approx((pos - neg).mean(1).norm(dim=-1).tolist(), rel=1e-5)
    assert gap[:, 1].abs().max() < 1e-5  # across the difference of means, so the means agree
    assert (p.mean(1) + q.mean(1)).abs().max() < 1e-5
    for layer in range(2):  # no direction across the difference has more variance
        rows = torch.cat([pos[layer], neg[layer]]).double()
        unit = (pos[layer].mean(0) - neg[layer].mean(0)).double()
        unit /= unit.norm()
        largest = torch.linalg.eigvalsh(torch.cov((rows - (rows @ unit)[:, None] * unit).T))[-1]
        second = torch.cat([p[layer], q[layer]])[:, 1]
        assert second.var().item() == pytest.approx(largest.item(), rel=1e-5)


def test_residual_geometry_of_planted_means() -> None:
    """Classes at (3, 4) and (3, 0): cosines 3/5, 4/5 and 0, norms 5, 3 and 4."""
    noise = 0.01 * gaussian(2, 400, 8)
    centres = torch.zeros(2, 8)
    centres[0, :2] = torch.tensor([3.0, 4.0])
    centres[1, 0] = 3.0
    rows = residual_geometry(noise + centres[0], -noise + centres[1])
    assert [row["layer"] for row in rows] == [0, 1]
    expected = {
        "cos_means": 0.6,
        "cos_pos_difference": 0.8,
        "cos_neg_difference": 0.0,
        "norm_pos": 5.0,
        "norm_neg": 3.0,
        "norm_difference": 4.0,
    }
    for row in rows:
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=0.01)
            assert row[f"median_{name}"] == pytest.approx(value, abs=0.01)
        assert row["silhouette"] > 0.95


def test_one_wild_row_moves_the_mean_and_not_the_median() -> None:
    pos, neg = classes(layers=1)
    pos[0, 0] = 1e4
    (row,) = residual_geometry(pos, neg)
    assert row["norm_difference"] > 100 > row["median_norm_difference"]
