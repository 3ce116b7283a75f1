"""The last tokens of prompts, run again and again and with gradients; what precedes them is run once.

For what changes a few numbers at a time: prompts of fifty tokens cost one or two. The cache is that of the
model as it is when the tail is made, so that later changes do not reach earlier tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.limits import admitted
from interp.backends.prefix import hoist, prefix_cache, supports_prefix
from interp.backends.protocol import Backend, kept_logits, model_inputs, take
from interp.types import TokenBatch


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """past: the cache of all but the last ``keep`` tokens; None where the whole prompt runs each time,
    as state-space mixers and sliding windows have to."""

    batch: TokenBatch
    keep: int
    past: Any | None

    @classmethod
    @torch.no_grad()
    def of(cls, backend: Backend, batch: TokenBatch, keep: int) -> Tail:
        """Run what precedes the last ``keep`` tokens; a batch that is no longer runs whole each time."""
        batch = admitted(backend.model, backend.tokenizer, backend.anatomy, batch)
        batch = batch.to(backend.device)
        alone = int(batch.lengths.min()) <= keep
        if alone or not supports_prefix(backend.model, backend.anatomy):
            return cls(batch, keep, None)
        base: nn.Module = backend.model.base_model  # type: ignore[assignment]
        cached: dict[str, Any] = {}
        start = 0
        if (hoisted := hoist(batch, keep + 1)) is not None:
            cached = {"past_key_values": prefix_cache(backend.model, hoisted)}
            batch, start = TokenBatch(hoisted.ids, hoisted.mask), hoisted.shared
        before = base(
            input_ids=batch.ids[:, start:-keep],
            attention_mask=batch.mask[:, :-keep],
            position_ids=batch.positions[:, start:-keep],
            use_cache=True,
            **cached,
        )
        return cls(batch, keep, before.past_key_values)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        layers = () if self.past is None else self.past.layers
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)

    def logits(self, model: nn.Module) -> Tensor:
        """Logits at the last ``keep`` tokens, ``[batch, keep, vocab]``; gradients reach what hooks add."""
        places = tuple(range(-self.keep, 0))
        kept = kept_logits(model, places)
        if self.past is None:
            out = model(**model_inputs(model, self.batch), **kept, use_cache=False)
            return take(out.logits, places)
        out = model(
            input_ids=self.batch.ids[:, -self.keep :],
            attention_mask=self.batch.mask,
            position_ids=self.batch.positions[:, -self.keep :],
            past_key_values=_again(self.past),
            use_cache=True,
            **kept,
        )
        return take(out.logits, places)


def _again(cache: Any) -> Any:
    """The cache with layers of its own: a layer takes new tokens into new tensors, never in place."""
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    return fresh


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient while the context lasts."""
    asking = [p for p in model.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
