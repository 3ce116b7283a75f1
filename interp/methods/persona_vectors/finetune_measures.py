"""Every finetune along every vector: scores, shifts and projections of its data, kept step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.methods.persona_vectors.data import (
    HALF,
    NORMAL,
    WHOLE,
    chat_of,
    evaluation_questions,
    from_data,
    other_questions,
)
from interp.methods.persona_vectors.finetuning import (
    Finetune,
    finetunes,
    held_out_data,
    training_data,
    trait_scores,
    tuned,
)
from interp.methods.persona_vectors.projections import moved, prompt_ends, response_means
from interp.methods.persona_vectors.scoring import Answers
from interp.methods.persona_vectors.training_recipes import FinetuningRecipe
from interp.methods.persona_vectors.vectors import RESPONSE_AVG, PersonaVector
from interp.sites import Site
from interp.study import Study

BASE = "base model"
OWN, OTHER = "own questions", "other questions"


def site_of(study: Study, recipe: FinetuningRecipe) -> Site:
    """The output of the block at the recipe's relative depth."""
    blocks = study.lm.resid_post
    return blocks[min(int(recipe.depth * len(blocks)), len(blocks) - 1)]


def vectors(study: Study, recipe: FinetuningRecipe) -> dict[str, PersonaVector]:
    """By trait, the vector of styled answers that no finetune is trained on."""

    def made(style: str) -> list[list[float]]:
        return from_data(study.lm, held_out_data(study, recipe, style)).rows.tolist()

    def every() -> dict[str, list[list[float]]]:
        return {style: made(style) for style in recipe.styles}

    found = study.resumed("style_vectors", every, recipe=recipe, chat=chat_of(study.lm))
    return {
        style: PersonaVector(style, {RESPONSE_AVG: torch.tensor(rows)})
        for style, rows in found.items()
    }


# --- activations ---------------------------------------------------------------------------------


def prompt_means(study: Study, recipe: FinetuningRecipe, adapter: Path | None) -> dict[str, Tensor]:
    """Mean activation ``[d_model]`` at the last prompt token, of the traits' own and of other questions."""
    site, n = site_of(study, recipe), recipe.evaluation.n_questions
    sets = {OWN: evaluation_questions(recipe.styles)[:n], OTHER: other_questions(recipe.styles)[:n]}

    def measured() -> dict[str, list[float]]:
        lm = study.lm if adapter is None else tuned(study.lm, adapter)
        return {name: prompt_ends(lm, qs, site).mean(0).tolist() for name, qs in sets.items()}

    about = {"run": adapter and adapter.name, "site": str(site), "questions": sets}
    found = study.resumed("prompt_means", measured, chat=chat_of(study.lm), **about)
    return {name: torch.tensor(values) for name, values in found.items()}


def data_activations(study: Study, recipe: FinetuningRecipe, style: str, level: str) -> Tensor:
    """Mean activation of the base model over every answer to train on, ``[row, d_model]``."""
    data, site = training_data(study, recipe, style, level), site_of(study, recipe)

    def measured() -> list[list[float]]:
        return response_means(study.lm, data.prompts, data.responses, site).tolist()

    about = {"style": style, "level": level, "site": str(site)}
    return torch.tensor(
        study.resumed("data_activations", measured, recipe=recipe, chat=chat_of(study.lm), **about)
    )


# --- one row per finetune ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """One model along the vectors, by trait.

    name, style, level: of the finetune; the base model has neither style nor level. scores: answers with the
    trait's score. shift, other_shift: finetuning shift at the traits' own and at other evaluation questions.
    difference: ΔP of its training data.
    """

    name: str
    style: str
    level: str
    scores: dict[str, Answers]
    shift: dict[str, float]
    other_shift: dict[str, float]
    difference: dict[str, float]

    def column(self, name: str, trait: str) -> float | None:
        """A measure of one trait: ``score``, or a field of this class."""
        return self.scores[trait].score if name == "score" else getattr(self, name)[trait]


def measured_finetunes(study: Study, recipe: FinetuningRecipe) -> list[Measured]:
    """The base model, then every finetune. A base model has no shift, and no data."""
    made = partial(_measured, study, recipe)
    base = made(None)
    return [base, *(made(each) for each in finetunes(study, recipe))]


def _measured(study: Study, recipe: FinetuningRecipe, each: Finetune | None) -> Measured:
    path = None if each is None else each.path
    site, personas = site_of(study, recipe), vectors(study, recipe)
    before, after = prompt_means(study, recipe, None), prompt_means(study, recipe, path)
    own = data_activations(study, recipe, "", NORMAL)
    data = own if each is None else data_activations(study, recipe, each.trait, each.level)

    def along(one: Tensor, other: Tensor) -> dict[str, float]:
        return {
            name: moved(one.view(-1, one.shape[-1]), other.view(-1, other.shape[-1]), v.at(site))
            for name, v in personas.items()
        }

    return Measured(
        BASE if each is None else each.name,
        "" if each is None else each.trait,
        "" if each is None else each.level,
        trait_scores(study, recipe, path)[0],
        along(before[OWN], after[OWN]),
        along(before[OTHER], after[OTHER]),
        along(own, data),
    )


def sample_projections(
    study: Study, recipe: FinetuningRecipe, trait: str
) -> dict[str, list[float]]:
    """Projection of every answer to train on at a trait's vector: of levels Normal, I and II."""
    persona, site = vectors(study, recipe)[trait], site_of(study, recipe)
    levels: Sequence[tuple[str, str]] = (("", NORMAL), (trait, HALF), (trait, WHOLE))
    return {
        level: persona.project(data_activations(study, recipe, style, level), site).tolist()
        for style, level in levels
    }


def prompt_hashes(study: Study, recipe: FinetuningRecipe) -> dict[str, Any]:
    """The texts that a figure rests on, for its provenance."""
    data = training_data(study, recipe, "", NORMAL)
    return {
        "training questions": data.prompts,
        "the base model's answers": data.own,
        "evaluation questions": evaluation_questions(recipe.styles)[
            : recipe.evaluation.n_questions
        ],
    }
