"""Mamba-2 hybrids: Bamba, Zamba2, Nemotron-H, Granite hybrid and Falcon-H1.

Zamba2's shared transformer only feeds the Mamba input, so ``mamba.out_proj`` is its one writer.
Nemotron-H has one mixer a block and is saved under ``backbone``; with ``moe_latent_size`` its
experts write a latent space and ``fc2_latent_proj`` the stream. Falcon-H1 adds Mamba and attention
in parallel, each times its multiplier.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interp.models.anatomy import Component, Family, Writer, one
from interp.models.llama_like import (
    ATTENTION,
    GRANITE_FACTORS,
    NORMS,
    QKV,
    SIZES,
    SQUARE,
    embedding_multiplier,
    inverse_logits_scaling,
    residual_multiplier,
)
from interp.models.mamba import STATE_SPACE_DUAL, is_attention, is_ssm, within
from interp.models.moe import experts, top_k_sum

MAMBA_WRITER = Writer("mamba.out_proj", "ssm")
FEED_FORWARD = Component("mlp", "feed_forward", (Writer("feed_forward.down_proj", "mlp"),))
GATED_FEED_FORWARD = ("feed_forward.gate_proj.*", "feed_forward.up_proj.*")
PRE_FF_NORMS = ("input_layernorm.weight", "pre_ff_layernorm.weight")
FINAL_LAYERNORM = ("model.final_layernorm.weight", "lm_head.*")
MAMBA_SIZES = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 7,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
ZAMBA2_ADAPTERS = (
    "self_attn.linear_[qkv]_adapter_list.*",
    "feed_forward.gate_up_proj_adapter_list.*",
)
ZAMBA2_TRANSFORMER = (*QKV, "self_attn.o_proj.weight", *ZAMBA2_ADAPTERS)


def is_hybrid(config: Any, block: int) -> bool:
    return config.layers_block_type[block] == "hybrid"


def is_mlp(config: Any, block: int) -> bool:
    return config.layers_block_type[block] == "mlp"


def is_moe(config: Any, block: int) -> bool:
    return config.layers_block_type[block] == "moe"


def has_latent(config: Any, block: int) -> bool:
    return config.moe_latent_size is not None


def no_latent(config: Any, block: int) -> bool:
    return config.moe_latent_size is None


def has_experts(config: Any, block: int) -> bool:
    return config.num_local_experts > 0


def not_ssm(config: Any, block: int) -> bool:
    return not is_ssm(config, block)


def ssm_out_multiplier(config: Any) -> float:
    return config.ssm_out_multiplier


def attention_out_multiplier(config: Any) -> float:
    return config.attention_out_multiplier


def down_multiplier(config: Any) -> float:
    return config.mlp_multipliers[1]


def lm_head_multiplier(config: Any) -> float:
    return config.lm_head_multiplier


BAMBA = Family(
    model_types=("bamba",),
    components=(
        Component("ssm", "mamba", (MAMBA_WRITER,), when=is_ssm),
        Component("attention", "self_attn", ATTENTION.writers, when=is_attention),
        FEED_FORWARD,
    ),
    readers=(*within("mamba", STATE_SPACE_DUAL), *QKV, *GATED_FEED_FORWARD, *PRE_FF_NORMS),
    final_norm="model.final_layernorm",
    outside=FINAL_LAYERNORM,
    resid_mid="pre_ff_layernorm",
    tiny={
        "bamba": SIZES
        | MAMBA_SIZES
        | {"attn_layer_indices": [1], "mamba_proj_bias": True, "mlp_bias": True}
    },
)

ZAMBA2 = Family(
    model_types=("zamba2",),
    components=(
        Component("ssm", "mamba", (MAMBA_WRITER,), when=is_ssm),
        Component(
            "ssm",
            "mamba_decoder.mamba",
            (Writer("mamba_decoder.mamba.out_proj", "ssm"),),
            when=is_hybrid,
        ),
    ),
    readers=(
        *within("mamba", STATE_SPACE_DUAL),
        *within("mamba_decoder.mamba", STATE_SPACE_DUAL),
        "mamba_decoder.input_layernorm.weight",
        "input_layernorm.weight",
        "linear.weight",
        *within("shared_transformer", ZAMBA2_TRANSFORMER),
        *within("shared_transformer.feed_forward", ("gate_up_proj.*", "down_proj.*")),
        *within("shared_transformer", PRE_FF_NORMS),
    ),
    final_norm="model.final_layernorm",
    outside=FINAL_LAYERNORM,
    note="the shared transformer also reads the embedding itself, at every hybrid block",
    tiny={
        "zamba2": SQUARE
        | {
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "num_key_value_heads": 4,
            "n_mamba_heads": 4,
            "mamba_ngroups": 2,
            "mamba_d_state": 7,
            "mamba_expand": 2,
            "chunk_size": 8,
            "adapter_rank": 6,
            "use_shared_attention_adapter": True,
            "use_mem_rope": True,
            "add_bias_linear": True,
            "tie_word_embeddings": True,
        }
    },
)

NEMOTRON_H = Family(
    model_types=("nemotron_h",),
    components=(
        Component("ssm", "mixer", (Writer("mixer.out_proj", "ssm"),), when=is_ssm),
        Component("attention", "mixer", (Writer("mixer.o_proj", "attention"),), when=is_attention),
        Component("mlp", "mixer", (Writer("mixer.down_proj", "mlp"),), when=is_mlp),
        Component(
            "expert",
            "mixer",
            (
                replace(
                    experts("mixer.experts", "mixer.experts.{e}.down_proj.weight", top_k_sum),
                    when=no_latent,
                ),
                Writer("mixer.fc2_latent_proj", "expert", when=has_latent),
                Writer("mixer.shared_experts.down_proj", "mlp"),
            ),
            when=is_moe,
        ),
    ),
    readers=(
        *within("mixer", STATE_SPACE_DUAL),
        "mixer.[qkv]_proj.weight",
        "mixer.up_proj.*",
        "mixer.gate.weight",
        "mixer.experts.up_proj",
        "mixer.experts.down_proj",
        "mixer.fc1_latent_proj.*",
        "mixer.shared_experts.up_proj.*",
        "norm.weight",
    ),
    saved_blocks="backbone.layers",
    embeddings=("model.embeddings",),
    saved_embeddings=("backbone.embeddings",),
    final_norm="model.norm_f",
    outside=("model.norm_f.weight", "lm_head.*"),
    tiny={
        "nemotron_h": {key: value for key, value in SIZES.items() if key != "num_hidden_layers"}
        | {
            "hybrid_override_pattern": "M*-E",
            "ssm_state_size": 7,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 40,
            "routed_scaling_factor": 1.7,
            "use_bias": True,
            "mlp_bias": True,
        }
    },
)

GRANITE_HYBRID = Family(
    model_types=("granitemoehybrid",),
    components=(
        Component("ssm", "mamba", (MAMBA_WRITER,), when=is_ssm, scale=residual_multiplier),
        Component(
            "attention", "self_attn", ATTENTION.writers, when=not_ssm, scale=residual_multiplier
        ),
        Component(
            "expert",
            "block_sparse_moe",
            (experts("block_sparse_moe.experts", "block_sparse_moe.output_linear.weight", one),),
            when=has_experts,
            scale=residual_multiplier,
        ),
        Component(
            "mlp",
            "shared_mlp",
            (Writer("shared_mlp.output_linear", "mlp"),),
            scale=residual_multiplier,
        ),
    ),
    readers=(
        *within("mamba", STATE_SPACE_DUAL),
        *QKV,
        "block_sparse_moe.router.weight",
        "block_sparse_moe.experts.gate_up_proj",
        "shared_mlp.input_linear.weight",
        *NORMS,
    ),
    embed_scale=embedding_multiplier,
    logit_scale=inverse_logits_scaling,
    resid_mid="post_attention_layernorm",
    tiny={
        "granitemoehybrid": SIZES
        | MAMBA_SIZES
        | GRANITE_FACTORS
        | {
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 40,
            "mamba_proj_bias": True,
        }
    },
)

FALCON_H1 = Family(
    model_types=("falcon_h1",),
    components=(
        Component("ssm", "mamba", (MAMBA_WRITER,), scale=ssm_out_multiplier),
        Component("attention", "self_attn", ATTENTION.writers, scale=attention_out_multiplier),
        Component(
            "mlp",
            "feed_forward",
            (Writer("feed_forward.down_proj", "mlp", scale=down_multiplier),),
        ),
    ),
    readers=(*within("mamba", STATE_SPACE_DUAL), *QKV, *GATED_FEED_FORWARD, *PRE_FF_NORMS),
    embed_scale=embedding_multiplier,
    final_norm="model.final_layernorm",
    outside=FINAL_LAYERNORM,
    logit_scale=lm_head_multiplier,
    resid_mid="pre_ff_layernorm",
    tiny={
        "falcon_h1": SIZES
        | MAMBA_SIZES
        | {
            "mamba_d_ssm": 64,
            "mamba_rms_norm": True,
            "projectors_bias": True,
            "mlp_bias": True,
            "embedding_multiplier": 3.0,
            "lm_head_multiplier": 0.4,
            "mlp_multipliers": [0.9, 0.6],
            "ssm_multipliers": [0.9, 0.8, 0.7, 1.1, 1.2],
            "ssm_in_multiplier": 1.3,
            "ssm_out_multiplier": 0.7,
            "attention_in_multiplier": 1.2,
            "attention_out_multiplier": 0.5,
            "key_multiplier": 0.6,
        }
    },
)

FAMILIES = (BAMBA, ZAMBA2, NEMOTRON_H, GRANITE_HYBRID, FALCON_H1)
