"""Mamba, Mamba-2 and Falcon-Mamba: one mixer a block, ``mixer.out_proj`` is the only writer.

Everything before ``out_proj`` (convolution, Δ, B, C, A, D, the gated norm) lives in the inner
space and only reads the stream. The stream is kept in fp32 (``residual_in_fp32``) whatever the
dtype of the weights.
"""

from __future__ import annotations

from typing import Any

from interp.models.anatomy import Component, Family, Writer

SELECTIVE = ("in_proj.*", "conv1d.*", "x_proj.weight", "dt_proj.*", "A_log", "D")
"""Mamba-1: Δ, B and C come from ``x_proj`` and ``dt_proj``."""

STATE_SPACE_DUAL = ("in_proj.*", "conv1d.*", "dt_bias", "A_log", "D", "norm.weight")
"""Mamba-2: ``in_proj`` gives Δ, B and C; the norm before ``out_proj`` is part of the mixer."""

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "state_size": 7,
    "expand": 2,
    "time_step_rank": 5,
    "use_bias": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def is_ssm(config: Any, block: int) -> bool:
    return config.layers_block_type[block] in ("linear_attention", "mamba")


def is_attention(config: Any, block: int) -> bool:
    return config.layers_block_type[block] in ("full_attention", "attention")


def within(module: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Globs of parameters that belong to ``module``."""
    return tuple(f"{module}.{name}" for name in names)


def _family(model_type: str, readers: tuple[str, ...], tiny: dict[str, Any]) -> Family:
    return Family(
        model_types=(model_type,),
        components=(Component("ssm", "mixer", (Writer("mixer.out_proj", "ssm"),)),),
        readers=(*within("mixer", readers), "norm.weight"),
        blocks="backbone.layers",
        embeddings=("backbone.embeddings",),
        final_norm="backbone.norm_f",
        outside=("backbone.norm_f.weight", "lm_head.*"),
        tiny={model_type: TINY | tiny},
    )


FAMILIES = (
    _family("mamba", SELECTIVE, {"tie_word_embeddings": True}),
    _family("falcon_mamba", SELECTIVE, {"tie_word_embeddings": False}),
    _family(
        "mamba2",
        STATE_SPACE_DUAL,
        {
            "tie_word_embeddings": False,
            "num_heads": 4,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
)
