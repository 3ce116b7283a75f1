"""Principal components of paired differences D (row i of X_pos minus its partner)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.estimators.base import Estimator, Found, Layer, at_length_of
from interp.estimators.spectral import principal_rows
from interp.types import Acts, Vector


class SymmetricPCA(Estimator):
    """Top right-singular vector of the **uncentred** differences; sign by the class gap.

    The same as PCA on the rows of D and −D together. In the limit of many pairs it finds a planted
    shift δ exactly when ``‖δ‖²`` exceeds the largest eigenvalue of Cov D. Needs pairs.
    """

    def _layer(self, layer: Layer) -> Found:
        return Found(at_length_of(layer.gap, principal_rows(layer.differences(), 1)[0]))


class RandomOrderPCA(Estimator):
    """LAT reading vector (Zou et al. 2310.01405, section 3.1): PCA of differences in random order.

    Each pair is subtracted in one of the two orders, drawn from ``seed`` (the same draw at all layers);
    the differences are centred; the vector is their first component, not whitened. **The sign is by the
    majority of pairs, not by the class gap** as elsewhere; a tie leaves the sign in which the largest
    entry is positive. Needs pairs, at least 2.
    """

    least_rows = 2
    oriented = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def _layer(self, layer: Layer) -> Found:
        differences = layer.differences()
        swapped = random_order(len(differences), self.seed).to(differences.device)
        mixed = torch.where(swapped[:, None], -differences, differences)
        component = principal_rows(mixed - mixed.mean(0), 1)[0]
        return Found(at_length_of(layer.gap, component * _majority(differences, component)))


class PCADiff(Estimator):
    """**A baseline known to fail**: first component of centred differences, all in the same order.

    It was the default of repeng. Centring takes the mean difference away, and with it the planted
    direction; what is left is the largest nuisance. Kept for comparison only. Needs pairs, at least 2.
    """

    least_rows = 2

    def _layer(self, layer: Layer) -> Found:
        differences = layer.differences()
        component = principal_rows(differences - differences.mean(0), 1)[0]
        return Found(at_length_of(layer.gap, component))


def random_order(n: int, seed: int) -> Bool[Tensor, " n"]:
    """Which pairs are swapped."""
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5


def _majority(differences: Acts, component: Vector) -> Float[Tensor, ""]:
    """+1 or −1: the sign that most pairs have along the component; a tie, see RandomOrderPCA."""
    votes = (differences @ component).sign().sum()
    return torch.where(votes == 0, component[component.abs().argmax()].sign(), votes.sign())
