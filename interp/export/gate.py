"""The gate: an edit is exported as proven, or marked as unproven with what is missing.

Proven takes two halves. A figure card (:class:`interp.records.FigureRecord`) names in ``proves`` the kinds
of recipe that it was measured with, and its verdict, which follows from its data, passes. And this very
delta was measured on this very model on held-out prompts (:mod:`interp.export.measurement`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import ExportError
from interp.export.measurement import Measurement, why_not
from interp.records import REPRODUCED, SHAPE_REPRODUCED, FigureRecord
from interp.types import WeightDelta

PASSING = (REPRODUCED, SHAPE_REPRODUCED)
NOT_CHECKED = "neither figure cards nor a measurement were looked for"


@dataclass(frozen=True, slots=True)
class Passed:
    """What an export says of its proof.

    cards: key, verdict, model and commit of each card about these recipes. measured: the measurement that
    counts, None without one. missing: what a proof lacks, one sentence each; empty for a proven edit.
    """

    cards: tuple[Mapping[str, Any], ...] = ()
    measured: Measurement | None = None
    missing: tuple[str, ...] = (NOT_CHECKED,)

    @property
    def unproven(self) -> bool:
        """Whether anything is missing."""
        return bool(self.missing)

    def as_json(self) -> dict[str, Any]:
        """``cards``, ``measured``, ``unproven`` and ``missing``, as manifests and receipts hold them."""
        measured = None if self.measured is None else self.measured.summary()
        return {
            "cards": self.cards,
            "measured": measured,
            "unproven": self.unproven,
            "missing": self.missing,
        }


def kind(method: str, *, opener: bool = False, learned: bool = False) -> str:
    """Name of a kind of recipe: ``least-disturbance, learned, with opener``.

    opener: the edit also acts after the opener of a refusal. learned: not in closed form.
    """
    return method + ", learned" * learned + ", with opener" * opener


def kinds(recipe: Mapping[Any, Any], learned: bool = False) -> frozenset[str]:
    """Kinds of all parts of a recipe, through sums and scalings; empty for one that names no method."""
    learned = learned or ("learn" in recipe and "of" in recipe)
    found = set()
    if "method" in recipe:
        opener = bool(recipe.get("after_opener"))
        found.add(kind(str(recipe["method"]), opener=opener, learned=learned))
    for part in (*recipe.get("sum", ()), *([recipe["of"]] if "of" in recipe else ())):
        found |= kinds(part, learned)
    return frozenset(found)


def check(
    delta: WeightDelta,
    cards: Sequence[FigureRecord],
    measured: Measurement | None = None,
    *,
    unproven: bool = False,
) -> Passed:
    """What an edit is proven by.

    cards: figure cards that the edit rests on. measured: this very delta on this very model. unproven: let
    an edit without both out all the same; manifests then say what is missing.
    Raises ExportError for an edit that is not proven, which names every missing half.
    """
    made_by = kinds(delta.recipe)
    about = [card for card in cards if made_by & set(card.proves)]
    missing = [*_missing_cards(made_by, about)]
    if reason := why_not(measured, delta):
        missing.append(reason)
    if missing and not unproven:
        raise ExportError("; and ".join(missing) + "; or export it all the same with --unproven")
    entries = tuple(
        {
            "key": card.key,
            "verdict": card.verdict,
            "model": card.provenance.model,
            "commit": card.provenance.commit,
        }
        for card in about
    )
    return Passed(entries, None if reason else measured, tuple(missing))


def _missing_cards(made_by: frozenset[str], about: Sequence[FigureRecord]) -> list[str]:
    """What is missing of the first half, the cards."""
    if not made_by:
        return ["no figure card stands behind an edit whose recipe names no method"]
    if failing := [card for card in about if card.verdict not in PASSING]:
        return [f"the figure card {failing[0].key} says {failing[0].verdict!r}: measure it again"]
    proven = {name for card in about if not card.provenance.doubt for name in card.proves}
    return [_missing_card(name, about) for name in sorted(made_by - proven)]


def _missing_card(name: str, about: Sequence[FigureRecord]) -> str:
    """What is missing for edits of one kind, of which no card is good."""
    if found := [card for card in about if name in card.proves]:
        why = f"{found[0].key}, about edits by {name}, {found[0].provenance.doubt}"
        return f"the figure card {why}: measure it again"
    return f"no figure card stands behind edits by {name}: name one with --card"


def shipped_cards() -> list[FigureRecord]:
    """The figure cards that come with this package."""
    package = Path(__file__).resolve().parents[1]
    # In a wheel they lie inside the package, in a checkout beside it.
    folders = [package / "figures" / "shipped", package.parent / "figures"]
    folder = next((f for f in folders if f.is_dir()), None)
    return [FigureRecord.load(path) for path in sorted(folder.rglob("*.json"))] if folder else []
