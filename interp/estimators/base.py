"""What every estimator shares: checked rows, float64 means, the sign, the read score.

Shapes: ``*layers`` any number of leading layer axes (none too), n and m rows of the two classes, d the
width. Every layer is fitted on its own; a row is the same prompt at every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from interp.errors import NoDirection
from interp.maths import SMALLEST_NORM, mean, unit
from interp.types import Acts, Vector

Array = Tensor | npt.NDArray[Any]
Pairs = bool | Tensor | npt.NDArray[Any] | Sequence[int] | None
"""None or True: row i with row i. Indices ``[n]``: row i of X_pos with row ``pairs[i]`` of X_neg."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The two classes at one layer, in float64."""

    pos: Acts
    neg: Float[Tensor, "m d"]
    mean_pos: Float[Tensor, " d"]
    mean_neg: Float[Tensor, " d"]
    partner: Int[Tensor, " n"] | None

    @property
    def gap(self) -> Vector:
        return self.mean_pos - self.mean_neg

    @property
    def midpoint(self) -> Vector:
        return (self.mean_pos + self.mean_neg) / 2

    def matched(self) -> Acts:
        """The row of X_neg that belongs to each row of X_pos."""
        return self.neg[matching(self.partner, len(self.pos), len(self.neg))]

    def differences(self) -> Acts:
        return self.pos - self.matched()

    def within(self) -> Float[Tensor, "both d"]:
        """All rows, each class minus its own mean."""
        return torch.cat([self.pos - self.mean_pos, self.neg - self.mean_neg])


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """The two classes at all layers, layer axes flattened; rows keep their dtype, means are float64."""

    pos: Float[Tensor, "layers n d"]
    neg: Float[Tensor, "layers m d"]
    mean_pos: Float[Tensor, "layers d"]
    mean_neg: Float[Tensor, "layers d"]
    partner: Int[Tensor, " n"] | None
    layers: tuple[int, ...]

    def __iter__(self) -> Iterator[Layer]:
        """One layer at a time: a float64 copy of all of them would be twice the input."""
        for pos, neg, above, below in zip(
            self.pos, self.neg, self.mean_pos, self.mean_neg, strict=True
        ):
            yield Layer(pos.double(), neg.double(), above, below, self.partner)

    @property
    def gap(self) -> Float[Tensor, "layers d"]:
        return self.mean_pos - self.mean_neg

    @property
    def dtype(self) -> torch.dtype:
        """Of the results: float32, or float64 for float64 rows."""
        wide = torch.float64 in (self.pos.dtype, self.neg.dtype)
        return torch.float64 if wide else torch.float32


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What one layer, or all of them, gave. extra: further attributes, named without the underscore."""

    vector: Float[Tensor, "*layers d"]
    read: Float[Tensor, "*layers d"] | None = None
    basis: Float[Tensor, "*layers k d"] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class Estimator(BaseEstimator):
    """A direction between two classes of rows. Subclasses say how; this class does the rest.

    Attributes after ``fit`` (float32, or float64 when the rows are float64; sums always float64):

    vector_ ``[*layers, d]``: what to write; its norm is that of the class gap unless said otherwise,
    and ``vector_ · (mean_pos_ − mean_neg_) > 0``. unit_: the same with norm 1. read_ ``[*layers, d]``:
    what to read with, ``unit_`` unless said otherwise. mean_pos_, mean_neg_, midpoint_: class means and
    the point halfway. basis_ ``[*layers, k, d]``, subspace estimators only: orthonormal rows.
    """

    vector_: Tensor
    unit_: Tensor
    read_: Tensor
    midpoint_: Tensor
    mean_pos_: Tensor
    mean_neg_: Tensor

    least_rows = 1
    """Rows that each class must have."""
    oriented = True
    """Whether ``fit`` sets the sign by the class gap."""

    def fit(self, X_pos: Array, X_neg: Array, pairs: Pairs = None) -> Estimator:
        """Fit on ``X_pos [*layers, n, d]`` and ``X_neg [*layers, m, d]``, tensors or arrays of any dtype.

        Raises ValueError for shapes that do not fit, NaN or infinite rows, too few rows, or missing
        pairs; NoDirection where the class means are equal.
        """
        classes = gather(X_pos, X_neg, pairs, type(self).least_rows)
        found = self._find(classes)
        vector, read = found.vector, found.read
        if type(self).oriented:
            sign = _sign(vector, classes.gap)
            vector = sign * vector
            read = None if read is None else sign * read
        self._keep(classes, Found(vector, read, found.basis, found.extra))
        return self

    def score(self, X: Array) -> Float[Tensor, "*layers n"]:
        """``s(x) = read_ · (x − midpoint_)`` of ``X [*layers, n, d]``; positive: the positive class."""
        check_is_fitted(self, "read_")
        rows = flat(X, "X")
        self._check_layers(X)
        fitted = (v.reshape(-1, v.shape[-1]).double() for v in (self.midpoint_, self.read_))
        scores = [(x.double() - m) @ w for x, m, w in zip(rows, *fitted, strict=True)]
        return torch.stack(scores).reshape(tuple(X.shape[:-1])).to(self.read_.dtype)

    def _find(self, classes: Classes) -> Found:
        """All layers, one after the other; override where they are better done together."""
        return stacked([self._layer(layer) for layer in classes])

    def _layer(self, layer: Layer) -> Found:
        raise NotImplementedError

    def _keep(self, classes: Classes, found: Found) -> None:
        """Set the fitted attributes with the caller's layer axes and dtype."""

        def shaped(value: Tensor) -> Tensor:
            value = value.reshape((*classes.layers, *value.shape[1:]))
            return value.to(classes.dtype) if value.is_floating_point() else value

        units = units_of(found.vector)
        means = {"mean_pos": classes.mean_pos, "mean_neg": classes.mean_neg}
        kept = {
            "vector": found.vector,
            "unit": units,
            "read": units if found.read is None else found.read,
            "midpoint": (classes.mean_pos + classes.mean_neg) / 2,
            **means,
            **({} if found.basis is None else {"basis": found.basis}),
            **found.extra,
        }
        for name, value in kept.items():
            setattr(self, f"{name}_", shaped(value))

    def _check_layers(self, X: Array) -> None:
        if tuple(X.shape[:-2]) + tuple(X.shape[-1:]) != tuple(self.mean_pos_.shape):
            raise ValueError(
                f"fitted on [*layers, d] = {list(self.mean_pos_.shape)}, got rows of shape "
                f"{list(X.shape)}; give the layers that it was fitted on"
            )


