"""Figures of steering and monitoring on a second model, which follows instructions and writes fluently."""

from __future__ import annotations

from dataclasses import replace

from interp.methods.persona_vectors import monitoring_figures, steering_figures
from interp.methods.persona_vectors.paper import CODER
from interp.methods.persona_vectors.recipe import SteeringRecipe
from interp.records import FigureRecord
from interp.study import Study


def layer_sweep(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Trait score by steered block."""
    return _named(steering_figures.layer_sweep(study, recipe), study)


def positions(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Trait score of the three reductions at equal steering norm."""
    return _named(steering_figures.positions(study, recipe), study)


def cosines(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Cosines between the vectors of traits."""
    return _named(steering_figures.persona_cosines(study, recipe), study)


def monitoring_system(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Projection and score of graded system prompts."""
    return _named(monitoring_figures.monitoring_system(study, recipe), study)


def _named(record: FigureRecord, study: Study) -> FigureRecord:
    """The record under the name of the second model's figure."""
    title = f"{record.title}, {study.model}"
    return replace(record, key=f"{record.key}{CODER}", title=title)
