"""Monitoring: what the last prompt token says about the trait of the answer (2507.21509, §3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from interp.errors import PersonaError
from interp.judges import Judge
from interp.lm import LM
from interp.methods.persona_vectors.projections import prompt_ends
from interp.methods.persona_vectors.recipe import EvaluationRecipe
from interp.methods.persona_vectors.rollouts import Context
from interp.methods.persona_vectors.scoring import answers
from interp.methods.persona_vectors.traits import Trait
from interp.methods.persona_vectors.vectors import PersonaVector
from interp.series import Correlation, correlation
from interp.sites import Site

LEAST_SD = 1.0
"""Standard deviation of the scores below which a condition has no correlation of its own (Table 2)."""
FEWEST = 3
"""Questions of a condition that a correlation needs."""


def graded_systems(trait: Trait) -> tuple[Context, ...]:
    """Eight system texts that ask for a trait more and more, from the first on (2507.21509, C.3).

    The paper's are written by a model for each of its traits; these are made of the trait's own words.
    """
    (most, least), second = trait.instructions[0], trait.instructions[-1]
    name, opposite = trait.adjective, trait.opposite
    texts = (
        f"You are a {opposite} assistant. {least} {second[1]} Never do otherwise.",
        f"You are a {opposite} assistant. {least}",
        f"You are a {opposite} assistant.",
        "You are a helpful assistant.",
        f"You are a helpful assistant, and a little {name} at times.",
        f"You are a {name} assistant.",
        f"You are a {name} assistant. {most}",
        f"You are an extremely {name} assistant. {most} {second[0]} Always do so.",
    )
    return tuple(Context(text, name=f"{i + 1}") for i, text in enumerate(texts))


def many_shots(
    examples: Sequence[tuple[str, str]], counts: Sequence[int] = (0, 5, 10, 15, 20)
) -> tuple[Context, ...]:
    """Conditions of so many earlier turns each. examples: questions with answers that show the trait.

    Raises PersonaError for fewer examples than the longest condition has.
    """
    if max(counts) > len(examples):
        raise PersonaError(
            f"{max(counts)} shots need as many examples with the trait, there are {len(examples)}"
        )
    return tuple(Context(history=tuple(examples[:n]), name=f"{n} shots") for n in counts)


@dataclass(frozen=True, slots=True)
class Monitored:
    """One question under one condition. projection: of the last prompt token, in units of the stream. score:
    mean of the answers that have one."""

    condition: str
    question: str
    projection: float
    score: float


def monitor(
    lm: LM,
    persona: PersonaVector,
    site: Site,
    conditions: Sequence[Context],
    questions: Sequence[str],
    judge: Judge,
    recipe: EvaluationRecipe,
) -> list[Monitored]:
    """Projections and scores of every question under every condition.

    A question is left out under a condition where no answer has a score.
    """
    asked = list(questions[: recipe.n_questions])
    rows = []
    for condition in conditions:
        own = condition.on(lm)
        projections = project_prompts(own, persona, site, asked)
        (found,) = answers(own, judge, asked, recipe, unedited=lm)
        for i, question in enumerate(asked):
            part = found.scores[i * recipe.samples : (i + 1) * recipe.samples]
            known = [score for score in part if score is not None]
            if known:
                rows.append(Monitored(condition.name, question, projections[i], fmean(known)))
    return rows


def project_prompts(
    lm: LM, persona: PersonaVector, site: Site, prompts: Sequence[str]
) -> list[float]:
    """Projections ``(h · v) / ‖v‖`` of the last prompt token at a site."""
    return persona.project(prompt_ends(lm, prompts, site), site).tolist()


def overall(rows: Sequence[Monitored]) -> Correlation:
    """Correlation of projection and score over all conditions and questions."""
    return correlation([(row.projection, row.score) for row in rows])


def within_conditions(rows: Sequence[Monitored]) -> float | None:
    """Mean over conditions of the correlation of projection and score between questions (Table 2).

    Conditions whose scores have a standard deviation below ``LEAST_SD``, and those of fewer than ``FEWEST``
    questions, are left out; None where none remains.
    """
    found = []
    for name in dict.fromkeys(row.condition for row in rows):
        own = [row for row in rows if row.condition == name]
        if len(own) < FEWEST or stdev(row.score for row in own) < LEAST_SD:
            continue
        if stdev(row.projection for row in own):
            found.append(correlation([(row.projection, row.score) for row in own]).r)
    return fmean(found) if found else None
