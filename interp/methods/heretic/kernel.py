"""How strongly each block is edited: heretic's piecewise linear weight over blocks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from interp.errors import NotExpressible


@dataclass(frozen=True, slots=True)
class Kernel:
    """Weight over blocks of one component; the names are those of heretic's parameters.

    The weight is ``max_weight`` at block ``max_weight_position``, falls linearly to ``min_weight`` at
    a distance of ``min_weight_distance`` blocks, and blocks farther away are not edited. Positions
    need not be whole. Weight 1 removes the direction, 2 reflects it, a negative one deepens it.
    Raises NotExpressible for a distance that is not positive and for values that are not finite.
    """

    max_weight: float
    max_weight_position: float
    min_weight: float
    min_weight_distance: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, asdict(self).values())) or self.min_weight_distance <= 0:
            raise NotExpressible(
                f"{self} is no kernel: give finite numbers and a min_weight_distance above 0"
            )

    def weight(self, block: int) -> float | None:
        """λ of a block, None where it is not edited."""
        distance = abs(block - self.max_weight_position)
        if distance > self.min_weight_distance:
            return None
        fall = distance / self.min_weight_distance
        return self.max_weight + fall * (self.min_weight - self.max_weight)

    @classmethod
    def parse(cls, text: str) -> Kernel:
        """``max_weight,max_weight_position,min_weight,min_weight_distance``, as the command line has it."""
        try:
            return cls(*(float(part) for part in text.split(",")))
        except (ValueError, TypeError):
            raise NotExpressible(
                f"{text!r} is no kernel; give four numbers: "
                "max_weight,max_weight_position,min_weight,min_weight_distance"
            ) from None
