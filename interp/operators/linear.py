"""The linear form of an operator, ``y ← y + left right y + shift``, for weights that read what is edited."""

from __future__ import annotations

from torch import Tensor

from interp.errors import NotExpressible
from interp.operators.ablation import Ablation
from interp.operators.addition import Addition
from interp.operators.affine import Affine
from interp.operators.protocol import HookOnly, Operator
from interp.operators.subspace import SubspaceAblation
from interp.types import Vector


def linear_form(operator: Operator, width: int) -> tuple[Tensor, Tensor, Vector | None]:
    """``(left [d, k], right [k, d], shift [d] | None)`` of an operator on vectors of ``width`` d.

    Raises NotExpressible for an operator that is not linear up to a constant.
    """
    if isinstance(operator, Ablation):
        return -operator.strength * operator.unit.unsqueeze(-1), operator.unit.unsqueeze(0), None
    if isinstance(operator, SubspaceAblation):
        return -operator.strength * operator.basis.T, operator.basis, None
    if isinstance(operator, Affine):
        return operator.left, operator.right, operator.shift
    if isinstance(operator, Addition):
        nothing = operator.vector.new_zeros(width, 0)
        return nothing, nothing.T, operator.coefficient * operator.vector
    if (own := getattr(operator, "linear_form", None)) is not None:
        return own(width)
    if isinstance(operator, HookOnly):
        operator.refuse()
    raise NotExpressible(
        f"{type(operator).__name__} has no linear form, so no weight form at what a matrix reads; use it as "
        "a hook"
    )
