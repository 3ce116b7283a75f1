"""An operator on some coordinates alone: one head of ``z``, one neuron, one channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.operators.linear import linear_form
from interp.operators.protocol import Operator, at_columns, row_count
from interp.types import LowRank, Vector, Weight


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """``operator`` on the coordinates ``start:stop`` of y; the others stay as they are."""

    operator: Operator
    start: int
    stop: int

    @property
    def needs_input(self) -> bool:
        return self.operator.needs_input

    @property
    def homogeneous(self) -> bool:
        return self.operator.homogeneous

    @property
    def exactness(self) -> str:
        return self.operator.exactness

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        before, own, after = written.tensor_split([self.start, self.stop], -1)
        return torch.cat([before, self.operator.act(own, inputs), after], -1)

    @property
    def row_count(self) -> int | None:
        """Rows that the operator is made for; None for any number."""
        return row_count(self.operator)

    def rows(self, index: Tensor) -> Part:
        """The same for some rows of the batch."""
        if (rows := getattr(self.operator, "rows", None)) is None:
            return self
        return Part(rows(index), self.start, self.stop)

    def columns(self, start: int, stop: int, width: int) -> Part | None:
        """The same for some columns of the batch; None where nothing is done there."""
        own = at_columns(self.operator, start, stop, width)
        return None if own is None else Part(own, self.start, self.stop)

    def linear_form(self, width: int) -> tuple[Tensor, Tensor, Vector | None]:
        """The operator's linear form, with zeros at the other of ``width`` coordinates."""
        left, right, shift = linear_form(self.operator, self.stop - self.start)
        pad = (self.start, width - self.stop)
        wide = torch.nn.functional.pad
        return (
            wide(left.T, pad).T,
            wide(right, pad),
            None if shift is None else wide(shift, pad),
        )

    def weight_update(self, weight: Weight) -> LowRank | None:
        left, right, _ = self.linear_form(weight.shape[-2])
        if not len(right):
            return None
        axes = "expert out in" if weight.ndim == 3 else "out in"
        b = left.to(weight).expand(*weight.shape[:-2], -1, -1)
        return LowRank(b.contiguous(), right.to(weight) @ weight, axes)

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        _, _, shift = self.linear_form(like.shape[-2])
        if bias is None:
            return None if shift is None else shift.to(like)
        return self.act(bias) - bias
