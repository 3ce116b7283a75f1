"""Addition of a constant vector to what a writer writes: ``y ← y + α v`` (ActAdd, CAA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from interp.types import LowRank, Vector, Weight


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """Add ``coefficient · vector`` at every position.

    vector: ``[d_model]``, any norm (its scale is part of the edit). Weight form: the bias
    ``Δb = α v``, exact where the write reaches the stream without a norm in between; a writer without
    a bias gets one.
    """

    vector: Vector
    coefficient: float = 1.0

    needs_input: ClassVar[bool] = False
    homogeneous: ClassVar[bool] = False
    exactness: ClassVar[str] = "exact at every position: a bias αv"

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        return written + self.coefficient * self.vector.to(written)

    def weight_update(self, weight: Weight) -> LowRank | None:
        return None

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        return self.coefficient * self.vector.to(like)
