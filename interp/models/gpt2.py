"""GPT-2: ``Conv1D`` stores ``[in, out]``, everything has a bias, and two embeddings are summed.

Token and position tables both write the stream; the unembedding is the token table.
"""

from __future__ import annotations

from interp.models.anatomy import Component, Family, Writer

FAMILIES = (
    Family(
        model_types=("gpt2",),
        components=(
            Component("attention", "attn", (Writer("attn.c_proj", "attention", axes="in out"),)),
            Component("mlp", "mlp", (Writer("mlp.c_proj", "mlp", axes="in out"),)),
        ),
        readers=("attn.c_attn.*", "mlp.c_fc.*", "ln_[12].*"),
        blocks="transformer.h",
        embeddings=("transformer.wte", "transformer.wpe"),
        final_norm="transformer.ln_f",
        outside=("transformer.ln_f.*", "lm_head.*"),
        resid_mid="ln_2",
        tiny={
            "gpt2": {
                "vocab_size": 97,
                "n_embd": 32,
                "n_inner": 56,
                "n_layer": 3,
                "n_head": 4,
                "n_positions": 128,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
            }
        },
    ),
)
