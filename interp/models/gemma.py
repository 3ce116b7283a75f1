"""Gemma 1-3 (text): RMS norms multiply by ``1 + w``, and the embedding scales its rows by √d_model.

Gemma 2 and 3 put a norm between each writer and the stream. Gemma 2 caps its logits. The multimodal
``gemma3`` is in ``multimodal.py``.
"""

from __future__ import annotations

from typing import Any

from interp.models.anatomy import Family
from interp.models.llama_like import ATTENTION, GATED, MLP, NORMS, QK_NORM, QKV, SIZES, post_normed


def root_d_model(config: Any) -> float:
    return config.hidden_size**0.5


def final_logit_softcapping(config: Any) -> float | None:
    return config.final_logit_softcapping


TIED = SIZES | {"tie_word_embeddings": True}

FAMILIES = (
    Family(
        model_types=("gemma",),
        components=(ATTENTION, MLP),
        readers=(*QKV, *GATED, *NORMS),
        embed_gain=root_d_model,
        final_norm_offset=1.0,
        resid_mid="post_attention_layernorm",
        tiny={"gemma": TIED},
    ),
    Family(
        model_types=("gemma2", "gemma3_text"),
        components=(
            post_normed(ATTENTION, "post_attention_layernorm", offset=1.0),
            post_normed(MLP, "post_feedforward_layernorm", offset=1.0),
        ),
        readers=(
            *QKV,
            *QK_NORM,
            *GATED,
            *NORMS,
            "pre_feedforward_layernorm.weight",
            "post_feedforward_layernorm.weight",
        ),
        embed_gain=root_d_model,
        final_norm_offset=1.0,
        logit_cap=final_logit_softcapping,
        resid_mid="pre_feedforward_layernorm",
        tiny={
            "gemma2": TIED
            | {"sliding_window": 8, "query_pre_attn_scalar": 12, "final_logit_softcapping": 4.0},
            "gemma3_text": TIED | {"sliding_window": 8, "query_pre_attn_scalar": 12},
        },
    ),
)
