"""Samba: Mamba-1 or windowed attention, then a SwiGLU MLP (:mod:`interp.architectures.samba`)."""

from __future__ import annotations

from typing import Any

from interp.models.anatomy import Component, Family, Writer
from interp.models.llama_like import ATTENTION, GATED, MLP, NORMS, QKV, SIZES
from interp.models.mamba import SELECTIVE, within


def is_mamba(config: Any, block: int) -> bool:
    return config.layer_types[block] == "linear_attention"


def is_attention(config: Any, block: int) -> bool:
    return not is_mamba(config, block)


FAMILIES = (
    Family(
        model_types=("samba",),
        components=(
            Component("ssm", "mamba", (Writer("mamba.out_proj", "ssm"),), when=is_mamba),
            Component("attention", "self_attn", ATTENTION.writers, when=is_attention),
            MLP,
        ),
        readers=(*QKV, *within("mamba", SELECTIVE), *GATED, *NORMS),
        resid_mid="post_attention_layernorm",
        tiny={
            "samba": SIZES
            | {
                "num_hidden_layers": 4,
                "sliding_window": 8,
                "mamba_d_state": 7,
                "mamba_dt_rank": 5,
                "tie_word_embeddings": True,
            }
        },
    ),
)
