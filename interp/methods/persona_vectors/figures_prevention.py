"""Figures of steering while training, beside steering after it and other ways to hold a trait down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from interp.claims import Claim
from interp.data.text import neutral_passages
from interp.errors import PersonaError
from interp.interventions import Interventions
from interp.methods.persona_vectors.data import WHOLE, chat_of
from interp.methods.persona_vectors.edits import steering
from interp.methods.persona_vectors.finetune_measures import prompt_hashes, site_of, vectors
from interp.methods.persona_vectors.finetuning import finetune, training_data, trait_scores, tuned
from interp.methods.persona_vectors.paper import KEY
from interp.methods.persona_vectors.prevention import (
    ProjectionPenalty,
    caft,
    preventative,
    preventative_increments,
)
from interp.methods.persona_vectors.projections import response_means
from interp.methods.persona_vectors.scoring import Answers
from interp.methods.persona_vectors.sweeps import passage_nll, random_vectors
from interp.methods.persona_vectors.training_recipes import PreventionRecipe
from interp.methods.persona_vectors.vectors import RESPONSE_AVG, PersonaVector
from interp.records import FigureRecord
from interp.series import Axis, Group, Line, Lines, Mark, Panel, Places, Scatter, SmallMultiples
from interp.statistics.persona_finetunes import (
    AFTER,
    BASE,
    BEFORE,
    CAFT,
    EVERYWHERE,
    NLL,
    PENALTY,
    PLAIN,
    RANDOM,
    SCORE,
    STEERED,
    panel,
)
from interp.study import Study
from interp.training import TrainedRun

PREVENTION_CLAIMS = (
    Claim("steering while training at α = 1 removes at least half of the score that the finetune adds",
          "at least", "", 0.5, statistic="prevention/before"),
    Claim("steering after training at α = 1 removes at least half", "at least", "", 0.5,
          statistic="prevention/after"),
    Claim("increments at all blocks while training remove at least 0.8 (in the paper the score is near the "
          "base model's)", "at least", "", 0.8, statistic="prevention/everywhere"),
    Claim("random vectors of equal norm while training remove at most a quarter on average", "at most", "",
          0.25, statistic="prevention/random"),
    Claim("at the greatest α neutral text costs more nats after training than while training", "at least",
          "", 0.0, statistic="prevention/cost_saved"),
)  # fmt: skip
CONTROL_CLAIMS = (
    Claim("steering while training leaves at most half of the score that the finetune adds", "at most", "",
          0.5, statistic="training_controls/steered_score"),
    Claim("CAFT leaves at most half, as for two of the paper's three traits", "at most", "", 0.5,
          statistic="training_controls/caft_score"),
    Claim("the penalty leaves at most half of the added projection", "at most", "", 0.5,
          statistic="training_controls/penalty_projection"),
    Claim("under the penalty at least half of the added score stays", "at least", "", 0.5,
          statistic="training_controls/penalty_kept"),
)  # fmt: skip


# --- prevention ----------------------------------------------------------------------------------


def prevention(study: Study, recipe: PreventionRecipe) -> FigureRecord:
    """Trait score and NLL of neutral text against α, for steering while and after training."""
    if 1.0 not in recipe.coefficients:
        raise PersonaError("the claims compare at α = 1; keep 1.0 among the coefficients")
    found = {trait: _sweep(study, recipe, trait) for trait in recipe.traits}
    panels = [
        Panel(panel(trait, measure), _lines(sweep, recipe, measure))
        for measure in (SCORE, NLL)
        for trait, sweep in found.items()
    ]
    return FigureRecord(
        key=f"{KEY}/prevention",
        title="Steering after and while training",
        series=SmallMultiples(
            tuple(panels),
            columns=len(found),
            beside={
                "traits": {
                    trait: {BASE: sweep.base.score, PLAIN: sweep.plain.score}
                    for trait, sweep in found.items()
                }
            },
        ),
        claims=PREVENTION_CLAIMS,
        provenance=study.provenance(prompt_hashes(study, recipe.finetunes)),
        n={
            "evaluation answers": len(next(iter(found.values())).base),
            "random vectors": recipe.random_draws,
            "passages of neutral text": recipe.passages,
        },
        intervals=f"score: t interval over answers, 95 %; {RANDOM}: least and greatest draw",
        seeds=(recipe.finetunes.training.seed,),
        caption=(
            "A finetune on answers of level II, steered by −α v after it, or by +α v in every step of it "
            f"and not afterwards, at {site_of(study, recipe.finetunes)}. All blocks: increments at α = 1. "
            "NLL of neutral text stands in for MMLU, which this model answers at chance."
        ),
    )


@dataclass(frozen=True, slots=True)
class _Point:
    """One model at one α: scored answers, and nats per token of neutral text."""

    answers: Answers
    nll: float


@dataclass(frozen=True, slots=True)
class _Sweep:
    """All models of one trait. after, before: by α. everywhere: at α = 1. random: one per draw, at α = 1."""

    base: Answers
    plain: Answers
    after: dict[float, _Point]
    before: dict[float, _Point]
    everywhere: _Point
    random: list[_Point]


def _sweep(study: Study, recipe: PreventionRecipe, trait: str) -> _Sweep:
    inner, lm = recipe.finetunes, study.lm
    persona, site = vectors(study, inner)[trait], site_of(study, inner)
    data = training_data(study, inner, trait, WHOLE)
    made = partial(finetune, study, inner, data)
    plain = made()
    amounts = (0.0, *recipe.coefficients)
    after = _points(
        study, recipe, trait, plain, steering(persona, site, [-a for a in amounts]), amounts
    )
    before = {0.0: after[0.0]}
    for alpha in recipe.coefficients:
        run = made(during=preventative(persona, site, alpha))
        before[alpha] = _points(study, recipe, trait, run)[0.0]
    everywhere = made(during=preventative_increments(lm, persona, 1.0))
    draws = (_random(persona, seed) for seed in range(recipe.random_draws))
    random = [made(during=preventative(draw, site, 1.0)) for draw in draws]
    return _Sweep(
        trait_scores(study, inner, None)[0][trait],
        after[0.0].answers,
        after,
        before,
        _points(study, recipe, trait, everywhere)[0.0],
        [_points(study, recipe, trait, run)[0.0] for run in random],
    )


def _random(persona: PersonaVector, seed: int) -> PersonaVector:
    """Random vectors, each with the norm of the row that it stands for."""
    drawn = torch.cat([random_vectors(row, 1, seed) for row in persona.rows])
    return PersonaVector(f"random {seed}", {RESPONSE_AVG: drawn})


def _points(
    study: Study,
    recipe: PreventionRecipe,
    trait: str,
    run: TrainedRun,
    edit: Interventions | None = None,
    amounts: Sequence[float] = (0.0,),
) -> dict[float, _Point]:
    """By α, scores and NLL of a finetune under an edit with as many strengths."""
    inner = recipe.finetunes
    about = {} if edit is None else {"trait": trait, "amounts": amounts, "depth": inner.depth}
    scores = trait_scores(study, inner, run.path, edit, **about)
    texts = neutral_passages()[: recipe.passages]

    def measured() -> list[float]:
        lm = tuned(study.lm, run.path)
        edits = [None] if edit is None else [
            steering(vectors(study, inner)[trait], site_of(study, inner), -a) for a in amounts
        ]  # fmt: skip
        return [passage_nll(lm, texts, each) for each in edits]

    nll = study.resumed(
        "finetune_nll", measured, run=run.path.name, texts=texts, finetunes=inner, **about
    )
    return {
        a: _Point(each[trait], value) for a, each, value in zip(amounts, scores, nll, strict=True)
    }


def _lines(sweep: _Sweep, recipe: PreventionRecipe, measure: str) -> Lines:
    amounts = (0.0, *recipe.coefficients)
    at_one = (1.0,)

    def value(point: _Point) -> float:
        return (point.answers.score or 0.0) if measure == SCORE else point.nll

    def line(label: str, points: dict[float, _Point], x: tuple[float, ...] | None = None) -> Line:
        places = amounts if x is None else x
        low = high = None
        if measure == SCORE:
            ends = [points[a].answers.interval or (value(points[a]),) * 2 for a in places]
            low, high = (tuple(pair[k] for pair in ends) for k in (0, 1))
        return Line(label, tuple(value(points[a]) for a in places), low, high, x=x)

    drawn = [value(point) for point in sweep.random]
    lines = [
        line(AFTER, sweep.after),
        line(BEFORE, sweep.before),
        line(EVERYWHERE, {1.0: sweep.everywhere}, at_one),
        Line(RANDOM, (fmean(drawn),), (min(drawn),), (max(drawn),), x=at_one),
    ]
    marks = (Mark("y", sweep.base.score or 0.0, BASE),) if measure == SCORE else ()
    y = Axis("trait score", "of 100") if measure == SCORE else Axis("NLL of neutral text", "nats")
    return Lines(Places("α", values=amounts), y, tuple(lines), marks)


# --- training controls ---------------------------------------------------------------------------


def training_controls(study: Study, recipe: PreventionRecipe) -> FigureRecord:
    """Projection of a finetune's own answers against its score, under several ways to hold a trait down."""
    panels = [Panel(trait, _controls(study, recipe, trait)) for trait in recipe.traits]
    return FigureRecord(
        key=f"{KEY}/training_controls",
        title="CAFT, steering and a penalty in the loss",
        series=SmallMultiples(tuple(panels)),
        claims=CONTROL_CLAIMS,
        provenance=study.provenance(prompt_hashes(study, recipe.finetunes)),
        n={
            "evaluation answers": len(
                trait_scores(study, recipe.finetunes, None)[0][recipe.traits[0]]
            )
        },
        intervals="score: t interval over answers, 95 %",
        seeds=(recipe.finetunes.training.seed,),
        caption=(
            "Finetunes on answers of level II. Projection: mean activation of the finetune over its answers "
            "to evaluation questions. CAFT removes the vector's direction after every block while training. "
            "The penalty is on the squared change of the projection at one block, in units of the vector's "
            f"norm, with weight {recipe.penalty:g} (the paper gives none)."
        ),
    )


