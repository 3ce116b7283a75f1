"""Steps before and after an estimator, and the chain of them, which is an estimator itself.

A stage changes the rows (before the fit, and in ``score``) or the vectors (after it). The functions
below work on one vector or on ``[layers, d]`` and know nothing of estimators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator
from torch import Tensor

from interp.errors import NoDirection
from interp.estimators.base import (
    Array,
    Classes,
    Estimator,
    Found,
    Pairs,
    flat,
    fresh,
    gather,
    units_of,
)
from interp.estimators.means import DiffMeans
from interp.estimators.spectral import principal_rows
from interp.maths import SMALLEST_NORM, mean, orthogonalise, unit, winsorise
from interp.types import Vector


class Stage(BaseEstimator):
    """One step of a chain; both parts do nothing unless a subclass says otherwise."""

    def on_rows(self, rows: Float[Tensor, "layers n d"]) -> Float[Tensor, "layers n d"]:
        return rows

    def on_vectors(
        self, vectors: Float[Tensor, "layers d"], classes: Classes
    ) -> Float[Tensor, "layers d"]:
        """vectors: float64 write vectors; classes: the rows that they were fitted on."""
        return vectors


class Winsorise(Stage):
    """Clip every row to its own ``quantile`` of ``|x|`` (:func:`interp.maths.winsorise`); 1: nothing."""

    def __init__(self, quantile: float = 0.995) -> None:
        self.quantile = quantile

    def on_rows(self, rows: Float[Tensor, "layers n d"]) -> Float[Tensor, "layers n d"]:
        return torch.stack([winsorise(layer, self.quantile) for layer in rows])


class OrthogonaliseTo(Stage):
    """Project the vector off what benign rows share, layer by layer.

    against: "mean", their mean (the "projected" variant of refusal ablation; heretic does it with the
    mean of its harmless prompts); "components", their ``k`` first principal components about the mean,
    a subspace to preserve. benign: ``[*layers, b, d]`` rows of their own, the negative class by default.
    Raises NoDirection when nothing of the vector is left.
    """

    def __init__(
        self,
        against: Literal["mean", "components"] = "mean",
        k: int = 1,
        benign: Array | None = None,
    ) -> None:
        self.against = against
        self.k = k
        self.benign = benign

    def on_vectors(
        self, vectors: Float[Tensor, "layers d"], classes: Classes
    ) -> Float[Tensor, "layers d"]:
        if self.against not in ("mean", "components"):
            raise ValueError(f"against must be 'mean' or 'components', got {self.against!r}")
        benign = classes.neg if self.benign is None else flat(self.benign, "benign")
        if len(benign) != len(vectors):
            raise ValueError(f"benign rows have {len(benign)} layers, the classes {len(vectors)}")
        return torch.stack([_off(v, *self._span(x)) for v, x in zip(vectors, benign, strict=True)])

    def _span(self, rows: Float[Tensor, "b d"]) -> Float[Tensor, "k d"]:
        centre = mean(rows)
        if self.against == "mean":
            return centre[None]
        return principal_rows(rows.double() - centre, self.k)


class Biproject(Stage):
    """Use the direction of layer ``source`` at every layer, projected off two negative means.

    See :func:`biproject` for the two orders. Needs exactly one layer axis. The sign and, before the
    projections, the norm are those of the source layer.
    """

    def __init__(self, source: int, joint: bool = False) -> None:
        self.source = source
        self.joint = joint

    def on_vectors(
        self, vectors: Float[Tensor, "layers d"], classes: Classes
    ) -> Float[Tensor, "layers d"]:
        layers = _one_axis(classes, "Biproject")
        if not 0 <= self.source < layers:
            raise ValueError(f"source must be a layer from 0 to {layers - 1}, got {self.source}")
        vector, own = vectors[self.source], classes.mean_neg[self.source]
        # QR of twice the same mean would add a direction made of round-off.
        pairs = [
            (own,) if layer == self.source else (own, target)
            for layer, target in enumerate(classes.mean_neg)
        ]
        return torch.stack(
            [biproject(vector, p[0], p[1] if len(p) > 1 else None, joint=self.joint) for p in pairs]
        )


class LayerLerp(Stage):
    """The direction at a fractional layer ``index``, used at every layer (heretic's float index).

    See :func:`layer_lerp`; the norm is interpolated between the same two layers. Needs exactly one
    layer axis.
    """

    def __init__(self, index: float) -> None:
        self.index = index

    def on_vectors(
        self, vectors: Float[Tensor, "layers d"], classes: Classes
    ) -> Float[Tensor, "layers d"]:
        _one_axis(classes, "LayerLerp")
        direction = layer_lerp(units_of(vectors), self.index)
        low, high, share = _between(self.index, len(vectors))
        norms = vectors.norm(dim=-1)
        return (direction * torch.lerp(norms[low], norms[high], share)).expand_as(vectors)


class Chain(Estimator):
    """Stages around an estimator: rows through all of them, fit, then the vectors through all of them.

    stages: applied in order. estimator: any of this package, DiffMeans by default; the chain keeps a
    fitted copy as ``estimator_``. ``read_`` follows the new ``unit_`` where the estimator reads with the
    direction that it writes, and stays as fitted where it does not (LDA, Logistic, CCS, Leace). The sign
    is the estimator's. ``score`` sends its rows through the stages too.
    """

    def __init__(self, stages: Sequence[Stage] = (), estimator: Estimator | None = None) -> None:
        self.stages = stages
        self.estimator = estimator

    def fit(self, X_pos: Array, X_neg: Array, pairs: Pairs = None) -> Chain:
        inner = fresh(self.estimator, DiffMeans)
        pos, neg = self._rows(X_pos, "X_pos"), self._rows(X_neg, "X_neg")
        self.estimator_ = inner.fit(pos, neg, pairs)
        classes = gather(pos, neg, pairs)
        vectors, d = inner.vector_, inner.vector_.shape[-1]
        own = torch.equal(inner.read_, inner.unit_)
        vectors = vectors.reshape(-1, d).double()
        for stage in self.stages:
            vectors = stage.on_vectors(vectors, classes)
        read = None if own else inner.read_.reshape(-1, d).double()
        self._keep(classes, Found(vectors, read))
        return self

    def score(self, X: Array) -> Float[Tensor, "*layers n"]:
        return super().score(self._rows(X, "X"))

    def _rows(self, X: Array, name: str) -> Tensor:
        rows = flat(X, name)
        for stage in self.stages:
            rows = stage.on_rows(rows)
        return rows.reshape(tuple(X.shape))


def biproject(
    vector: Vector, source_mean: Vector, target_mean: Vector | None = None, *, joint: bool = False
) -> Vector:
    """``vector`` off the negative mean of the layer it was measured at, then off that of its target.

    One after the other (grimjim's "biprojected" variant, as in llm-abliteration) leaves it orthogonal to
    the target mean exactly, and generally not to the source mean. joint=True projects off the plane of
    both at once and is orthogonal to both. Raises NoDirection when nothing is left.
    """
    if target_mean is None:
        return _off(vector, source_mean)
    if joint:
        return _off(vector, source_mean, target_mean)
    return _off(_off(vector, source_mean), target_mean)


def layer_lerp(units: Float[Tensor, "layers d"], index: float) -> Vector:
    """Unit directions of the two layers next to ``index`` interpolated, and normalised again.

    index in [0, layers − 1], else ValueError. Opposite directions have nothing halfway: NoDirection.
    """
    low, high, share = _between(index, len(units))
    return unit(torch.lerp(units[low], units[high], share))


def _between(index: float, layers: int) -> tuple[int, int, float]:
    if not 0.0 <= index <= layers - 1:
        raise ValueError(f"the layer index must be in [0, {layers - 1}], got {index}")
    low = min(int(index), max(layers - 2, 0))
    return low, min(low + 1, layers - 1), index - low


def _off(vector: Vector, *against: Vector) -> Vector:
    """As :func:`interp.maths.orthogonalise`, but a zero vector takes nothing, and all may not go."""
    real = [a for a in against if a.norm() > SMALLEST_NORM]
    rest = orthogonalise(vector, *real) if real else vector
    if rest.norm() <= SMALLEST_NORM * max(vector.norm().item(), 1.0):
        raise NoDirection(
            "the vector lies in what it should be orthogonal to; leave this stage out, or project "
            "off fewer components"
        )
    return rest


def _one_axis(classes: Classes, name: str) -> int:
    if len(classes.layers) != 1:
        raise ValueError(f"{name} needs rows [layers, n, d] with one layer axis")
    return classes.layers[0]
