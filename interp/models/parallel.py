"""Blocks whose attention and MLP both read the block's input: GPT-NeoX, GPT-J, Phi, Cohere.

There is no stream between mixer and MLP, except in GPT-NeoX models with ``use_parallel_residual``
off. GPT-J and Phi have a bias on the unembedding; Cohere's norm has none and its logits are scaled.
GPT-NeoX is saved with the unembedding named ``embed_out``.
"""

from __future__ import annotations

from typing import Any

from interp.models.anatomy import Component, Family, Writer
from interp.models.llama_like import ATTENTION, GATED, MLP, QK_NORM, QKV, SIZES, SQUARE, sequential


def logit_scale(config: Any) -> float:
    return config.logit_scale


FAMILIES = (
    Family(
        model_types=("gpt_neox",),
        components=(
            Component("attention", "attention", (Writer("attention.dense", "attention"),)),
            Component("mlp", "mlp", (Writer("mlp.dense_4h_to_h", "mlp"),)),
        ),
        readers=(
            "attention.query_key_value.*",
            "mlp.dense_h_to_4h.*",
            "input_layernorm.*",
            "post_attention_layernorm.*",
        ),
        blocks="gpt_neox.layers",
        embeddings=("gpt_neox.embed_in",),
        final_norm="gpt_neox.final_layer_norm",
        outside=("gpt_neox.final_layer_norm.*", "lm_head.*"),
        saved_unembed="embed_out",
        resid_mid="post_attention_layernorm",
        mid_when=sequential,
        # Its config knows no key-value heads; a stray entry would mislead TransformerLens.
        tiny={"gpt_neox": {k: v for k, v in SQUARE.items() if k != "num_key_value_heads"}},
    ),
    Family(
        model_types=("gptj",),
        components=(
            Component("attention", "attn", (Writer("attn.out_proj", "attention"),)),
            Component("mlp", "mlp", (Writer("mlp.fc_out", "mlp"),)),
        ),
        readers=("attn.[qkv]_proj.*", "mlp.fc_in.*", "ln_1.*"),
        blocks="transformer.h",
        embeddings=("transformer.wte",),
        final_norm="transformer.ln_f",
        outside=("transformer.ln_f.*", "lm_head.*"),
        tiny={
            "gptj": {
                "vocab_size": 97,
                "n_embd": 32,
                "n_inner": 56,
                "n_layer": 3,
                "n_head": 4,
                "n_positions": 128,
                "rotary_dim": 4,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
                "tie_word_embeddings": False,
            }
        },
    ),
    Family(
        model_types=("phi",),
        components=(
            Component("attention", "self_attn", (Writer("self_attn.dense", "attention"),)),
            Component("mlp", "mlp", (Writer("mlp.fc2", "mlp"),)),
        ),
        readers=(*QKV, "self_attn.[qk]_layernorm.*", "mlp.fc1.*", "input_layernorm.*"),
        final_norm="model.final_layernorm",
        outside=("model.final_layernorm.*", "lm_head.*"),
        tiny={"phi": SIZES},
    ),
    Family(
        model_types=("cohere",),
        components=(ATTENTION, MLP),
        readers=(*QKV, *QK_NORM, *GATED, "input_layernorm.weight"),
        logit_scale=logit_scale,
        tiny={"cohere": SIZES | {"logit_scale": 0.5, "tie_word_embeddings": True}},
    ),
)
