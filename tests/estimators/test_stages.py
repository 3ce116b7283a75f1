"""Stages and chains, and the two exact laws of biprojection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planting import LAWS, SEEDS, close, cosine, normal, pair_of_classes
from sklearn.base import clone

from interp.errors import NoDirection
from interp.estimators import (
    LDA,
    Biproject,
    Chain,
    DiffMeans,
    LayerLerp,
    OrthogonaliseTo,
    Stage,
    Winsorise,
    biproject,
    layer_lerp,
)
from interp.maths import unit, winsorise

LAYERS, N, D = 4, 20, 9


def layered(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    pos, neg = pair_of_classes(LAYERS, N, D, seed=seed)
    apart = 4 * normal(LAYERS, 1, D, seed=seed + 8)  # another mean at each layer
    return pos + apart, neg + apart


@LAWS
@given(st.integers(3, 20), SEEDS)
def test_biprojection_is_exact_at_the_target_only(d: int, seed: int) -> None:
    vector, source, target = normal(3, d, seed=seed)
    found = biproject(vector, source, target)
    assert abs(found @ unit(target)) < 1e-10 * vector.norm()
    assert abs(found @ unit(source)) > 1e-8 * found.norm()
    both = biproject(vector, source, target, joint=True)
    for mean in (source, target):
        assert abs(both @ unit(mean)) < 1e-10 * vector.norm()
    assert abs(biproject(vector, source) @ unit(source)) < 1e-10 * vector.norm()
    # Where the two means are orthogonal the order is nothing.
    square = target - (target @ source) / (source @ source) * source
    assert close(biproject(vector, source, square), biproject(vector, source, square, joint=True))


def test_biprojected_layers() -> None:
    pos, neg = layered()
    means = neg.mean(1)
    plain = DiffMeans().fit(pos, neg).vector_
    found = Chain([Biproject(1)]).fit(pos, neg).vector_
    joint = Chain([Biproject(1, joint=True)]).fit(pos, neg).vector_
    for layer in range(LAYERS):
        target = None if layer == 1 else means[layer]
        assert close(found[layer], biproject(plain[1], means[1], target))
        assert abs(found[layer] @ unit(means[layer])) < 1e-9
        assert abs(joint[layer] @ unit(means[layer])) < 1e-9
        assert abs(joint[layer] @ unit(means[1])) < 1e-9
    assert close(found[1], joint[1])


@LAWS
@given(SEEDS, st.integers(0, LAYERS - 1), st.floats(0.0, 1.0))
def test_lerp_of_layers(seed: int, low: int, share: float) -> None:
    units = torch.nn.functional.normalize(normal(LAYERS, D, seed=seed), dim=-1)
    assert close(layer_lerp(units, float(low)), units[low])
    index = min(low + share, LAYERS - 1)
    found = layer_lerp(units, index)
    assert found.norm().item() == pytest.approx(1.0)
    high = min(low + 1, LAYERS - 1)
    mix = (1 - (index - low)) * units[low] + (index - low) * units[high]
    assert close(found, unit(mix), 1e-7)


def test_lerped_chain_uses_one_direction_everywhere() -> None:
    pos, neg = layered()
    plain = DiffMeans().fit(pos, neg)
    chained = Chain([LayerLerp(1.25)]).fit(pos, neg)
    assert close(chained.unit_, layer_lerp(plain.unit_, 1.25).expand(LAYERS, D))
    norms = plain.vector_.norm(dim=-1)
    assert close(chained.vector_.norm(dim=-1), (0.75 * norms[1] + 0.25 * norms[2]).expand(LAYERS))
    assert close(chained.read_, chained.unit_)
    assert close(chained.midpoint_, plain.midpoint_)


@pytest.mark.parametrize("index", [-0.1, LAYERS - 0.9, float("nan")])
def test_lerp_outside_the_layers_is_an_error(index: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 3\]"):
        layer_lerp(normal(LAYERS, D, seed=0), index)


def test_lerp_between_opposites_has_no_direction() -> None:
    one = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    with pytest.raises(NoDirection):
        layer_lerp(one, 0.5)
    assert close(layer_lerp(one[:1], 0.0), one[0])


def test_orthogonal_to_the_negative_mean() -> None:
    pos, neg = layered()
    plain = DiffMeans().fit(pos, neg).vector_
    found = Chain([OrthogonaliseTo()]).fit(pos, neg).vector_
    for layer in range(LAYERS):
        mean = unit(neg[layer].mean(0))
        assert abs(found[layer] @ mean) < 1e-10
        assert close(found[layer], plain[layer] - (plain[layer] @ mean) * mean)


@pytest.mark.parametrize("own", [True, False])
def test_orthogonal_to_benign_components(own: bool) -> None:
    pos, neg = layered()
    benign = neg if own else normal(LAYERS, 12, D, seed=4) * torch.arange(1, D + 1)
    stage = OrthogonaliseTo("components", k=3, benign=None if own else benign)
    found = Chain([stage]).fit(pos, neg).vector_
    plain = DiffMeans().fit(pos, neg).vector_
    for layer in range(LAYERS):
        rows = benign[layer] - benign[layer].mean(0)
        basis = torch.linalg.svd(rows.double()).Vh[:3]
        assert close(found[layer], plain[layer] - basis.T @ (basis @ plain[layer]))


def test_a_zero_mean_takes_nothing() -> None:
    """QR would make a direction out of a zero column."""
    pos, neg = pair_of_classes(N, D, seed=0)
    pos, neg = torch.cat([pos, pos]), torch.cat([neg, -neg])
    plain = DiffMeans().fit(pos, neg).vector_
    assert close(Chain([OrthogonaliseTo()]).fit(pos, neg).vector_, plain)


def test_nothing_left_is_an_error() -> None:
    pos, neg = pair_of_classes(N, D, seed=0)
    with pytest.raises(NoDirection, match="lies in what it should be orthogonal to"):
        Chain([OrthogonaliseTo("components", k=D)]).fit(pos, neg)


def test_winsorised_rows_are_fitted_and_read() -> None:
    pos, neg = pair_of_classes(2, N, D, seed=0)
    pos[0, 3, 5] = 1e4
    chained = Chain([Winsorise(0.8)]).fit(pos, neg)
    clipped = [torch.stack([winsorise(x, 0.8) for x in rows]) for rows in (pos, neg)]
    expected = DiffMeans().fit(*clipped)
    assert close(chained.vector_, expected.vector_)
    assert close(chained.score(pos), expected.score(clipped[0]))
    assert close(Chain([Winsorise(1.0)]).fit(pos, neg).vector_, DiffMeans().fit(pos, neg).vector_)


def test_a_chain_without_stages_is_its_estimator() -> None:
    pos, neg = layered()
    for inner in (DiffMeans(), LDA()):
        chained, plain = Chain((), inner).fit(pos, neg), clone(inner).fit(pos, neg)
        assert not hasattr(inner, "vector_")
        for name in ("vector_", "unit_", "read_", "midpoint_", "mean_pos_", "mean_neg_"):
            assert close(getattr(chained, name), getattr(plain, name))
        assert close(chained.score(pos), plain.score(pos))


def test_a_chain_keeps_how_a_classifier_reads() -> None:
    pos, neg = layered()
    chained = Chain([OrthogonaliseTo()], LDA()).fit(pos, neg)
    assert close(chained.read_, LDA().fit(pos, neg).read_)
    assert not close(chained.unit_, LDA().fit(pos, neg).unit_, 1e-3)


def test_stages_are_applied_in_order() -> None:
    pos, neg = layered()
    stages = [LayerLerp(2.0), OrthogonaliseTo()]
    one, two = (Chain(s).fit(pos, neg).vector_ for s in (stages, stages[::-1]))
    means = torch.nn.functional.normalize(neg.mean(1), dim=-1)
    assert (one * means).sum(-1).abs().max() < 1e-9
    assert (two * means).sum(-1).abs().max() > 1e-3
    assert close(Chain([Stage()]).fit(pos, neg).vector_, Chain().fit(pos, neg).vector_)


def test_a_cloned_chain_gives_the_same() -> None:
    pos, neg = layered()
    benign = neg[:, :7]
    chain = Chain([Winsorise(0.9), OrthogonaliseTo("components", 2, benign)], LDA(0.5))
    assert torch.equal(clone(chain).fit(pos, neg).vector_, chain.fit(pos, neg).vector_)


def test_chains_pass_pairs_on() -> None:
    from interp.estimators import SymmetricPCA

    pos, neg = pair_of_classes(N, D, seed=0, topic=3.0)
    order = torch.arange(N).roll(1)
    found = Chain((), SymmetricPCA()).fit(pos, neg, order).vector_
    assert close(found, SymmetricPCA().fit(pos, neg, order).vector_)
    assert cosine(found, SymmetricPCA().fit(pos, neg).vector_) < 0.9999


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Biproject(LAYERS), "source must be a layer from 0 to 3"),
        (Biproject(-1), "source must be a layer"),
        (OrthogonaliseTo().set_params(against="all"), "must be 'mean' or 'components'"),
        (OrthogonaliseTo(benign=torch.ones(2, 3, D)), "benign rows have 2 layers"),
        (Winsorise(0.0), r"must be in \(0, 1\]"),
    ],
)
def test_stages_that_do_not_fit(stage: Stage, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chain([stage]).fit(*layered())


@pytest.mark.parametrize("stage", [Biproject(0), LayerLerp(0.0)])
def test_stages_across_layers_need_one_layer_axis(stage: Stage) -> None:
    for shape in ((N, D), (2, 2, N, D)):
        with pytest.raises(ValueError, match="one layer axis"):
            Chain([stage]).fit(*pair_of_classes(*shape, seed=0))
