"""Places where a model is read and edited: sites, and parts of sites such as heads and neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from interp.sites import Site


@dataclass(frozen=True, slots=True)
class SitePart:
    """Some coordinates of a site: a head of ``z``, a neuron, a channel."""

    site: Site
    start: int
    stop: int

    def take(self, values: Tensor) -> Tensor:
        """The part of the site's values ``[…, d]``."""
        return values[..., self.start : self.stop]

    def put(self, values: Tensor, own: Tensor) -> Tensor:
        """The site's values with the part replaced by ``own``."""
        return torch.cat([values[..., : self.start], own, values[..., self.stop :]], -1)


@dataclass(frozen=True, slots=True)
class Heads:
    """All heads of ``z``, whose values are ``[…, head, d_head]``; the site has them in a row."""

    site: Site
    count: int
    size: int

    def take(self, values: Tensor) -> Tensor:
        """The site's values ``[…, d]`` by head, ``[…, head, d_head]``."""
        return values.unflatten(-1, (self.count, self.size))

    def put(self, values: Tensor, own: Tensor) -> Tensor:
        """The site's values with those of all heads replaced by ``own``."""
        return own.flatten(-2)

    def in_a_row(self, values: Tensor) -> Tensor:
        """``[…, head, d_head]`` or ``[…, head, 1]`` as ``[…, d]``; other shapes as they are."""
        if (
            values.ndim < 2
            or values.shape[-2] != self.count
            or values.shape[-1] not in (1, self.size)
        ):
            return values
        return values.expand(*values.shape[:-1], self.size).flatten(-2)


Place: TypeAlias = Site | SitePart | Heads
Places: TypeAlias = Place | Sequence[Place]


def site_of(place: Place) -> Site:
    """The site that a place is, or is a part of."""
    return place if isinstance(place, Site) else place.site


def in_a_row(place: Place, values: Tensor) -> Tensor:
    """Values in the axes of the site: at :class:`Heads` ``[…, head, d_head]`` becomes ``[…, d]``."""
    return place.in_a_row(values) if isinstance(place, Heads) else values
