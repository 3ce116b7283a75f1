"""Directions found without looking at which row is of which class; labels give the sign only."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.estimators.base import (
    Classes,
    Estimator,
    Found,
    Layer,
    at_length_of,
    matching,
    units_of,
)
from interp.estimators.components import random_order
from interp.estimators.spectral import principal_rows
from interp.types import Acts


class KMeans2(Estimator):
    """2-means on the rows of both classes together; ``vector_`` is the gap of the two centroids.

    Lloyd's iteration from the split at the mean along the first principal component: no random start,
    and equivariant under rotation, scale and translation. Labels choose the sign only.
    Attribute ``agreement_ [*layers]``: share of rows whose cluster is their class, at least .5 but for
    unequal classes.
    """

    agreement_: Tensor

    def __init__(self, max_iter: int = 300) -> None:
        self.max_iter = max_iter

    def _layer(self, layer: Layer) -> Found:
        rows = torch.cat([layer.pos, layer.neg])
        rows = rows - rows.mean(0)
        inside = self._split(rows, rows @ principal_rows(rows, 1)[0] > 0)
        gap = rows[inside].mean(0) - rows[~inside].mean(0)
        inside = inside if gap @ layer.gap >= 0 else ~inside
        hits = inside[: len(layer.pos)].sum() + (~inside[len(layer.pos) :]).sum()
        return Found(gap, extra={"agreement": hits.double() / len(rows)})

    def _split(self, rows: Acts, inside: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        for _ in range(self.max_iter):
            count = int(inside.sum())
            # The rows are centred, so that one centroid gives the other.
            high = inside.to(rows) @ rows / count
            low = high * (-count / (len(rows) - count))
            # Nearer to `high`, written as one side of the plane halfway.
            again = rows @ (high - low) > (high @ high - low @ low) / 2
            if torch.equal(again, inside):
                break
            inside = again
        return inside


class CCS(Estimator):
    """Contrast-consistent search (Burns et al. 2212.03827, section 2.2); needs pairs.

    A probe ``p(x) = σ(w·x + b)`` that minimises ``E[(p₁ − (1 − p₂))² + min(p₁, p₂)²]`` over pairs, each
    side centred on its own mean; full-batch AdamW in float32 (float64 for float64 rows), the best of
    ``restarts`` starts by loss. Defaults are the reference's. All layers and starts run as one tensor,
    from the same starting points at each layer. ``vector_`` is w at the norm of the class gap, ``read_``
    is w, ``loss_ [*layers]`` the final loss. The steps have a fixed size, so the result depends on the
    scale of the rows: standardise wide streams first.

    shuffle: here X_pos holds what is true and X_neg what is false, and centring each class would delete
    exactly that difference; so each pair is put in random order first (``seed``), which uses no label.
    False is for the reference's layout, sides that answer "yes" and "no" with truth mixed in both.
    The objective leaves the sign open: the class gap sets it (the reference reports the better of the
    two accuracies). With shuffle=False that gap is between the answers and says nothing of truth.
    """

    loss_: Tensor

    least_rows = 2

    def __init__(
        self,
        restarts: int = 10,
        epochs: int = 1000,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        self.restarts = restarts
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.shuffle = shuffle
        self.seed = seed

    def _find(self, classes: Classes) -> Found:
        weight, bias = self._start(*classes.gap.shape)
        weight, bias = (p.to(classes.pos.device, classes.dtype) for p in (weight, bias))
        sides = self._sides(classes)
        parameters = [weight.requires_grad_(), bias.requires_grad_()]
        optimiser = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        with torch.enable_grad():
            for _ in range(self.epochs):
                optimiser.zero_grad()
                ccs_loss(*sides, weight, bias).sum().backward()
                optimiser.step()
        with torch.no_grad():
            loss = ccs_loss(*sides, weight, bias)
        best = loss.argmin(-1)
        every = torch.arange(len(best), device=best.device)
        read = weight.detach()[every, best].double()
        vector = at_length_of(classes.gap, units_of(read))
        return Found(vector, read, extra={"loss": loss[every, best].double()})

    def _start(self, layers: int, d: int) -> tuple[Tensor, Tensor]:
        """Uniform within ±1/√d as in torch's Linear: ``[layers, restarts, d]`` and ``[…, restarts]``."""
        generator = torch.Generator().manual_seed(self.seed)
        draw = (2 * torch.rand(self.restarts, d + 1, generator=generator) - 1) / d**0.5
        draw = draw.expand(layers, -1, -1)
        return draw[..., :d].clone(), draw[..., d].clone()

    def _sides(self, classes: Classes) -> tuple[Tensor, Tensor]:
        pos, neg = classes.pos, classes.neg
        n = pos.shape[1]
        neg = neg[:, matching(classes.partner, n, neg.shape[1])]
        if self.shuffle:
            swapped = random_order(n, self.seed).to(pos.device)[:, None]
            pos, neg = torch.where(swapped, neg, pos), torch.where(swapped, pos, neg)
        return _centred(pos, classes.dtype), _centred(neg, classes.dtype)


def ccs_loss(
    one: Float[Tensor, "layers n d"],
    two: Float[Tensor, "layers n d"],
    weight: Float[Tensor, "layers starts d"],
    bias: Float[Tensor, "layers starts"],
) -> Float[Tensor, "layers starts"]:
    """``E[(p₁ − (1 − p₂))² + min(p₁, p₂)²]`` of every start at every layer."""
    p, q = (torch.sigmoid(side @ weight.mT + bias[:, None]) for side in (one, two))
    return ((p + q - 1).square() + torch.minimum(p, q).square()).mean(1)


def _centred(rows: Float[Tensor, "layers n d"], dtype: torch.dtype) -> Float[Tensor, "layers n d"]:
    return torch.stack([(x.double() - x.double().mean(0)).to(dtype) for x in rows])
