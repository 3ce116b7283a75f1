"""Every described model type, variants that its config allows, and a traced pass of each.

Those outside ``covering.COVERING``, and all variants, are slow tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from covering import COVERING
from torch import Tensor, nn

from interp.models import describe, known_model_types, tiny_model
from interp.models.anatomy import Anatomy

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("stablelm", {"use_parallel_residual": True}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox", {"attention_bias": False}),
    ("cohere", {"use_qk_norm": True}),
    ("phi", {"qk_layernorm": True, "head_dim": 8}),
    ("starcoder2", {"use_bias": False}),
    ("gemma3_text", {"final_logit_softcapping": 3.0}),
    ("olmoe", {"norm_topk_prob": True}),
    ("qwen2_moe", {"decoder_sparse_step": 2, "mlp_only_layers": []}),
    ("deepseek_v3", {"q_lora_rank": None}),
    ("deepseek_v3", {"attention_bias": True}),
    ("mamba", {"use_bias": False, "use_conv_bias": False}),
    ("nemotron_h", {"moe_latent_size": 16}),
    ("nemotron_h", {"moe_latent_size": 16, "mlp_bias": False}),
    ("zamba2", {"use_shared_attention_adapter": False, "num_mem_blocks": 2}),
    ("granitemoehybrid", {"num_local_experts": 0}),
    ("falcon_h1", {"mamba_rms_norm": False, "attention_bias": True}),
)
CASES = tuple((model_type, {}) for model_type in known_model_types()) + VARIANTS


def case_id(case: tuple[str, dict[str, Any]]) -> str:
    model_type, overrides = case
    return "-".join([model_type, *(f"{k}={v}" for k, v in overrides.items())])


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@dataclass
class Trace:
    """Inputs and outputs of the modules of one forward pass, by module name."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


@contextmanager
def hooked(model: nn.Module, hooks: dict[str, Callable[..., Any]]) -> Iterator[None]:
    handles = [
        model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
        for name, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace(model: nn.Module, names: set[str], ids: Tensor) -> Trace:
    """Record the named modules while the model reads ``ids``."""
    seen = Trace()

    def recorder(name: str) -> Callable[..., None]:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            seen.inputs[name] = given.clone()
            seen.outputs[name] = first(output).clone()

        return record

    with torch.no_grad(), hooked(model, {name: recorder(name) for name in names}):
        seen.logits = model(ids, use_cache=False).logits
    return seen


def module_names(anatomy: Anatomy) -> set[str]:
    names = {*anatomy.blocks, anatomy.final_norm, anatomy.unembed}
    names |= {mid for mid in anatomy.resid_mid if mid}
    names |= {c.module for c in anatomy.components}
    return names | {w.module for w in anatomy.writers}


@dataclass
class Case:
    model_type: str
    overrides: dict[str, Any]
    model: nn.Module
    anatomy: Anatomy
    trace: Trace

    def fresh(self, **more: Any) -> nn.Module:
        """Another copy of the model, free to be changed."""
        return tiny_model(self.model_type, **{**self.overrides, **more})


def parameter(case: tuple[str, dict[str, Any]]) -> Any:
    model_type, overrides = case
    is_fast = model_type in COVERING and not overrides
    return pytest.param(case, marks=[] if is_fast else [pytest.mark.slow], id=case_id(case))


@pytest.fixture(scope="session", params=map(parameter, CASES))
def case(request: pytest.FixtureRequest, ids: Tensor) -> Case:
    model_type, overrides = request.param
    model = tiny_model(model_type, **overrides)
    anatomy = describe(model)
    return Case(model_type, overrides, model, anatomy, trace(model, module_names(anatomy), ids))


@pytest.fixture(scope="session")
def variants_of() -> Callable[[tuple[str, ...]], list[nn.Module]]:
    """All cases whose model type is listed."""

    def build(model_types: tuple[str, ...]) -> list[nn.Module]:
        return [tiny_model(t, **overrides) for t, overrides in CASES if t in model_types]

    return build


@pytest.fixture(scope="session")
def run_traced() -> Callable[[nn.Module, set[str], Tensor], Trace]:
    return trace


@pytest.fixture(scope="session")
def with_hooks() -> Callable[..., Any]:
    return hooked
