"""Statistics of figures: numbers that claims are about, computed from the very data that are drawn.

One module a folder of cards, and one for a kind of series; each registers functions under a name with
:func:`interp.claims.statistics`. Standard library only, so that a card is read and judged without torch.
"""

from __future__ import annotations

from interp.statistics import (
    correlation,
    persona_finetunes,
    persona_vectors,
    refusal,
    representation_engineering,
)

__all__ = [
    "correlation",
    "persona_finetunes",
    "persona_vectors",
    "refusal",
    "representation_engineering",
]
