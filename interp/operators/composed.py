"""Operators one after the other at one place: each acts on what the ones before left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.operators.linear import linear_form
from interp.operators.total import Several
from interp.types import LowRank, Vector, Weight


@dataclass(frozen=True, slots=True, eq=False)
class Composed(Several):
    """``y ← opₙ(… op₁(y))``, in the order of ``parts``.

    Weight form: each update is taken of the weight that the updates before it left, and their ranks add.
    Exact wherever every part is; for operators that all act on the unedited y see :class:`Total`.
    ValueError without parts.
    """

    @property
    def exactness(self) -> str:
        return ", then ".join(dict.fromkeys(part.exactness for part in self.parts))

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        for part in self.parts:
            written = part.act(written, inputs)
        return written

    def weight_update(self, weight: Weight) -> LowRank | None:
        whole: LowRank | None = None
        for part in self.parts:
            if (change := part.weight_update(weight)) is None:
                continue
            weight = weight + change.dense()
            whole = change if whole is None else whole.plus(change)
        return whole

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        now = bias
        for part in self.parts:
            if (shift := part.bias_update(now, like)) is not None:
                now = shift if now is None else now + shift
            if (change := part.weight_update(like)) is not None:
                like = like + change.dense()
        if now is None or now is bias:
            return None
        return now if bias is None else now - bias

    def linear_form(self, width: int) -> tuple[Tensor, Tensor, Vector | None]:
        """``(I + L₂R₂)((I + L₁R₁) y + c₁) + c₂`` as one form. Raises NotExpressible where a part has none."""
        left, right, shift = linear_form(self.parts[0], width)
        for part in self.parts[1:]:
            l2, r2, c2 = linear_form(part, width)
            l2, r2 = l2.to(left), r2.to(left)
            if shift is not None:
                shift = shift + l2 @ (r2 @ shift)
            if c2 is not None:
                shift = c2.to(left) if shift is None else shift + c2.to(left)
            left, right = torch.cat([left + l2 @ (r2 @ left), l2], 1), torch.cat([right, r2], 0)
        return left, right, shift
