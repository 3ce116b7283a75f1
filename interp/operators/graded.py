"""An operator with a coefficient for every row of the batch: ``y ← y + c_row (op(y) − y)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from interp.operators.protocol import HookOnly, Operator


@dataclass(frozen=True, slots=True, eq=False)
class Graded(HookOnly):
    """What ``operator`` changes, times a coefficient per row. A hook only.

    coefficients: ``[row]``; 0 leaves a row as it is, 1 gives the operator itself.
    """

    operator: Operator
    coefficients: Float[Tensor, " row"]

    needs_input: ClassVar[bool] = False
    exactness: ClassVar[str] = "a hook: rows have coefficients of their own"
    why: ClassVar[str] = "a matrix is the same for every row; make a delta for each coefficient"

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The edited rows; written: ``[row, position, d]``."""
        c = self.coefficients.to(written)[:, None, None]
        return written + c * (self.operator.act(written, inputs) - written)

    def rows(self, index: Tensor) -> Graded:
        """The same for some rows of the batch."""
        own = getattr(self.operator, "rows", None)
        chosen = self.coefficients[index.to(self.coefficients.device)]
        return Graded(own(index) if own else self.operator, chosen)
