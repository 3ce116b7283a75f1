"""Fused experts: what is recomputed inside them gives back what they write."""

from __future__ import annotations

import pytest
import torch
from toolbox import opened, relative
from torch import Tensor, nn

from interp.models import describe, families
from interp.models.anatomy import BoundWriter
from interp.models.experts import expert_inputs, is_fused_experts, routed_arguments
from interp.types import TokenBatch

FUSED = [
    model_type
    for model_type, family in sorted(families().items())
    if any(w.axes.startswith("expert") for c in family.components for w in c.writers)
]


@pytest.fixture(scope="module", params=FUSED)
def tiny(request: pytest.FixtureRequest) -> nn.Module:
    return opened(request.param, "hooks").model


@pytest.fixture(scope="module")
def fused(tiny: nn.Module) -> list[BoundWriter]:
    return [w for w in describe(tiny).writers if w.fused]


Call = tuple[tuple[Tensor, Tensor, Tensor], Tensor]


def called(model: nn.Module, writer: BoundWriter, batch: TokenBatch) -> Call:
    """The routed arguments and the output of an experts module in one forward pass."""
    kept: list[Call] = []
    handle = model.get_submodule(writer.module).register_forward_hook(
        lambda m, args, kwargs, out: kept.append((routed_arguments(args, kwargs), out)),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(input_ids=batch.ids, attention_mask=batch.mask)
    handle.remove()
    return kept[0]


def written(model: nn.Module, writer: BoundWriter, routed: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """``Σ_e W_e (p_e a_e) + Σ_e p_e b_e``."""
    module, weight = model.get_submodule(writer.module), model.get_parameter(writer.weight)
    pattern = "nef,edf->nd" if writer.axes == "expert out in" else "nef,efd->nd"
    out = torch.einsum(pattern, expert_inputs(module, *routed), weight)
    if writer.bias is not None:
        _, index, weights = routed
        out = out + (weights.unsqueeze(-1) * model.get_parameter(writer.bias)[index]).sum(1)
    return out


@torch.no_grad()
def test_inputs_of_the_experts_give_their_output(
    tiny: nn.Module, fused: list[BoundWriter], batch: TokenBatch
) -> None:
    for writer in fused:
        assert is_fused_experts(tiny.get_submodule(writer.module))
        routed, out = called(tiny, writer, batch)
        assert relative(written(tiny, writer, routed), out.reshape(-1, out.shape[-1])) < 1e-6
        if writer.bias is not None:
            no_bias = torch.zeros_like(tiny.get_parameter(writer.bias))
            assert relative(no_bias, tiny.get_parameter(writer.bias)) > 0.5


@torch.no_grad()
def test_tokens_for_experts_elsewhere_count_for_nothing(
    tiny: nn.Module, fused: list[BoundWriter], batch: TokenBatch
) -> None:
    """Expert parallelism marks them with an index beyond the last expert."""
    writer = fused[0]
    module = tiny.get_submodule(writer.module)
    (hidden, index, weights), _ = called(tiny, writer, batch)
    elsewhere = index.clone()
    elsewhere[0] = writer.shape[0]
    inputs = expert_inputs(module, hidden, elsewhere, weights)
    assert not inputs[0].any()
    assert relative(inputs[1:], expert_inputs(module, hidden, index, weights)[1:]) < 1e-6
