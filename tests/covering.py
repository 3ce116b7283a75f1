"""A few families that have between them every feature that any described family has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from interp.models import known_model_types
from interp.models.anatomy import Anatomy, BoundWriter

COVERING = (
    "cohere",
    "falcon_h1",
    "gemma2",
    "gpt2",
    "gpt_oss",
    "granitemoehybrid",
    "jamba",
    "llama",
    "nemotron_h",
    "olmo",
    "olmo2",
    "qwen2_moe",
)


def every() -> list[Any]:
    """Every family as a parameter; those outside ``COVERING`` are slow."""
    return [
        kind if kind in COVERING else pytest.param(kind, marks=pytest.mark.slow)
        for kind in known_model_types()
    ]


def features(model: nn.Module, anatomy: Anatomy) -> set[str]:
    """What tells the anatomy of ``model`` from others, one short text each."""
    found = {feature for writer in anatomy.writers for feature in _of_writer(writer)}
    found |= set(_of_blocks(anatomy))
    found |= {f"final {text}" for text in _of_norm(model, anatomy)}
    found.add("tied" if anatomy.tied else "untied")
    flags = {
        "several embeddings": len(anatomy.embeddings) > 1,
        "scaled sum of embeddings": anatomy.embed_scale != 1,
        "scaled logits": anatomy.logit_scale != 1,
        "capped logits": anatomy.logit_cap is not None,
    }
    return found | {name for name, present in flags.items() if present}


def _of_writer(writer: BoundWriter) -> Iterator[str]:
    yield f"{writer.kind} stored as {writer.axes!r}"
    if writer.bias is not None:
        yield f"bias of {writer.axes!r}"
    if writer.gain is not None:
        yield f"post-norm with offset {writer.gain_offset}"
    elif writer.scale is None:
        yield "routed experts" if writer.fused else "gated writer"
    elif writer.scale != 1:
        yield "scaled embedding" if writer.kind == "embedding" else "scaled writer"
    if writer.fused:
        yield "experts saved apart" if len(writer.checkpoint) > 1 else "experts saved together"
    elif writer.checkpoint != (writer.weight,):
        yield "saved under another name"


def _of_blocks(anatomy: Anatomy) -> Iterator[str]:
    for block, mid in enumerate(anatomy.resid_mid):
        components = anatomy.in_block(block)
        kinds = " + ".join(sorted(c.kind for c in components))
        yield f"block of {kinds}" + (", parallel" if mid is None and len(components) > 1 else "")
        if any(len(c.writers) > 1 for c in components):
            yield "component of several writers"


def _of_norm(model: nn.Module, anatomy: Anatomy) -> Iterator[str]:
    norm = model.get_submodule(anatomy.final_norm)
    yield "RMSNorm" if "RMS" in type(norm).__name__ else "LayerNorm"
    yield f"gain with offset {anatomy.family.final_norm_offset}"
    yield "gain" if getattr(norm, "weight", None) is not None else "norm without a gain"
    if getattr(norm, "bias", None) is not None:
        yield "bias"
