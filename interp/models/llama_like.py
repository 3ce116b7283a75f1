"""Llama and its relatives: pre-norm blocks, ``o_proj`` and ``down_proj`` write, no post-norms.

OLMo's norms have no parameters. Granite scales the embedding, both additions and (as a divisor) the
logits. StarCoder2 has biases and an ungated MLP. StableLM may run attention and MLP in parallel, on
one norm. OLMo 2 and 3 have no pre-norm: attention and MLP read the stream itself, and a norm with
gain w stands between each writer and the stream.
"""

from __future__ import annotations

from typing import Any

from interp.models.anatomy import Component, Family, Writer

O_PROJ = Writer("self_attn.o_proj", "attention")
DOWN_PROJ = Writer("mlp.down_proj", "mlp")
ATTENTION = Component("attention", "self_attn", (O_PROJ,))
MLP = Component("mlp", "mlp", (DOWN_PROJ,))
QKV = ("self_attn.[qkv]_proj.*",)
QK_NORM = ("self_attn.[qk]_norm.*",)
GATED = ("mlp.gate_proj.*", "mlp.up_proj.*")
NORMS = ("input_layernorm.*", "post_attention_layernorm.*")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
SQUARE = {key: value for key, value in SIZES.items() if key != "head_dim"}
GRANITE_FACTORS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.3,
    "logits_scaling": 2.5,
}


def residual_multiplier(config: Any) -> float:
    return config.residual_multiplier


def embedding_multiplier(config: Any) -> float:
    return config.embedding_multiplier


def inverse_logits_scaling(config: Any) -> float:
    return 1.0 / config.logits_scaling


def sequential(config: Any, block: int) -> bool:
    """Whether the MLP reads what attention has just added (no parallel residual)."""
    return not config.use_parallel_residual


def post_normed(component: Component, norm: str, offset: float = 0.0) -> Component:
    """The same component with a norm between its writers and the stream."""
    return Component(
        component.kind, norm, component.writers, post_norm=norm, post_norm_offset=offset
    )


FAMILIES = (
    Family(
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3"),
        components=(ATTENTION, MLP),
        readers=(
            *QKV,
            *QK_NORM,
            "self_attn.qkv_proj.*",
            *GATED,
            "mlp.gate_up_proj.*",
            *NORMS,
        ),
        resid_mid="post_attention_layernorm",
        tiny={
            "llama": SIZES | {"tie_word_embeddings": True},
            "mistral": SIZES | {"sliding_window": 8},
            "qwen2": SIZES,
            "qwen3": SIZES,
            "smollm3": SIZES,
            "phi3": SIZES,
        },
    ),
    Family(
        model_types=("olmo",),
        components=(ATTENTION, MLP),
        readers=(*QKV, *GATED),
        outside=("lm_head.*",),
        resid_mid="post_attention_layernorm",
        tiny={"olmo": SIZES | {"clip_qkv": 2.0}},
    ),
    Family(
        model_types=("granite",),
        components=tuple(
            Component(c.kind, c.module, c.writers, scale=residual_multiplier)
            for c in (ATTENTION, MLP)
        ),
        readers=(*QKV, *GATED, *NORMS),
        embed_scale=embedding_multiplier,
        logit_scale=inverse_logits_scaling,
        resid_mid="post_attention_layernorm",
        tiny={"granite": SIZES | GRANITE_FACTORS | {"attention_bias": True, "mlp_bias": True}},
    ),
    Family(
        model_types=("starcoder2",),
        components=(ATTENTION, Component("mlp", "mlp", (Writer("mlp.c_proj", "mlp"),))),
        readers=(*QKV, "mlp.c_fc.*", *NORMS),
        resid_mid="post_attention_layernorm",
        tiny={"starcoder2": SIZES | {"sliding_window": 8}},
    ),
    Family(
        model_types=("stablelm",),
        components=(ATTENTION, MLP),
        readers=(*QKV, "self_attn.[qk]_layernorm.norms.*", *GATED, *NORMS),
        resid_mid="post_attention_layernorm",
        mid_when=sequential,
        tiny={"stablelm": SQUARE | {"use_qkv_bias": True, "qk_layernorm": True}},
    ),
    Family(
        model_types=("olmo2", "olmo3"),
        components=(
            post_normed(ATTENTION, "post_attention_layernorm"),
            post_normed(MLP, "post_feedforward_layernorm"),
        ),
        readers=(
            *QKV,
            *QK_NORM,
            *GATED,
            "post_attention_layernorm.weight",
            "post_feedforward_layernorm.weight",
        ),
        resid_mid="mlp",
        tiny={"olmo2": SIZES, "olmo3": SIZES | {"sliding_window": 8}},
    ),
)