def fresh(estimator: Estimator | None, otherwise: type[Estimator]) -> Estimator:
    """An unfitted copy with the same parameters, or ``otherwise()`` for None."""
    return otherwise() if estimator is None else cast(Estimator, clone(estimator))


def stacked(parts: Sequence[Found]) -> Found:
    """One Found of all layers; ranks and extras must be the same at each."""

    def column(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.stack(values)

    extra = {k: torch.stack([part.extra[k] for part in parts]) for k in parts[0].extra}
    vector = torch.stack([part.vector for part in parts])
    return Found(vector, column("read"), column("basis"), extra)


def units_of(vectors: Float[Tensor, "layers d"]) -> Float[Tensor, "layers d"]:
    """Rows with norm 1; NoDirection for a zero row."""
    return torch.stack([unit(vector) for vector in vectors])


def at_length_of(
    gap: Float[Tensor, "*layers d"], unit: Float[Tensor, "*layers d"]
) -> Float[Tensor, "*layers d"]:
    """``unit`` with the norm of the class gap, so that methods compare at equal strength."""
    return unit * gap.norm(dim=-1, keepdim=True)


def matching(partner: Int[Tensor, " n"] | None, n: int, m: int) -> Int[Tensor, " n"]:
    """Indices into X_neg; ValueError when rows can be matched neither by place nor by ``pairs``."""
    if partner is not None:
        return partner
    if n != m:
        raise ValueError(
            f"this estimator needs pairs, but the classes have {n} and {m} rows; give "
            "pairs=[row of X_neg for each row of X_pos], or an estimator of class means"
        )
    return torch.arange(n)


def gather(X_pos: Array, X_neg: Array, pairs: Pairs, least: int = 1) -> Classes:
    """Checked classes with their means; see :meth:`Estimator.fit` for the errors."""
    pos, neg = flat(X_pos, "X_pos"), flat(X_neg, "X_neg")
    layers = tuple(X_pos.shape[:-2])
    if layers != tuple(X_neg.shape[:-2]) or pos.shape[-1] != neg.shape[-1]:
        raise ValueError(
            f"X_pos {list(X_pos.shape)} and X_neg {list(X_neg.shape)} may differ in rows only"
        )
    for name, rows in (("X_pos", pos), ("X_neg", neg)):
        if rows.shape[1] < least:
            raise ValueError(
                f"{name} has {rows.shape[1]} rows, this estimator needs {least} in each class"
            )
    partner = _partner(pairs, pos.shape[1], neg.shape[1])
    means = (class_means(pos, "X_pos"), class_means(neg, "X_neg"))
    _check_gap(*means)
    return Classes(pos, neg, *means, partner, layers)


def flat(X: Array, name: str) -> Float[Tensor, "layers n d"]:
    """A floating tensor with one layer axis; ValueError for fewer than two axes, or nothing inside."""
    if isinstance(X, np.ndarray):
        # from_numpy warns of read-only arrays and refuses negative strides; this copies only those.
        X = torch.from_numpy(np.require(X, requirements=["C", "W"]))
    if X.ndim < 2 or X.is_complex():
        raise ValueError(f"{name} must be real and [*layers, rows, d], got {list(X.shape)}")
    layers = prod(X.shape[:-2])
    if 0 in (layers, X.shape[-1]):
        raise ValueError(f"{name} is empty: {list(X.shape)}")
    rows = X.detach() if X.is_floating_point() else X.double()
    return rows.reshape(layers, *rows.shape[-2:])


def class_means(rows: Float[Tensor, "layers n d"], name: str) -> Float[Tensor, "layers d"]:
    """Means in float64; ValueError names the first NaN or infinite row."""
    # A layer at a time stays in the cache; a float64 copy of all layers would not.
    means = torch.stack([mean(layer) for layer in rows])
    # Finite means say that every row is finite, and cost no second pass.
    if not torch.isfinite(means).all():
        bad = (~torch.isfinite(rows)).any(-1).nonzero()
        where = f"row {int(bad[0, 1])} of layer {int(bad[0, 0])}" if len(bad) else "the sum of rows"
        raise ValueError(
            f"{name}: {where} is NaN or infinite; leave it out, or capture in float32 "
            "(float16 ends at 65504)"
        )
    return means


def _check_gap(mean_pos: Float[Tensor, "layers d"], mean_neg: Float[Tensor, "layers d"]) -> None:
    """NoDirection for the first layer whose class means are equal up to float64 round-off."""
    size = torch.maximum(mean_pos.norm(dim=-1), mean_neg.norm(dim=-1)).clamp(min=1.0)
    same = ((mean_pos - mean_neg).norm(dim=-1) <= SMALLEST_NORM * size).nonzero()
    if len(same):
        raise NoDirection(
            f"the class means are equal at layer {int(same[0])}; leave this layer out (before the "
            "first block the last template token is the same for every prompt)"
        )


def _partner(pairs: Pairs, n: int, m: int) -> Int[Tensor, " n"] | None:
    if pairs is None or pairs is False:
        return None
    if pairs is True:
        if n != m:
            raise ValueError(f"pairs=True needs equal classes, got {n} and {m} rows; give indices")
        return torch.arange(n)
    partner = torch.as_tensor(np.asarray(pairs))
    whole = not partner.is_floating_point() and partner.dtype != torch.bool
    if not whole or partner.shape != (n,) or int(partner.min()) < 0 or int(partner.max()) >= m:
        raise ValueError(f"pairs must be {n} row numbers of X_neg, each from 0 to {m - 1}")
    return partner.long()


def _sign(
    vector: Float[Tensor, "layers d"], gap: Float[Tensor, "layers d"]
) -> Float[Tensor, "layers 1"]:
    return torch.where((vector * gap).sum(-1, keepdim=True) < 0, -1.0, 1.0).to(vector.dtype)
