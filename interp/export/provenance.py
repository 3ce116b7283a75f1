"""Whether an export is what it was read from, as the source's own library loads that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from interp.errors import ExportError
from interp.export import exchange
from interp.export.exchange import Reply, Request
from interp.export.exporter import exporters, recognise
from interp.export.probe import distance
from interp.export.receipt import Receipt
from interp.types import WeightDelta


def compare_source(
    source: Path, delta: WeightDelta, request: Request, reply: Reply, found: Receipt
) -> dict[str, Any]:
    """What a receipt says of the source: its name, the library that loaded it, and how far its logits are.

    request, reply: of the export. Empty for a source that no other library loads (a delta, a GGUF).
    Raises ExportError when the logits differ although the delta claims to hold the whole source.
    """
    exporter = recognise(source) if source.is_dir() else exporters()["delta"]
    if not exporter.library:
        return {}
    asked = replace(
        request, format=exporter.name, path=str(source.resolve()), fingerprint="", foreign=True
    )
    theirs, ours = exchange.ask(asked).logits["export"], reply.logits["export"]
    shared = min(theirs.shape[-1], ours.shape[-1])  # a finetune may have more tokens
    difference = distance(theirs[:, :shared], ours[:, :shared])
    allowed = found.tolerance * found.scale
    whole = is_whole(delta.recipe)
    if whole and not difference <= allowed:
        raise ExportError(
            f"the export is not {source}: its logits differ by {difference:.3g} from those that "
            f"{exporter.library} gives (allowed: {allowed:.3g}){_why(delta.recipe)}; nothing was written"
        )
    return {
        "name": source.name,
        "library": exporter.library,
        "difference": difference,
        "whole": whole,
    }


def is_whole(recipe: Mapping[str, Any]) -> bool:
    """Whether a delta claims to be all of what it was read from."""
    cut = recipe.get("method") == "difference" and (recipe.get("rank") or recipe.get("tolerance"))
    return not cut and "truncation" not in recipe


def _why(recipe: Mapping[str, Any]) -> str:
    if not (left := recipe.get("not_held")):
        return ""
    return (
        f": {len(left)} tensors that changed there have no update in a delta, the first {min(left)}; to "
        "export the rest all the same, cut the ranks with --rank, and the distance is printed"
    )
