"""Values that are not finite: found where a backend returns them, then traced to a block.

Looking costs one sum per forward pass; the pass that finds the block runs only after a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import NotFinite
from interp.models.anatomy import Anatomy
from interp.sites import Site

NARROW = torch.float16


def all_finite(values: Tensor, mask: Tensor | None = None) -> bool:
    """Whether ``values`` hold no NaN and no infinity; rows where ``mask`` is 0 do not count."""
    if torch.isfinite(values.sum(dtype=torch.float32)):
        return True
    finite = torch.isfinite(values)
    if mask is None:
        return bool(finite.all())
    return bool(finite[mask.to(values.device).bool()].all())


class ScoresNotFinite(Exception):
    """Raised inside ``generate``; ids and mask: what the model had read by then."""

    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        super().__init__("scores are not finite")
        self.ids, self.mask = ids, mask


class FiniteScores:
    """A logits processor: raises ScoresNotFinite where ``generate`` would choose any token.

    mask: attention mask of the prompts.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if not all_finite(scores):
            more = ids.shape[1] - self.mask.shape[1]
            raise ScoresNotFinite(ids, nn.functional.pad(self.mask, (0, more), value=1))
        return scores


def first_site(found: Mapping[Site, Tensor], mask: Tensor) -> Site | None:
    """The first site in order with a value that is not finite; None where all are finite."""
    return next((site for site, value in found.items() if not all_finite(value, mask)), None)


def not_finite(model: nn.Module, anatomy: Anatomy, site: Site | None) -> NotFinite:
    """The error that names the first block (``site``; None: the unembedding) and what to change."""
    dtype = next(model.parameters()).dtype
    name = str(dtype).removeprefix("torch.")
    place = "the unembedding"
    if site is not None:
        place = "the embedding" if site.kind == "embed" else f"block {site.block}"
    tensors = _weights(model, anatomy, site)
    damaged = {key: "NaN" for key, value in tensors.items() if value.isnan().any()}
    if not damaged and dtype != NARROW:  # there the cast alone can make a weight infinite
        damaged = {key: "infinity" for key, value in tensors.items() if value.isinf().any()}
    if damaged:
        key, what = next(iter(damaged.items()))
        mend = f"its weight {key} holds {what}: download the model again, or train it again"
    elif dtype == NARROW:
        largest = torch.finfo(NARROW).max
        mend = f"{name} ends at {largest:.0f}: use --dtype bfloat16 or --dtype float32"
    else:
        mend = "check the weights and the scales in the config, or use a weaker edit"
    return NotFinite(f"{place} is the first to give NaN or infinity in {name}; {mend}")


def _weights(model: nn.Module, anatomy: Anatomy, site: Site | None) -> dict[str, Any]:
    """Parameters of what ``site`` is the output of (None: of the logits), offloaded ones left out."""
    if site is None:
        paths = [anatomy.final_norm, anatomy.unembed]
    elif site.kind == "embed":
        paths = [anatomy.embeddings[0].module]
    else:
        paths = [anatomy.blocks[site.block]]
    return {
        f"{path}.{key}": value
        for path in paths
        for key, value in model.get_submodule(path).named_parameters()
        if value.is_floating_point() and not value.is_meta
    }
