"""Finetunes on small stylistic data, and the trait scores of a finetune (2507.21509, §4.1 and D)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interp.backends.opening import wrap
from interp.backends.protocol import AnyEdit
from interp.errors import PersonaError
from interp.judges import TraitJudge
from interp.lm import LM
from interp.methods.persona_vectors.data import (
    HALF,
    NORMAL,
    WHOLE,
    StyledData,
    chat_of,
    evaluation_questions,
    in_style,
    own_answers,
    training_questions,
)
from interp.methods.persona_vectors.scoring import Answers, answers
from interp.methods.persona_vectors.training_recipes import FinetuningRecipe
from interp.study import Study
from interp.training import TrainedRun, conversation_rows, merged, train
from interp.training.running import During
from interp.training.trainer import Loss


@dataclass(frozen=True, slots=True)
class Finetune:
    """A trained adapter. trait: style of its data, empty at level Normal. path: directory of the adapter."""

    name: str
    trait: str
    level: str
    path: Path
    run: TrainedRun


# --- data ----------------------------------------------------------------------------------------


def all_answers(study: Study, recipe: FinetuningRecipe) -> StyledData:
    """The base model's answers to all training questions."""
    return own_answers(
        study, training_questions()[: recipe.questions], recipe.answer_tokens,
        recipe.answer_temperature, recipe.answer_seed,
    )  # fmt: skip


def training_data(study: Study, recipe: FinetuningRecipe, style: str, level: str) -> StyledData:
    """The rows that a finetune is trained on; base answers at level Normal."""
    data = all_answers(study, recipe)
    data = data.chosen(range(min(recipe.rows, len(data))))
    return data if level == NORMAL else in_style(data, style, level)


def held_out_data(study: Study, recipe: FinetuningRecipe, style: str) -> StyledData:
    """Rows of level II that no finetune is trained on: answers to the other training questions.

    Raises PersonaError where the finetunes take all rows.
    """
    data = all_answers(study, recipe)
    if len(data) <= recipe.rows:
        raise PersonaError(
            f"{recipe.rows} rows to train on leave none of {len(data)} for a vector; train on fewer rows"
        )
    return in_style(data.chosen(range(recipe.rows, len(data))), style, WHOLE)


# --- finetunes -----------------------------------------------------------------------------------


def finetune(
    study: Study,
    recipe: FinetuningRecipe,
    data: StyledData,
    *,
    during: During | None = None,
    loss: Loss | None = None,
) -> TrainedRun:
    """An adapter trained on the responses of ``data``; read if this very run was trained before.

    during, loss: see :func:`interp.training.train`. Runs lie in the study's ``kept`` directory.
    """
    lm = study.lm
    rows = conversation_rows(lm.tokenizer, data.prompts, data.responses, lm.chat)
    return train(
        lm, rows, recipe.training, runs=None if study.kept is None else study.kept / "runs",
        name=f"{data.style or 'own'}-{data.level}", during=during, loss=loss, lora=recipe.lora,
        watch=study.watch,
    )  # fmt: skip


def finetunes(study: Study, recipe: FinetuningRecipe) -> Iterator[Finetune]:
    """One finetune at level Normal, then one of every style at levels I and II: ``2 · styles + 1``."""
    for style, level in [("", NORMAL), *((s, v) for s in recipe.styles for v in (HALF, WHOLE))]:
        run = finetune(study, recipe, training_data(study, recipe, style, level))
        yield Finetune(f"{style} {level}".strip(), style, level, run.path, run)


def tuned(lm: LM, adapter: Path) -> LM:
    """The model with a trained adapter in its weights; the model itself is not changed."""
    backend = wrap(merged(lm.hf, adapter), lm.tokenizer, source=lm.backend.source)
    return replace(lm, backend=backend)


# --- scores --------------------------------------------------------------------------------------


def trait_scores(
    study: Study,
    recipe: FinetuningRecipe,
    adapter: Path | None,
    edit: AnyEdit = None,
    **about: Any,
) -> list[dict[str, Answers]]:
    """By trait, scored answers to the evaluation questions of the recipe's traits, for every strength.

    Every answer is scored for every trait of the recipe. adapter: of a finetune; None for the base model,
    which the NLL is always read with. about: JSON values that the edit depends on.
    """

    def measured() -> list[dict[str, Any]]:
        model = study.lm if adapter is None else tuned(study.lm, adapter)
        first, *others = (TraitJudge(name) for name in recipe.styles)
        questions = evaluation_questions(recipe.styles)
        found = answers(model, first, questions, recipe.evaluation, edit, unedited=study.lm)
        return [
            {first.name: each.as_json()} | {j.name: rescored(each, j).as_json() for j in others}
            for each in found
        ]

    run = None if adapter is None else adapter.name
    given = {"evaluation": recipe.evaluation, "styles": recipe.styles, "run": run, **about}
    kept = study.resumed("finetune_scores", measured, chat=chat_of(study.lm), **given)
    return [{name: Answers.from_json(each) for name, each in every.items()} for every in kept]


def rescored(found: Answers, judge: TraitJudge) -> Answers:
    """The same answers with the scores of another judge."""
    return replace(found, scores=tuple(judge.score(found.questions, found.responses)))
