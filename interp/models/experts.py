"""Inputs of the down projections inside fused experts, recomputed from the module's own arguments.

transformers keeps all experts of a block in one module and never exposes the activations between its
two projections. Its modules carry one standard layout (``has_gate``, ``has_bias``, ``is_transposed``,
``_apply_gate``), which is all that is needed to compute them for the tokens that matter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def expert_inputs(module: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Routing-weighted inputs ``p_e a_e`` of every expert, zero where a token is not routed to it.

    hidden: ``[n, d_model]``, index and weights: ``[n, top_k]`` (the arguments that the experts module
    itself receives). Returns ``[n, expert, d_in]``; ``Σ_e W_e (p_e a_e)`` is the bias-free output.
    """
    n_experts = module.down_proj.shape[0]
    d_in = module.down_proj.shape[-2 if module.is_transposed else -1]
    out = hidden.new_zeros(hidden.shape[0], n_experts, d_in)
    for expert in index.unique().tolist():
        if expert >= n_experts:  # sentinel of expert parallelism
            continue
        token, slot = torch.where(index == expert)
        inner = _inner(module, hidden[token], expert)
        out[token, expert] += weights[token, slot, None].to(inner) * inner
    return out


def _inner(module: Any, hidden: Tensor, expert: int) -> Tensor:
    """Activations that expert ``expert`` multiplies with its down projection, ``[n, d_in]``."""
    name = "gate_up_proj" if module.has_gate else "up_proj"
    weight = getattr(module, name)[expert]
    up = hidden @ (weight if module.is_transposed else weight.T)
    if module.has_bias:
        up = up + getattr(module, f"{name}_bias")[expert]
    return module._apply_gate(up) if module.has_gate else module.act_fn(up)


def routed_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """``(hidden, index, weights)`` of an experts call, however they were passed."""
    hidden, index, weights = (*args, *kwargs.values())[:3]
    return hidden, index, weights


def is_fused_experts(module: nn.Module) -> bool:
    """Whether a module follows the standard fused layout."""
    return all(hasattr(module, name) for name in ("down_proj", "has_gate", "is_transposed"))
