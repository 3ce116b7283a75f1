"""Mixture-of-experts transformers: one parameter ``[expert, d_model, d_ff]`` holds all experts.

Most are saved expert by expert; Granite and GPT-OSS are saved fused, and GPT-OSS is transposed
(``[expert, d_ff, d_model]``) with a bias for each expert. Qwen2-MoE and DeepSeek-V3 add shared
experts (gated in Qwen2-MoE) in the same module; some blocks may be dense. Router and MLA only read.
"""

from __future__ import annotations

from typing import Any

from interp.models.anatomy import Component, Family, MaybeFactor, Writer, no_factor, one
from interp.models.llama_like import (
    ATTENTION,
    GATED,
    GRANITE_FACTORS,
    MLP,
    NORMS,
    QK_NORM,
    QKV,
    SIZES,
    embedding_multiplier,
    inverse_logits_scaling,
    residual_multiplier,
)

PER_EXPERT = "mlp.experts.{e}.down_proj.weight"
EXPERT_SIZES = SIZES | {"num_experts_per_tok": 2, "moe_intermediate_size": 24}


def is_sparse(config: Any, block: int) -> bool:
    """Qwen: every ``decoder_sparse_step``-th block has experts, except the listed ones."""
    if block in (config.mlp_only_layers or ()) or config.num_experts == 0:
        return False
    return (block + 1) % config.decoder_sparse_step == 0


def is_dense(config: Any, block: int) -> bool:
    return not is_sparse(config, block)


def after_dense(config: Any, block: int) -> bool:
    """DeepSeek: the first blocks are dense."""
    return block >= config.first_k_dense_replace


def among_dense(config: Any, block: int) -> bool:
    return not after_dense(config, block)


def top_k_sum(config: Any) -> float | None:
    """What the routing weights of a token sum to; None when they are not renormalised."""
    if not config.norm_topk_prob:
        return None
    return getattr(config, "routed_scaling_factor", 1.0)


def experts(
    path: str, saved: str | None, scale: MaybeFactor, axes: Any = "expert out in"
) -> Writer:
    return Writer(
        path, "expert", axes, weight="down_proj", bias="down_proj_bias", saved=saved, scale=scale
    )


QWEN_DENSE = Component("mlp", "mlp", (Writer("mlp.down_proj", "mlp"),), when=is_dense)
QWEN_EXPERTS = experts("mlp.experts", PER_EXPERT, top_k_sum)
QWEN_SIZES = EXPERT_SIZES | {"num_experts": 4, "mlp_only_layers": [1], "norm_topk_prob": True}
FUSED = ("mlp.gate.weight", "mlp.experts.gate_up_proj")

FAMILIES = (
    Family(
        model_types=("mixtral",),
        components=(
            ATTENTION,
            Component(
                "expert",
                "mlp",
                (experts("mlp.experts", "block_sparse_moe.experts.{e}.w2.weight", one),),
            ),
        ),
        readers=(*QKV, *FUSED, *NORMS),
        resid_mid="post_attention_layernorm",
        tiny={"mixtral": SIZES | {"num_local_experts": 4, "num_experts_per_tok": 2}},
    ),
    Family(
        model_types=("qwen2_moe",),
        components=(
            ATTENTION,
            Component(
                "expert",
                "mlp",
                (QWEN_EXPERTS, Writer("mlp.shared_expert.down_proj", "mlp", scale=no_factor)),
                when=is_sparse,
            ),
            QWEN_DENSE,
        ),
        readers=(
            *QKV,
            *FUSED,
            "mlp.shared_expert.gate_proj.weight",
            "mlp.shared_expert.up_proj.weight",
            "mlp.shared_expert_gate.weight",
            *GATED,
            *NORMS,
        ),
        resid_mid="post_attention_layernorm",
        tiny={
            "qwen2_moe": QWEN_SIZES
            | {"shared_expert_intermediate_size": 40, "norm_topk_prob": False}
        },
    ),
    Family(
        model_types=("qwen3_moe",),
        components=(
            ATTENTION,
            Component("expert", "mlp", (QWEN_EXPERTS,), when=is_sparse),
            QWEN_DENSE,
        ),
        readers=(*QKV, *QK_NORM, *FUSED, *GATED, *NORMS),
        resid_mid="post_attention_layernorm",
        tiny={"qwen3_moe": QWEN_SIZES},
    ),
    Family(
        model_types=("olmoe",),
        components=(ATTENTION, Component("expert", "mlp", (QWEN_EXPERTS,))),
        readers=(*QKV, *QK_NORM, *FUSED, *NORMS),
        resid_mid="post_attention_layernorm",
        tiny={"olmoe": EXPERT_SIZES | {"num_experts": 4, "head_dim": 8}},
    ),
    Family(
        model_types=("gpt_oss",),
        components=(
            ATTENTION,
            Component("expert", "mlp", (experts("mlp.experts", None, one, "expert in out"),)),
        ),
        readers=(
            *QKV,
            "self_attn.sinks",
            "mlp.router.*",
            "mlp.experts.gate_up_proj",
            "mlp.experts.gate_up_proj_bias",
            *NORMS,
        ),
        resid_mid="post_attention_layernorm",
        tiny={
            "gpt_oss": SIZES
            | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
        },
    ),
    Family(
        model_types=("deepseek_v3",),
        components=(
            ATTENTION,
            Component(
                "expert",
                "mlp",
                (QWEN_EXPERTS, Writer("mlp.shared_experts.down_proj", "mlp")),
                when=after_dense,
            ),
            Component("mlp", "mlp", MLP.writers, when=among_dense),
        ),
        readers=(
            "self_attn.q_proj.weight",
            "self_attn.q_[ab]_proj.*",
            "self_attn.q_a_layernorm.weight",
            "self_attn.kv_a_proj_with_mqa.*",
            "self_attn.kv_a_layernorm.weight",
            "self_attn.kv_b_proj.weight",
            *FUSED,
            "mlp.shared_experts.gate_proj.weight",
            "mlp.shared_experts.up_proj.weight",
            *GATED,
            *NORMS,
        ),
        resid_mid="post_attention_layernorm",
        tiny={
            "deepseek_v3": {key: value for key, value in EXPERT_SIZES.items() if key != "head_dim"}
            | {
                "num_key_value_heads": 4,
                "first_k_dense_replace": 1,
                "n_routed_experts": 4,
                "n_shared_experts": 2,
                "n_group": 2,
                "topk_group": 1,
                "routed_scaling_factor": 1.7,
                "q_lora_rank": 14,
                "kv_lora_rank": 10,
                "qk_nope_head_dim": 6,
                "qk_rope_head_dim": 4,
                "v_head_dim": 12,
            }
        },
    ),
    Family(
        model_types=("granitemoe",),
        components=(
            Component("attention", "self_attn", ATTENTION.writers, scale=residual_multiplier),
            Component(
                "expert",
                "block_sparse_moe",
                (
                    experts(
                        "block_sparse_moe.experts", "block_sparse_moe.output_linear.weight", one
                    ),
                ),
                scale=residual_multiplier,
            ),
        ),
        readers=(
            *QKV,
            "block_sparse_moe.router.weight",
            "block_sparse_moe.experts.gate_up_proj",
            *NORMS,
        ),
        embed_scale=embedding_multiplier,
        logit_scale=inverse_logits_scaling,
        resid_mid="post_attention_layernorm",
        tiny={
            "granitemoe": SIZES
            | GRANITE_FACTORS
            | {"num_local_experts": 4, "num_experts_per_tok": 2}
        },
    ),
)
