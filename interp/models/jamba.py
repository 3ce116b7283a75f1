"""Jamba: Mamba-1 or attention, then a dense or a mixture-of-experts MLP, in every combination.

Routing weights are not renormalised over the chosen experts. Experts are saved one by one.
"""

from __future__ import annotations

from typing import Any

from interp.models.anatomy import Component, Family, Writer, no_factor
from interp.models.llama_like import ATTENTION, QKV, SIZES
from interp.models.mamba import SELECTIVE, is_attention, is_ssm, within
from interp.models.moe import experts

FEED_FORWARD = "feed_forward.down_proj"


def is_sparse(config: Any, block: int) -> bool:
    return config.layers_num_experts[block] > 1


def is_dense(config: Any, block: int) -> bool:
    return not is_sparse(config, block)


FAMILIES = (
    Family(
        model_types=("jamba",),
        components=(
            Component("ssm", "mamba", (Writer("mamba.out_proj", "ssm"),), when=is_ssm),
            Component("attention", "self_attn", ATTENTION.writers, when=is_attention),
            Component("mlp", "feed_forward", (Writer(FEED_FORWARD, "mlp"),), when=is_dense),
            Component(
                "expert",
                "feed_forward",
                (
                    experts(
                        "feed_forward.experts",
                        "feed_forward.experts.{e}.down_proj.weight",
                        no_factor,
                    ),
                ),
                when=is_sparse,
            ),
        ),
        readers=(
            *QKV,
            *within("mamba", (*SELECTIVE, "[bc]_layernorm.weight", "dt_layernorm.weight")),
            "feed_forward.gate_proj.weight",
            "feed_forward.up_proj.weight",
            "feed_forward.router.weight",
            "feed_forward.experts.gate_up_proj",
            "input_layernorm.weight",
            "pre_ff_layernorm.weight",
        ),
        final_norm="model.final_layernorm",
        outside=("model.final_layernorm.weight", "lm_head.*"),
        resid_mid="pre_ff_layernorm",
        tiny={
            "jamba": SIZES
            | {
                "num_hidden_layers": 4,
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 3,
                "expert_layer_offset": 0,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "mamba_d_state": 7,
                "mamba_dt_rank": 5,
                "mamba_proj_bias": True,
            }
        },
    ),
)
