"""Laws that hold for every estimator, or for all but the few named with the reason."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planting import EVERY, LAWS, SEEDS, close, cosine, normal, pair_of_classes, rotation, without
from sklearn.base import clone

from interp.estimators import ESTIMATORS, LDA, Estimator, RandomDirection
from interp.maths import difference_of_means, mean

SHAPES = st.sampled_from([(24, 6), (9, 14)])  # more rows than columns, and fewer
LOOSE = {"logistic": 1e-4, "geometric median": 1e-7}


def fresh(name: str) -> Estimator:
    return clone(EVERY[name])


@pytest.mark.parametrize("name", EVERY)
@LAWS
@given(SHAPES, SEEDS)
def test_attributes_keep_their_promises(name: str, shape: tuple[int, int], seed: int) -> None:
    pos, neg = pair_of_classes(2, *shape, seed=seed)
    fitted = fresh(name).fit(pos, neg)
    gap = pos.mean(-2) - neg.mean(-2)
    assert close(fitted.mean_pos_, pos.mean(-2))
    assert close(fitted.mean_neg_, neg.mean(-2))
    assert close(fitted.midpoint_, (pos.mean(-2) + neg.mean(-2)) / 2)
    assert close(fitted.unit_.norm(dim=-1), torch.ones(2))
    assert close(fitted.unit_ * fitted.vector_.norm(dim=-1, keepdim=True), fitted.vector_)
    if EVERY[name].oriented:
        assert ((fitted.vector_ * gap).sum(-1) > 0).all()
    X = normal(2, 5, shape[1], seed=seed + 9)
    expected = ((X - fitted.midpoint_[:, None]) * fitted.read_[:, None]).sum(-1)
    assert close(fitted.score(X), expected)


@pytest.mark.parametrize("name", EVERY)
@LAWS
@given(SHAPES, SEEDS)
def test_the_positive_class_scores_higher(name: str, shape: tuple[int, int], seed: int) -> None:
    pos, neg = pair_of_classes(*shape, seed=seed, shift=6.0)
    fitted = fresh(name).fit(pos, neg)
    if EVERY[name].oriented:
        assert fitted.score(pos).mean() > 0 > fitted.score(neg).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", without("random"))  # one independent draw a layer
@LAWS
@given(SHAPES, SEEDS)
def test_all_layers_at_once_is_one_at_a_time(name: str, shape: tuple[int, int], seed: int) -> None:
    pos, neg = pair_of_classes(2, 2, *shape, seed=seed)
    together = fresh(name).fit(pos, neg)
    X = normal(2, 2, 3, shape[1], seed=seed + 9)
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        alone = fresh(name).fit(pos[a, b], neg[a, b])
        for attribute in [k for k in vars(alone) if k.endswith("_")]:
            assert close(getattr(together, attribute)[a, b], getattr(alone, attribute), 1e-7)
        assert close(together.score(X)[a, b], alone.score(X[a, b]), 1e-7)


def test_random_layers_are_independent_draws() -> None:
    pos, neg = pair_of_classes(50, 8, 64, seed=0)
    fitted = RandomDirection(seed=1).fit(pos, neg)
    assert (fitted.unit_ @ fitted.unit_.T - torch.eye(50)).abs().max() < 0.6
    assert close(fitted.vector_.norm(dim=-1), (pos.mean(1) - neg.mean(1)).norm(dim=-1))
    assert not close(RandomDirection(seed=2).fit(pos, neg).unit_.abs(), fitted.unit_.abs(), 0.1)


@pytest.mark.parametrize(
    "name",
    # Coordinatewise; Adam's steps are; drawn without looking at the rows.
    without("trimmed", "CCS", "random"),
)
@LAWS
@given(SHAPES, SEEDS, st.floats(1e-2, 1e2))
def test_rotation_scale_and_translation(
    name: str, shape: tuple[int, int], seed: int, scale: float
) -> None:
    """``fit(s x Rᵀ + t)`` finds ``s R v``; scores by unit vectors scale, those by classifiers stay."""
    pos, neg = pair_of_classes(*shape, seed=seed)
    turn, move = rotation(shape[1], seed + 5), normal(shape[1], seed=seed + 6)
    here = fresh(name).fit(pos, neg)
    there = fresh(name).fit(*(scale * x @ turn.T + move for x in (pos, neg)))
    tolerance = LOOSE.get(name, 1e-6)
    # A tie of the majority is settled by coordinates: compare up to sign there.
    vector = there.vector_ if EVERY[name].oriented else _same_sign(there, here.vector_ @ turn.T)
    assert close(vector / scale, here.vector_ @ turn.T, tolerance)
    kept = 1.0 if not torch.equal(here.read_, here.unit_) else scale
    if EVERY[name].oriented:
        scores = there.score(scale * pos @ turn.T + move)
        assert close(scores / kept, here.score(pos), 10 * tolerance)


def _same_sign(fitted: Estimator, reference: torch.Tensor) -> torch.Tensor:
    return fitted.vector_ * torch.sign(fitted.vector_ @ reference)


@LAWS
@given(st.integers(2, 8), SEEDS)
def test_unshrunk_lda_scores_do_not_see_invertible_maps(d: int, seed: int) -> None:
    pos, neg = pair_of_classes(40, d, seed=seed)
    change = normal(d, d, seed=seed + 5) + 3 * torch.eye(d)
    move = normal(d, seed=seed + 6)
    here = LDA(0.0).fit(pos, neg).score(pos)
    there = LDA(0.0).fit(*(x @ change.T + move for x in (pos, neg))).score(pos @ change.T + move)
    assert close(there, here, 1e-6)
    shrunk = LDA(0.5).fit(*(x @ change.T + move for x in (pos, neg))).score(pos @ change.T + move)
    assert not close(shrunk, LDA(0.5).fit(pos, neg).score(pos), 1e-6)


@pytest.mark.parametrize("name", without("SOM"))  # a map of the positive class only
@LAWS
@given(SHAPES, SEEDS)
def test_swapping_the_classes_flips_the_sign(name: str, shape: tuple[int, int], seed: int) -> None:
    pos, neg = pair_of_classes(*shape, seed=seed)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    if name in ("CCS", "random-order PCA"):  # which pair is swapped goes by its row number
        order = torch.arange(shape[0])
    forth = fresh(name).fit(pos, neg, order)
    back = fresh(name).fit(neg, pos, order.argsort())
    if EVERY[name].oriented:
        assert close(back.vector_, -forth.vector_, LOOSE.get(name, 1e-7))
        assert close(back.score(pos), -forth.score(pos), LOOSE.get(name, 1e-7) * 10)
    else:
        assert cosine(back.vector_, forth.vector_).abs() > 1 - 1e-9


@pytest.mark.parametrize("name", without("random-order PCA", "CCS", "SOM"))  # draw rows by number
@LAWS
@given(SHAPES, SEEDS)
def test_rows_may_come_in_any_order(name: str, shape: tuple[int, int], seed: int) -> None:
    """Rows of both classes shuffled on their own, pairs kept by index."""
    pos, neg = pair_of_classes(*shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randperm(shape[0], generator=generator) for _ in range(2))
    here = fresh(name).fit(pos, neg, True)
    there = fresh(name).fit(pos[a], neg[b], b.argsort()[a])
    assert close(there.vector_, here.vector_, LOOSE.get(name, 1e-7))


@pytest.mark.parametrize("name", ["symmetric PCA", "PCA of centred differences", "CCS"])
def test_pairs_matter_to_those_that_need_them(name: str) -> None:
    pos, neg = pair_of_classes(12, 6, seed=0, topic=3.0)
    right = fresh(name).fit(pos, neg)
    wrong = fresh(name).fit(pos, neg, torch.arange(12).roll(1))
    assert cosine(right.vector_, wrong.vector_) < 0.999


@pytest.mark.parametrize(
    "name",
    # Seeds draw by row number; Ledoit–Wolf shrinks more data less, as C = 1 does; 9 rows trim other.
    [
        *("mean", "geometric median", "mean-centred", "symmetric PCA", "2-means"),
        *("PCA of centred differences", "LDA, fixed", "LEACE, fixed", "PCA subspace"),
    ],
)
@LAWS
@given(SHAPES, SEEDS)
def test_every_row_twice_changes_nothing(name: str, shape: tuple[int, int], seed: int) -> None:
    pos, neg = pair_of_classes(*shape, seed=seed)
    here = fresh(name).fit(pos, neg)
    there = fresh(name).fit(pos.repeat(2, 1), neg.repeat(2, 1))
    assert close(there.vector_, here.vector_, LOOSE.get(name, 1e-7))
    assert close(there.read_, here.read_, LOOSE.get(name, 1e-7))


@pytest.mark.parametrize("name", EVERY)
def test_a_clone_gives_the_same(name: str) -> None:
    pos, neg = pair_of_classes(2, 12, 6, seed=0)
    one = fresh(name).fit(pos, neg)
    two = clone(one)
    assert not hasattr(two, "vector_")
    assert repr(two.get_params()) == repr(one.get_params())
    assert torch.equal(two.fit(pos, neg).vector_, one.vector_)
    assert torch.equal(two.score(pos), one.score(pos))


@pytest.mark.parametrize("name", EVERY)
def test_numpy_in_is_tensor_in(name: str) -> None:
    pos, neg = pair_of_classes(12, 6, seed=0)
    arrays = pos.numpy()[::-1].copy(), neg.numpy()[::-1]  # one with a negative stride
    found = fresh(name).fit(*arrays).vector_
    assert torch.equal(found, fresh(name).fit(pos.flip(0), neg.flip(0)).vector_)


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_rows_are_summed_in_double(name: str) -> None:
    """An offset of 300 leaves bf16 a step of 2; a bf16 sum over rows would lose the shift."""
    pos, neg = (x.bfloat16() + 300 for x in pair_of_classes(20, 6, seed=0, shift=9.0))
    fitted = fresh(name).fit(pos, neg)
    assert fitted.vector_.dtype == fitted.score(pos).dtype == torch.float32
    wide = fresh(name).fit(pos.float(), neg.float())
    assert close(fitted.vector_, wide.vector_, 1e-6)
    assert close(fitted.mean_pos_, mean(pos), 1e-7)
    if name in ("mean", "LDA", "logistic"):
        assert close(fitted.vector_, difference_of_means(pos, neg), 1e-7)
    assert fresh(name).fit(pos.double(), neg.double()).vector_.dtype == torch.float64


def test_registry_makes_everything_without_arguments() -> None:
    assert len(set(ESTIMATORS.values())) == len(ESTIMATORS)
    assert {type(e) for e in EVERY.values()} == set(ESTIMATORS.values())
    for name, made in ESTIMATORS.items():
        assert isinstance(made(), Estimator), name
        assert made.__doc__
