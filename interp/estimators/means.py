"""Directions between two centres, and the random control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.estimators.base import Classes, Estimator, Found, at_length_of, units_of
from interp.estimators.spectral import Span
from interp.types import Acts, Vector

Centre = Literal["mean", "trimmed", "geometric median"]


class DiffMeans(Estimator):
    """Difference of means ``μ⁺ − μ⁻`` (CAA 2312.06681; Arditi et al. 2406.11717, section 2.3).

    centre: "mean"; "trimmed", which leaves out the share ``trim`` of the values at each end of every
    coordinate (not rotation-equivariant); "geometric median", the point with the least sum of distances
    (Weiszfeld). The last two are ours, against a few wild rows; ``mean_pos_`` and ``midpoint_`` stay
    those of the means. The norm of ``vector_`` is the distance of the centres.
    """

    def __init__(self, centre: Centre = "mean", trim: float = 0.1) -> None:
        self.centre = centre
        self.trim = trim

    def _find(self, classes: Classes) -> Found:
        if self.centre == "mean":
            return Found(classes.gap)
        if self.centre == "trimmed":
            centres = (_each(rows, self._trimmed) for rows in (classes.pos, classes.neg))
        elif self.centre == "geometric median":
            centres = (geometric_median(rows) for rows in (classes.pos, classes.neg))
        else:
            raise ValueError(
                f"centre must be 'mean', 'trimmed' or 'geometric median', got {self.centre!r}"
            )
        pos, neg = centres
        return Found(pos - neg)

    def _trimmed(self, rows: Acts) -> Vector:
        if not 0.0 <= self.trim < 0.5:
            raise ValueError(f"trim must be in [0, 0.5), got {self.trim}")
        cut = int(self.trim * len(rows))
        return rows.sort(0).values[cut : len(rows) - cut].mean(0)


class MeanCentred(DiffMeans):
    """Mean-centring ``μ_target − μ_background`` (2312.03813): ``X_neg`` is the background.

    The arithmetic is that of :class:`DiffMeans`. A background that holds a share p of target rows
    shortens the vector by 1 − p and does not turn it. ``score`` is 0 halfway to the background.
    """


class RandomDirection(Estimator):
    """The control: a uniformly random direction with the norm of the class gap.

    One independent draw a layer, from ``seed``; the sign is by the class gap like everywhere.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def _find(self, classes: Classes) -> Found:
        draw = torch.randn(
            classes.gap.shape,
            generator=torch.Generator().manual_seed(self.seed),
            dtype=torch.float64,
        )
        return Found(at_length_of(classes.gap, units_of(draw.to(classes.gap))))


def geometric_median(
    rows: Float[Tensor, "layers n d"], tolerance: float = 1e-10, rounds: int = 1000
) -> Float[Tensor, "layers d"]:
    """The point with the least sum of distances to the rows, float64 (Weiszfeld 1937), all layers at once.

    Iterates until no layer moves by more than ``tolerance`` of its spread. A row that the iterate hits
    counts as being at a tiny distance, so that it pulls hard rather than dividing by zero.
    """
    # Rows about their mean in their own span: exact, and n coordinates in place of d when n < d.
    means = torch.stack([layer.double().mean(0) for layer in rows])
    spans = [Span.of(layer.double() - m) for layer, m in zip(rows, means, strict=True)]
    spots = torch.stack([span.coordinates for span in spans])
    spread = spots.norm(dim=-1).mean(-1)[:, None]
    centre = spots.mean(1)
    for _ in range(rounds):
        far = (spots - centre[:, None]).norm(dim=-1).clamp(min=1e-12)
        far = torch.maximum(far, 1e-12 * spread)
        weight = far.reciprocal()
        weight = weight / weight.sum(-1, keepdim=True)
        moved = (weight[:, None] @ spots)[:, 0]
        step = (moved - centre).norm(dim=-1, keepdim=True)
        centre = moved
        if (step <= tolerance * spread).all():
            break
    return means + torch.stack([s.lift(c) for s, c in zip(spans, centre, strict=True)])


def _each(
    rows: Float[Tensor, "layers n d"], centre: Callable[[Tensor], Tensor]
) -> Float[Tensor, "layers d"]:
    return torch.stack([centre(layer.double()) for layer in rows])
