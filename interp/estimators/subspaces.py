"""Several directions at once. ``vector_`` is the part of the class gap inside ``basis_``."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import NoDirection
from interp.estimators.base import Classes, Estimator, Found, Layer, fresh, stacked
from interp.estimators.discriminants import LDA
from interp.estimators.spectral import Span, principal_rows
from interp.maths import orthogonalise, orthonormal, unit
from interp.types import Vector


class PCASubspace(Estimator):
    """The k first principal directions of the paired differences, rows signed by the class gap.

    of: "differences", uncentred, k = 1 being SymmetricPCA; "centred differences", which leaves the mean
    shift out (the spread among pairs). Needs pairs.
    """

    def __init__(
        self, k: int = 4, of: Literal["differences", "centred differences"] = "differences"
    ) -> None:
        self.k = k
        self.of = of

    def _layer(self, layer: Layer) -> Found:
        rows = layer.differences()
        if self.of == "centred differences":
            rows = rows - rows.mean(0)
        elif self.of != "differences":
            raise ValueError(f"of must be 'differences' or 'centred differences', got {self.of!r}")
        return _spanned(principal_rows(rows, self.k), layer.gap)


class IterativeProjection(Estimator):
    """Fit a reading direction, project it out of all rows, repeat k times (INLP, Ravfogel 2004.07667).

    estimator: any estimator of this package, LDA by default (the paper: a linear SVM); its ``read_`` is
    projected out. Rows of ``basis_`` in the order found. DiffMeans allows one round only, after which
    the means are equal. Raises NoDirection when nothing is left before the k-th round.
    """

    least_rows = 2

    def __init__(self, estimator: Estimator | None = None, k: int = 4) -> None:
        self.estimator = estimator
        self.k = k

    def _layer(self, layer: Layer) -> Found:
        if self.k < 1:
            raise ValueError(f"needs at least one round, got k = {self.k}")
        basis: list[Tensor] = []
        pos, neg = layer.pos, layer.neg
        for _ in range(self.k):
            try:
                read = fresh(self.estimator, LDA).fit(pos, neg, layer.partner).read_
            except NoDirection as error:
                if not basis:
                    raise
                raise NoDirection(
                    f"nothing is left to read after {len(basis)} of k = {self.k} rounds; ask for fewer"
                ) from error
            basis.append(unit(orthogonalise(read, *basis) if basis else read))
            q = torch.stack(basis)
            pos, neg = (rows - (rows @ q.T) @ q for rows in (layer.pos, layer.neg))
        return _spanned(torch.stack(basis), layer.gap)


class SOM(Estimator):
    """Self-organising map of the positive class; directions ``w_i − μ⁻`` (2511.08379).

    A rows × columns grid starts at random rows of X_pos and takes ``steps`` of one random row each:
    ``w_i += lr_t exp(−g²/2σ_t²)(x − w_i)``, g the distance on the grid from the nearest node, and both
    lr and σ divided by ``1 + 2t/steps``. The same rows are drawn at every layer (``seed``).

    Attributes: directions_ ``[*layers, nodes, d]``, hits_ ``[*layers, nodes]`` (rows of X_pos nearest to
    each node), basis_: Gram–Schmidt of the ``k`` nodes with most hits (at most all of them). One node is
    the mean up to the last steps, and the direction that of DiffMeans. The paper searches for the best
    set of 2 to 7 nodes by what ablating it does; hits are our stand-in, which needs no model.
    """

    directions_: Tensor
    hits_: Tensor

    def __init__(
        self,
        rows: int = 4,
        columns: int = 4,
        k: int = 4,
        steps: int = 10_000,
        lr: float = 0.01,
        sigma: float = 0.3,
        seed: int = 0,
    ) -> None:
        self.rows = rows
        self.columns = columns
        self.k = k
        self.steps = steps
        self.lr = lr
        self.sigma = sigma
        self.seed = seed

    def _find(self, classes: Classes) -> Found:
        spans = [Span.of(x.pos - x.mean_pos) for x in classes]
        points = torch.stack([span.coordinates for span in spans])
        nodes = self._trained(points)
        far = torch.cdist(points, nodes)
        hits = torch.nn.functional.one_hot(far.argmin(-1), nodes.shape[1]).sum(1)
        lifted = torch.stack([s.lift(w) for s, w in zip(spans, nodes, strict=True)])
        directions = lifted + classes.gap[:, None]
        # Stable, so that equal hits go by node number and layers do not depend on each other.
        top = hits.argsort(dim=-1, descending=True, stable=True)[:, : self.k]
        extra = {"directions": directions, "hits": hits}
        parts = [
            _spanned(orthonormal(d[i]), gap)
            for d, i, gap in zip(directions, top, classes.gap, strict=True)
        ]
        return replace(stacked(parts), extra=extra)

    def _trained(self, points: Float[Tensor, "layers n r"]) -> Float[Tensor, "layers nodes r"]:
        n = points.shape[1]
        generator = torch.Generator().manual_seed(self.seed)
        count = self.rows * self.columns
        start = torch.randperm(n, generator=generator).repeat(-(-count // n))[:count]
        drawn = torch.randint(n, (self.steps,), generator=generator).tolist()
        nodes = points[:, start].clone()
        apart = self._grid_distances().to(points)
        for t, row in enumerate(drawn):
            cooling = 1.0 + 2.0 * t / self.steps
            towards = points[:, row, None] - nodes
            nearest = towards.square().sum(-1).argmin(-1)
            pull = (apart[nearest] * (-0.5 * (cooling / self.sigma) ** 2)).exp()
            nodes.addcmul_(towards, pull[..., None], value=self.lr / cooling)
        return nodes

    def _grid_distances(self) -> Float[Tensor, "nodes nodes"]:
        """Squared distances between nodes on the grid."""
        grid = torch.cartesian_prod(torch.arange(self.rows), torch.arange(self.columns)).double()
        return (grid[:, None] - grid[None]).square().sum(-1)


def _spanned(basis: Float[Tensor, "k d"], gap: Vector) -> Found:
    """Basis rows signed by the gap, and the gap's part in their span."""
    along = basis @ gap
    sign = torch.where(along < 0, -1.0, 1.0).to(basis.dtype)
    return Found(along @ basis, basis=sign[:, None] * basis)
