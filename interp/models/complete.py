"""Whether the weight files held what the model has: every tensor, in its shape, and nothing left over.

transformers fills a missing tensor with random numbers and skips one that the model has no place for,
with no more than a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from interp.errors import ModelNotFound

SHOWN = 4
HARMLESS = re.compile(
    r"(^|\.)(inv_freq|masked_bias|(attn|attention)\.bias|position_ids|embed_positions|[kvq]_scale)$"
)
"""Buffers that older versions of transformers saved, and scales of a quantised key-value cache."""


def check_complete(name: str, model: nn.Module, info: Mapping[str, Any]) -> None:
    """Raise ModelNotFound naming tensors that are missing, misshapen or left over.

    info: what ``from_pretrained`` returns for ``output_loading_info=True``; tied and ignored tensors are
    not in it. Left-over tensors are an error inside a module or a block of the model, where they change
    what it computes. Whole modules that a text model does not have (a vision tower, a head for other
    tasks, blocks that predict further tokens) are skipped, as are buffers.
    """
    mismatched = (
        f"{key} ({list(saved)} instead of {list(own)})"
        for key, saved, own in info["mismatched_keys"]
    )
    faults = {
        "missing": sorted(info["missing_keys"]),
        "of another shape": sorted(mismatched),
        "without a place in the model": sorted(left_over(model, info["unexpected_keys"])),
    }
    if any(faults.values()):
        found = "; ".join(f"{fault}: {_listed(keys)}" for fault, keys in faults.items() if keys)
        raise ModelNotFound(
            f"the weight files of {name} do not fit its config ({type(model).__name__}): {found}; "
            "download the model again, or use the config.json that belongs to these weights"
        )


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def left_over(model: nn.Module, keys: Iterable[str]) -> list[str]:
    """The unexpected tensors that lie inside a module or a block which the model has."""
    if getattr(model, "hf_quantizer", None) is not None:
        return []  # a quantiser packs weights under names of its own
    base = getattr(model, "base_model_prefix", "")
    modules = {path: module for path, module in model.named_modules() if path not in ("", base)}
    lists = {path: len(m) for path, m in modules.items() if isinstance(m, nn.ModuleList)}
    buffers = {path for path, _ in model.named_buffers()}
    further = int(getattr(model.config, "num_nextn_predict_layers", None) or 0)

    def inside(key: str) -> bool:
        if HARMLESS.search(key) or key in buffers:
            return False
        found = re.match(r"(.+?)\.(\d+)\.", key)
        if found and (length := lists.get(found[1])) is not None:
            return not length <= int(found[2]) < length + further
        return key.rpartition(".")[0] in modules

    return [key for key in keys if inside(key)]


@contextmanager
def without_report() -> Iterator[None]:
    """transformers' own table of such tensors is not logged: :func:`check_complete` judges them."""
    logger = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
