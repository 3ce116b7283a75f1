"""Compute a prefix that all prompts share once: chat templates open them all with the same turns.

Exact up to round-off for models whose only memory is full attention; others (state-space mixers,
sliding windows, which count cached padding) run the whole prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.models.anatomy import Anatomy
from interp.types import Ids, Mask, TokenBatch

SHORTEST = 8
"""A shorter prefix saves less than the second forward pass costs."""


@dataclass(frozen=True, slots=True)
class Hoisted:
    """A batch with the shared prefix in front of the padding: ``[prefix | padding | rest]``."""

    ids: Ids
    mask: Mask
    shared: int

    @property
    def positions(self) -> Tensor:
        return (self.mask.cumsum(-1) - 1).clamp(min=0)


def supports_prefix(model: nn.Module, anatomy: Anatomy) -> bool:
    """Whether cached prefix tokens followed by padding are seen as they would be unpadded."""
    config: Any = model.config
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        {c.kind for c in anatomy.components} <= {"attention", "mlp", "expert"}
        and not anatomy.image_writers  # some keep an offset of positions from one run to the next
        and layer_types == {"full_attention"}
        and not getattr(config, "sliding_window", None)
    )


def hoist(batch: TokenBatch, keep: int = 1) -> Hoisted | None:
    """Move the tokens that all rows share to the front; None when they are too few.

    keep: tokens at the end of each row that must stay outside the prefix.
    """
    lengths = batch.mask.sum(-1)
    shortest, width = int(lengths.min()), batch.ids.shape[1]
    column = torch.arange(max(shortest - keep, 0), device=batch.ids.device)
    starts = (width - lengths).unsqueeze(-1)
    leading = batch.ids.gather(1, starts + column)
    same = (leading == leading[:1]).all(0).int()
    shared = int(same.cumprod(0).sum())
    if shared < SHORTEST or len(batch) < 2:
        return None
    ids, mask = batch.ids.clone(), batch.mask.clone()
    for row, start in enumerate(starts.flatten().tolist()):
        ids[row, :shared] = leading[0, :shared]
        mask[row, :shared] = 1
        ids[row, shared : start + shared] = batch.ids[row, :start]
        mask[row, shared : start + shared] = 0
    return Hoisted(ids, mask, shared)


def prefix_cache(model: nn.Module, hoisted: Hoisted) -> Any:
    """The key-value cache of the shared prefix, run for one row and repeated for all."""
    first = hoisted.ids[:1, : hoisted.shared]
    base: nn.Module = model.base_model  # type: ignore[assignment]
    cache = base(input_ids=first, use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(hoisted.ids))
    return cache


def after_prefix(model: nn.Module, hoisted: Hoisted) -> dict[str, Any]:
    """Forward arguments for what follows the prefix, with the prefix in the cache."""
    rest = slice(hoisted.shared, None)
    return {
        "input_ids": hoisted.ids[:, rest],
        "attention_mask": hoisted.mask,
        "position_ids": hoisted.positions[:, rest],
        "past_key_values": prefix_cache(model, hoisted),
        "use_cache": True,
    }
