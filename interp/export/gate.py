"""The gate: an edit leaves as an export only with figure cards that pass, or marked as unproven.

A card (:class:`interp.records.FigureRecord`) names in ``proves`` the methods whose edits rest on it; its
verdict follows from its data. What stands behind an edit is read from the delta's recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import ExportError
from interp.records import REPRODUCED, SHAPE_REPRODUCED, FigureRecord

PASSING = (REPRODUCED, SHAPE_REPRODUCED)


@dataclass(frozen=True, slots=True)
class Passed:
    """cards: key, verdict and model of each card, as written into manifests. unproven: none of them,
    or not all, pass."""

    cards: tuple[Mapping[str, Any], ...] = ()
    unproven: bool = True


def methods(recipe: Mapping[Any, Any]) -> frozenset[str]:
    """Methods that a recipe was made by, through sums and scalings; empty for one that names none."""
    found = {str(recipe["method"])} if "method" in recipe else set()
    for part in (*recipe.get("sum", ()), *([recipe["of"]] if "of" in recipe else ())):
        found |= methods(part)
    return frozenset(found)


def check(
    recipe: Mapping[Any, Any], cards: Sequence[FigureRecord], *, unproven: bool = False
) -> Passed:
    """Whether an edit may leave. unproven: let it, and say so in the manifest.

    Raises ExportError for an edit without a card for each of its methods, or with one that fails.
    """
    made_by = methods(recipe)
    kept = [card for card in cards if made_by & set(card.proves)]
    entries = tuple({"key": c.key, "verdict": c.verdict, "model": c.provenance.model} for c in kept)
    missing = made_by - {name for card in kept for name in card.proves}
    if not made_by or missing:
        what = f"edits by {min(missing)}" if missing else "an edit whose recipe names no method"
        why = f"no figure card stands behind {what}"
        mend = "name one with --card"
    elif failing := [card for card in kept if card.verdict not in PASSING]:
        why = f"the figure card {failing[0].key} says {failing[0].verdict!r}"
        mend = "measure it again"
    else:
        return Passed(entries, unproven=False)
    if not unproven:
        raise ExportError(f"{why}; {mend}, or export it all the same with --unproven")
    return Passed(entries, unproven=True)


def shipped_cards() -> list[FigureRecord]:
    """The figure cards that come with this package."""
    package = Path(__file__).resolve().parents[1]
    # In a wheel they lie inside the package, in a checkout beside it.
    folders = [package / "figures" / "shipped", package.parent / "figures"]
    folder = next((f for f in folders if f.is_dir()), None)
    return [FigureRecord.load(path) for path in sorted(folder.rglob("*.json"))] if folder else []
