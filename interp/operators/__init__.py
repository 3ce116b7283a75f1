"""Operators: one residual operator a file, each with two faces proved equal by ``tests/laws``.

``act`` works on what a writer wrote, ``weight_update`` and ``bias_update`` on the writer's matrix; at
one writer ``act(W a + b, a) = (W + ΔW) a + (b + Δb)`` for every input a. An operator that no weights can
match (:class:`HookOnly`) raises NotExpressible with the reason instead.
"""

from __future__ import annotations

from interp.operators.ablation import Ablation
from interp.operators.addition import Addition
from interp.operators.affine import Affine
from interp.operators.angular import Angular
from interp.operators.clamp import Clamp
from interp.operators.composed import Composed
from interp.operators.gated import Gated
from interp.operators.graded import Graded
from interp.operators.least_disturbance import LeastDisturbance
from interp.operators.linear import linear_form
from interp.operators.norm_kept import NormKept
from interp.operators.norm_preserving import NormPreserving, norm_restored, share_left
from interp.operators.part import Part
from interp.operators.protocol import HookOnly, Operator, at_columns, row_count
from interp.operators.replace import Replace
from interp.operators.scale import Scale
from interp.operators.subspace import SubspaceAblation
from interp.operators.total import Total

__all__ = [
    "Ablation",
    "Addition",
    "Affine",
    "Angular",
    "Clamp",
    "Composed",
    "Gated",
    "Graded",
    "HookOnly",
    "LeastDisturbance",
    "NormKept",
    "NormPreserving",
    "Operator",
    "Part",
    "Replace",
    "Scale",
    "SubspaceAblation",
    "Total",
    "at_columns",
    "linear_form",
    "norm_restored",
    "row_count",
    "share_left",
]
