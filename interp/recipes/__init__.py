"""Recipes: the settings of methods as nested frozen dataclasses. Nothing here needs torch."""

from __future__ import annotations

from interp.recipes.base import changed, from_settings, leaves, load_settings, save_recipe, setting
from interp.recipes.edits import AUTO, AblationEdit, DirectionRecipe, Learning, LeastDisturbanceEdit
from interp.recipes.training import LoRA, TrainingRecipe

__all__ = [
    "AUTO",
    "AblationEdit",
    "DirectionRecipe",
    "Learning",
    "LeastDisturbanceEdit",
    "LoRA",
    "TrainingRecipe",
    "changed",
    "from_settings",
    "leaves",
    "load_settings",
    "save_recipe",
    "setting",
]
