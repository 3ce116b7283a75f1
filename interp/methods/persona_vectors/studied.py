"""What the figures of steering and monitoring share: their recipe, vectors, sweep and chosen setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.errors import PersonaError
from interp.judges import Judge
from interp.lm import LM
from interp.methods.persona_vectors.activations import conversations
from interp.methods.persona_vectors.extraction import PersonaVectorExtractor
from interp.methods.persona_vectors.judging import named_judge
from interp.methods.persona_vectors.recipe import EvaluationRecipe, SteeringRecipe
from interp.methods.persona_vectors.rollouts import Rollouts
from interp.methods.persona_vectors.scoring import Answers, answers
from interp.methods.persona_vectors.sweeps import Setting, together
from interp.methods.persona_vectors.traits import Trait, shipped_trait
from interp.methods.persona_vectors.vectors import PersonaVector
from interp.sites import Site
from interp.study import Study
from interp.training.content import tensor_hash


@dataclass(frozen=True, eq=False)
class Studied:
    """One trait on the studied model: its vector, judge, and the pairs of responses that survived."""

    study: Study
    recipe: SteeringRecipe
    trait: Trait
    persona: PersonaVector
    judge: Judge
    pairs: tuple[Rollouts, Rollouts]

    @property
    def lm(self) -> LM:
        return self.study.lm

    @property
    def halves(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Evaluation questions that choose, and those that are reported."""
        questions = self.trait.evaluation_questions[: self.recipe.evaluation.n_questions]
        middle = len(questions) // 2
        return questions[:middle], questions[middle:]

    @property
    def sites(self) -> list[Site]:
        """The steered sites of the sweep."""
        if self.recipe.layers:
            return [self.persona.site(layer) for layer in self.recipe.layers]
        last = self.lm.n_blocks - 1
        blocks = sorted({min(round(d * self.lm.n_blocks), last) for d in self.recipe.depths})
        return [self.lm.resid_post[block] for block in blocks]

    @property
    def settings(self) -> list[Setting]:
        """All settings of the sweep: block by block, strength by strength."""
        return [
            Setting(site, self.persona.at(site), strength)
            for site in self.sites
            for strength in self.recipe.strengths
        ]

    def answered(
        self, step: str, settings: Sequence[Setting], questions: Sequence[str]
    ) -> list[Answers]:
        """Answers unsteered and under every setting, kept as a step of the study."""
        whole = [Setting(self.sites[0], self.persona.at(self.sites[0]), 0.0), *settings]
        about = {
            "trait": self.trait.sha256,
            "evaluation": self.recipe.evaluation,
            "questions": list(questions),
            "extraction": self.recipe.extraction,
            "settings": [[s.site.hook_name, s.coefficient, tensor_hash(s.vector)] for s in whole],
        }
        make = partial(_answered, self.lm, self.judge, whole, questions, self.recipe.evaluation)
        return [Answers.from_json(each) for each in self.study.resumed(step, make, **about)]

    def sweep(self) -> tuple[Answers, list[Answers]]:
        """Answers to the questions that choose: unsteered, and under every setting."""
        base, *found = self.answered("persona_sweep", self.settings, self.halves[0])
        return base, found

    def chosen(self) -> Setting:
        """The setting with the greatest trait score whose answers are likely enough.

        Raises PersonaError where there is none.
        """
        base, found = self.sweep()
        scored = [
            (each.score, setting)
            for each, setting in zip(found, self.settings, strict=True)
            if each.score is not None and damage(base, each) <= self.recipe.most_damage
        ]
        if not scored:
            raise PersonaError(
                f"every setting of the sweep ruins the answers for {self.trait.name}; add weaker strengths"
            )
        return max(scored, key=lambda pair: pair[0])[1]

    def differences(self, site: Site) -> Float[Tensor, "pair d_model"]:
        """Response means at a site, positive less negative, of every surviving pair."""
        positive, negative = (
            self.lm.activations(conversations(self.lm, rows), site, at="response", reduce="mean")[
                site
            ].float()
            for rows in self.pairs
        )
        return positive - negative


def damage(base: Answers, steered: Answers) -> float:
    """Nats per token by which steered answers are less likely to the unedited model; infinite without."""
    if base.nll is None or steered.nll is None:
        return float("inf")
    return steered.nll - base.nll


def studied(study: Study, recipe: SteeringRecipe) -> tuple[list[Studied], dict[str, str]]:
    """The traits that have a vector on this model, and by name of the others why they have none."""
    return study.once("persona: studied", partial(_studied, study, recipe), recipe=recipe)


def steerable(study: Study, recipe: SteeringRecipe) -> tuple[list[Studied], dict[str, str]]:
    """The traits that have a vector and a setting, and by name of the others why they have none.

    Raises PersonaError where no trait has both.
    """
    found, failed = studied(study, recipe)
    usable, left_out = [], dict(failed)
    for each in found:
        try:
            each.chosen()
        except PersonaError as error:
            left_out[each.trait.name] = str(error)
        else:
            usable.append(each)
    if not usable:
        raise PersonaError(f"no trait can be steered on {study.model}: {left_out}")
    return usable, left_out


def _studied(study: Study, recipe: SteeringRecipe) -> tuple[list[Studied], dict[str, str]]:
    found, failed = [], {}
    progress = study.watch("traits", len(recipe.traits))
    for name in recipe.traits:
        trait, judge = named_judge(recipe.judge, study.lm, shipped_trait(name))
        extractor = PersonaVectorExtractor(study.lm, judge, recipe=recipe.extraction, study=study)
        try:
            persona = extractor.extract(trait)
        except PersonaError as error:
            failed[name] = str(error)
            continue
        finally:
            progress(1)
        table, rows = extractor.pairs(trait), persona.record["survivors"]
        pairs = (table.positive.chosen(rows), table.negative.chosen(rows))
        found.append(Studied(study, recipe, trait, persona, judge, pairs))
    if not found:
        raise PersonaError(f"no trait has a vector on {study.model}: {failed}")
    return found, failed


def about_traits(found: Sequence[Studied], failed: dict[str, str]) -> dict[str, Any]:
    """Counts, judges and failures of the traits, for a card."""
    return {
        "traits": {
            each.trait.name: {
                "counts": each.persona.record["counts"],
                "held_out_contrast": each.persona.record["held_out_contrast"],
                "sha256": each.trait.sha256,
            }
            for each in found
        },
        "no_vector": failed,
    }


def _answered(
    lm: LM,
    judge: Judge,
    settings: Sequence[Setting],
    questions: Sequence[str],
    recipe: EvaluationRecipe,
) -> list[dict[str, Any]]:
    found = answers(lm, judge, questions, recipe, together(settings))
    return [each.as_json() for each in found]