def _controls(study: Study, recipe: PreventionRecipe, trait: str) -> Scatter:
    inner = recipe.finetunes
    persona, site = vectors(study, inner)[trait], site_of(study, inner)
    made = partial(finetune, study, inner, training_data(study, inner, trait, WHOLE))
    penalty = ProjectionPenalty(persona.at(site), site, recipe.penalty)
    runs: dict[str, Path | None] = {
        BASE: None,
        PLAIN: made().path,
        STEERED: made(during=preventative(persona, site, 1.0)).path,
        CAFT: made(during=caft(study.lm, persona)).path,
        PENALTY: made(during=penalty.during, loss=penalty).path,
    }
    return Scatter(
        Axis(f"projection at {site}"),
        Axis("trait score", "of 100"),
        tuple(_control(study, recipe, trait, label, path) for label, path in runs.items()),
    )


def _control(
    study: Study, recipe: PreventionRecipe, trait: str, label: str, path: Path | None
) -> Group:
    inner, site = recipe.finetunes, site_of(study, recipe.finetunes)
    found = trait_scores(study, inner, path)[0][trait]
    rows = [i for i, text in enumerate(found.responses) if text]

    def measured() -> float:
        lm = study.lm if path is None else tuned(study.lm, path)
        prompts, texts = (
            [column[i] for i in rows] for column in (found.questions, found.responses)
        )
        means = response_means(lm, prompts, texts, site)
        return float(vectors(study, inner)[trait].project(means, site).mean())

    about = {"run": path and path.name, "trait": trait, "finetunes": inner}
    x = study.resumed("response_projection", measured, chat=chat_of(study.lm), **about)
    low, high = found.interval or (found.score, found.score)
    return Group(label, (x,), (found.score,), y_low=(low,), y_high=(high,))
