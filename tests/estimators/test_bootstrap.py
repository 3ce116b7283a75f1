"""The bootstrap: its interval covers what it should, its cosines say what they claim."""

from __future__ import annotations

import pytest
import torch
from planting import close, cosine, normal, pair_of_classes
from sklearn.base import clone

from interp.estimators import LDA, Bootstrap, DiffMeans, SymmetricPCA


@pytest.mark.slow
def test_interval_covers_about_95_percent() -> None:
    """Each of 600 coordinates is a simulation of its own: is the true gap of 1 inside?"""
    d, n = 600, 80
    pos, neg = normal(n, d, seed=0) + 1.0, normal(n, d, seed=1)
    fitted = Bootstrap(DiffMeans(), n_boot=500, statistic=lambda e: e.vector_).fit(pos, neg)
    low, high = fitted.interval_.unbind(-1)
    covered = ((low <= 1.0) & (high >= 1.0)).double().mean().item()
    assert 0.92 < covered < 0.97
    # Its width is that of the normal interval, 2 · 1.96 · √(2/n).
    assert (high - low).mean().item() == pytest.approx(3.92 * (2 / n) ** 0.5, rel=0.04)
    assert close(fitted.value_, pos.mean(0) - neg.mean(0))
    half = Bootstrap(level=0.5, n_boot=500, statistic=lambda e: e.vector_).fit(pos, neg)
    low, high = half.interval_.unbind(-1)
    assert 0.44 < ((low <= 1.0) & (high >= 1.0)).double().mean().item() < 0.56


def test_pairs_are_resampled_together() -> None:
    """A topic that both rows of a pair share cancels in every resample of pairs, and in no other."""
    pos, neg = pair_of_classes(60, 8, seed=0, topic=20.0)
    together = Bootstrap(n_boot=40).fit(pos, neg, True)
    apart = Bootstrap(n_boot=40).fit(pos, neg)
    assert together.mean_cosine_ > 0.98
    assert apart.mean_cosine_ < 0.9
    assert together.split_half_ > 0.95
    assert apart.split_half_ < 0.7
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    by_index = Bootstrap(n_boot=40).fit(pos, neg[order], order.argsort())
    assert close(by_index.cosines_, together.cosines_)


def test_shapes_and_contents() -> None:
    pos, neg = pair_of_classes(2, 3, 15, 6, seed=0)
    fitted = Bootstrap(LDA(), n_boot=12, n_splits=3).fit(pos, neg[..., :11, :])
    assert fitted.cosines_.shape == (12, 2, 3)
    assert fitted.interval_.shape == (2, 3, 2)
    assert fitted.split_half_.shape == fitted.mean_cosine_.shape == (2, 3)
    assert close(fitted.mean_cosine_, fitted.cosines_.mean(0))
    assert close(fitted.value_, torch.ones(2, 3))
    assert torch.equal(fitted.values_, fitted.cosines_)
    expected = LDA().fit(pos, neg[..., :11, :])
    assert close(fitted.estimator_.unit_, expected.unit_)
    assert (fitted.interval_[..., 0] <= fitted.mean_cosine_).all()
    assert (fitted.interval_[..., 1] >= fitted.mean_cosine_).all()


def test_one_split_half_by_hand() -> None:
    pos, neg = pair_of_classes(10, 6, seed=0)
    rows = torch.randperm(10, generator=torch.Generator().manual_seed(6))
    halves = [SymmetricPCA().fit(pos[i], neg[i]) for i in (rows[:5], rows[5:])]
    found = Bootstrap(SymmetricPCA(), n_boot=2, n_splits=1, seed=5).fit(pos, neg, True)
    assert close(found.split_half_, cosine(halves[0].vector_, halves[1].vector_))


def test_a_seed_is_a_result() -> None:
    pos, neg = pair_of_classes(10, 6, seed=0)
    one = Bootstrap(n_boot=5, seed=1).fit(pos, neg)
    assert torch.equal(clone(one).fit(pos, neg).cosines_, one.cosines_)
    assert not torch.equal(Bootstrap(n_boot=5, seed=2).fit(pos, neg).cosines_, one.cosines_)


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 0.0}, {"n_boot": 0}, {"n_splits": 0}])
def test_impossible_settings(wrong: dict) -> None:
    with pytest.raises(ValueError, match="0 < level < 1"):
        Bootstrap(**wrong).fit(*pair_of_classes(6, 3, seed=0))


def test_one_row_cannot_be_resampled() -> None:
    with pytest.raises(ValueError, match="needs 2 in each class"):
        Bootstrap().fit(*pair_of_classes(1, 3, seed=0))
