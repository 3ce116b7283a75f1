"""Persona vectors (arXiv 2507.21509): from a sentence that names a trait to a vector for every block.

:class:`PersonaVectorExtractor` makes a :class:`PersonaVector` of a :class:`Trait`. Names are imported
on first use, so that papers can be listed without torch. See ``papers/persona_vectors.md``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ExtractionRecipe": "recipe",
    "FinetuningRecipe": "training_recipes",
    "PersonaVector": "vectors",
    "PersonaVectorExtractor": "extraction",
    "ProjectionPenalty": "prevention",
    "StyledData": "data",
    "Trait": "traits",
    "caft": "prevention",
    "cosines": "vectors",
    "finetunes": "finetuning",
    "from_data": "data",
    "preventative": "prevention",
    "preventative_increments": "prevention",
    "projection": "vectors",
    "removal": "edits",
    "shipped_trait": "traits",
    "shipped_traits": "traits",
    "steering": "edits",
    "steering_increments": "edits",
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from interp.methods.persona_vectors.data import StyledData as StyledData
    from interp.methods.persona_vectors.data import from_data as from_data
    from interp.methods.persona_vectors.edits import removal as removal
    from interp.methods.persona_vectors.edits import steering as steering
    from interp.methods.persona_vectors.edits import steering_increments as steering_increments
    from interp.methods.persona_vectors.extraction import (
        PersonaVectorExtractor as PersonaVectorExtractor,
    )
    from interp.methods.persona_vectors.finetuning import finetunes as finetunes
    from interp.methods.persona_vectors.prevention import ProjectionPenalty as ProjectionPenalty
    from interp.methods.persona_vectors.prevention import caft as caft
    from interp.methods.persona_vectors.prevention import preventative as preventative
    from interp.methods.persona_vectors.prevention import (
        preventative_increments as preventative_increments,
    )
    from interp.methods.persona_vectors.recipe import ExtractionRecipe as ExtractionRecipe
    from interp.methods.persona_vectors.training_recipes import FinetuningRecipe as FinetuningRecipe
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
