"""Attention patterns: what each head of a block reads, and from where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.backends.limits import admitted
from interp.backends.protocol import Backend, model_inputs
from interp.errors import SiteError
from interp.models.anatomy import Anatomy
from interp.types import TokenBatch

ALL_WEIGHTS = "eager"
"""The implementation of attention in transformers that returns its weights."""


@torch.no_grad()
def attention_pattern(
    backend: Backend, batch: TokenBatch, block: int
) -> Float[Tensor, "prompt head query key"]:
    """Attention weights of every head of a block, on the CPU; 0 where a query or a key is padding.

    Attention runs in its ``eager`` implementation for this pass. Raises SiteError for a block without
    attention, and for attention that computes no weights.
    """
    path = _attention_module(backend.anatomy, block)
    model = backend.model
    batch = admitted(model, backend.tokenizer, backend.anatomy, batch).to(backend.device)
    found: list[Any] = []
    hook = model.get_submodule(path).register_forward_hook(lambda *call: found.append(call[-1]))
    try:
        with _eager(model):
            model(**model_inputs(model, batch), use_cache=False)
    finally:
        hook.remove()
    weights = found[0][1] if found and isinstance(found[0], tuple) and len(found[0]) > 1 else None
    if not isinstance(weights, Tensor) or weights.ndim != 4:
        raise SiteError(f"{path} returns no attention weights, so that there is no pattern to show")
    real = batch.mask.bool()
    seen = real[:, None, :, None] & real[:, None, None, :]
    return (weights[..., : real.shape[1]] * seen).float().cpu()


def _attention_module(anatomy: Anatomy, block: int) -> str:
    """The path of the module that holds the output projection of a block's attention."""
    if not 0 <= block < anatomy.n_blocks:
        raise SiteError(f"block {block} is outside this model: 0 … {anatomy.n_blocks - 1}")
    writers = {w.block: w for w in reversed(anatomy.block_writers) if w.kind == "attention"}
    if block not in writers:
        with_attention = ", ".join(map(str, sorted(b for b in writers if b is not None))) or "none"
        raise SiteError(f"block {block} has no attention; blocks that have: {with_attention}")
    return writers[block].module.rpartition(".")[0]


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """The model with attention that returns its weights; the implementation comes back afterwards."""
    config: Any = model.config
    before = {name: getattr(config, name)._attn_implementation for name in config.sub_configs}
    before[""] = config._attn_implementation
    try:
        model.set_attn_implementation(ALL_WEIGHTS)  # type: ignore[operator]
        yield
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]
