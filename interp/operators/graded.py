"""An operator with a coefficient, one for all rows or one per row: ``y ← y + c (op(y) − y)``."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from interp.errors import NotExpressible
from interp.operators.linear import linear_form
from interp.operators.protocol import Operator, at_columns, row_count
from interp.types import LowRank, Vector, Weight

WIDE_BYTES = 4
"""Bytes of a float in which coefficients are applied, at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Graded:
    """What ``operator`` changes, times a coefficient.

    coefficients: ``[row]``, or ``[1]`` for all rows; 0 leaves a row as it is, 1 gives the operator itself.
    One coefficient has the weight form of the operator, times the coefficient; several have none.
    """

    operator: Operator
    coefficients: Float[Tensor, " row"]

    @property
    def needs_input(self) -> bool:
        return self.operator.needs_input

    @property
    def homogeneous(self) -> bool:
        return self.operator.homogeneous

    @property
    def exactness(self) -> str:
        return self.operator.exactness

    @property
    def row_count(self) -> int | None:
        """Rows that the operator is made for; None for any number."""
        return len(self.coefficients) if len(self.coefficients) > 1 else row_count(self.operator)

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The edited rows; written: ``[row, position, d]``, or any shape with one coefficient."""
        # In half precision the difference of two large activations would lose a small change.
        wide = written.float() if written.element_size() < WIDE_BYTES else written
        c = self.coefficients.to(wide)
        c = c[:, None, None] if len(c) > 1 else c
        return (wide + c * (self.operator.act(wide, inputs) - wide)).to(written)

    def rows(self, index: Tensor) -> Graded:
        """The same for some rows of the batch."""
        own = getattr(self.operator, "rows", None)
        chosen = self.coefficients
        if len(chosen) > 1:
            chosen = chosen[index.to(chosen.device)]
        return Graded(own(index) if own else self.operator, chosen)

    def columns(self, start: int, stop: int, width: int) -> Graded | None:
        """The same for some columns of the batch; None where nothing is done there."""
        own = at_columns(self.operator, start, stop, width)
        return None if own is None else Graded(own, self.coefficients)

    def linear_form(self, width: int) -> tuple[Tensor, Tensor, Vector | None]:
        """The operator's linear form, times the coefficient. Raises NotExpressible for several."""
        left, right, shift = linear_form(self.operator, width)
        return self._one * left, right, None if shift is None else self._one * shift

    def weight_update(self, weight: Weight) -> LowRank | None:
        change = self.operator.weight_update(weight)
        return None if change is None else change.scaled(self._one)

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        change = self.operator.bias_update(bias, like)
        return None if change is None else self._one * change

    @property
    def _one(self) -> float:
        if len(self.coefficients) > 1:
            raise NotExpressible(
                "a matrix is the same for every row; make a delta for each coefficient"
            )
        return float(self.coefficients)
