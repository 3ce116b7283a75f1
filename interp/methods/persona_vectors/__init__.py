"""Persona vectors (arXiv 2507.21509): from a sentence that names a trait to a vector for every block.

:class:`PersonaVectorExtractor` makes a :class:`PersonaVector` of a :class:`Trait`. Names are imported
on first use, so that papers can be listed without torch. See ``papers/persona_vectors.md``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ExtractionRecipe": "recipe",
    "PersonaVector": "vectors",
    "PersonaVectorExtractor": "extraction",
    "Trait": "traits",
    "cosines": "vectors",
    "projection": "vectors",
    "removal": "edits",
    "shipped_trait": "traits",
    "shipped_traits": "traits",
    "steering": "edits",
    "steering_increments": "edits",
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from interp.methods.persona_vectors.edits import removal as removal
    from interp.methods.persona_vectors.edits import steering as steering
    from interp.methods.persona_vectors.edits import steering_increments as steering_increments
    from interp.methods.persona_vectors.extraction import (
        PersonaVectorExtractor as PersonaVectorExtractor,
    )
    from interp.methods.persona_vectors.recipe import ExtractionRecipe as ExtractionRecipe
    from interp.methods.persona_vectors.traits import Trait as Trait
    from interp.methods.persona_vectors.traits import shipped_trait as shipped_trait
    from interp.methods.persona_vectors.traits import shipped_traits as shipped_traits
    from interp.methods.persona_vectors.vectors import PersonaVector as PersonaVector
    from interp.methods.persona_vectors.vectors import cosines as cosines
    from interp.methods.persona_vectors.vectors import projection as projection


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
