"""From a trait to persona vectors: responses, scores, a filter, and differences of mean activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

from interp.judges import Judge
from interp.judges.likelihood import model_json
from interp.lm import LM
from interp.methods.persona_vectors.activations import mean_activations
from interp.methods.persona_vectors.filtering import Counts, Scores, check_survivors, surviving
from interp.methods.persona_vectors.generation import Writer, described_trait
from interp.methods.persona_vectors.judging import (
    Contrast,
    check_contrast,
    default_judge,
    keeping,
    matching_coherence,
)
from interp.methods.persona_vectors.recipe import ExtractionRecipe
from interp.methods.persona_vectors.rollouts import Rollouts, rollouts
from interp.methods.persona_vectors.traits import Trait
from interp.methods.persona_vectors.vectors import PersonaVector
from interp.study import Study

AS_THE_JUDGE = "as the judge"


@dataclass(frozen=True)
class ScoredPairs:
    """Responses of both sides with their scores, row by row.

    coherence: scores of both sides; None where coherence is not judged.
    """

    positive: Rollouts
    negative: Rollouts
    scores: tuple[Scores, Scores]
    coherence: tuple[Scores, Scores] | None = None

    def kept(self, threshold: float, coherence_threshold: float) -> tuple[list[int], Counts]:
        """Rows that survive the filter, and counts (:func:`.filtering.surviving`)."""
        return surviving(
            *self.scores,
            threshold=threshold,
            coherence=self.coherence,
            coherence_threshold=coherence_threshold,
        )


@dataclass(frozen=True, eq=False)
class PersonaVectorExtractor:
    """Extracts persona vectors of one model (2507.21509, §2).

    judge: scores responses for the trait; None for the trait's programmatic score, or the model itself with
    the trait's rubric. coherence: scores them for coherence; by default the judge's own model with the
    rubric of coherence, nothing for a judge without a rubric; None for nothing. generator: what writes a
    trait from a description: ``shipped``, ``local`` (the model itself), ``template``, or a
    :class:`.generation.Writer`; None for the shipped trait of that name, else the model itself. study: with
    a ``kept`` directory, responses and scores are kept there by content, so that a second extraction, or one
    after a kill, makes only what is missing.

    Raises PersonaError where the judge is at chance on held-out questions and where no pair of responses
    survives the filter.
    """

    lm: LM
    judge: Judge | None = None
    coherence: Judge | str | None = AS_THE_JUDGE
    generator: Writer | str | None = None
    recipe: ExtractionRecipe = field(default_factory=ExtractionRecipe)
    study: Study | None = None

    @cached_property
    def _study(self) -> Study:
        return self.study or Study.of(self.lm)

    def judges(self, trait: Trait) -> tuple[Judge, Judge | None]:
        """The judge of a trait and that of coherence, which keep their scores if the study does."""
        judge = self.judge or default_judge(self.lm, trait)
        coherence = matching_coherence(judge) if isinstance(self.coherence, str) else self.coherence
        kept = None if coherence is None else keeping(coherence, self._study)
        return keeping(judge, self._study), kept

    def validate(self, trait: Trait) -> Contrast | None:
        """How well the judge tells the two sides on evaluation questions; None without questions."""
        questions = trait.evaluation_questions[: self.recipe.validation_questions]
        if not questions:
            return None
        sides = [self._written(trait, questions, side, samples=1) for side in (True, False)]
        prompts = [prompt for side in sides for prompt in side.prompts]
        responses = [text for side in sides for text in side.responses]
        labels = [side is sides[0] for side in sides for _ in side.prompts]
        return check_contrast(self.judges(trait)[0], prompts, responses, labels)

    def pairs(self, trait: Trait) -> ScoredPairs:
        """Responses to the extraction questions under every instruction of both sides, with scores."""
        questions = trait.questions[: self.recipe.n_questions]
        positive, negative = (self._written(trait, questions, side) for side in (True, False))
        judge, coherence = self.judges(trait)
        judged = None if coherence is None else _scores(coherence, positive, negative)
        return ScoredPairs(positive, negative, _scores(judge, positive, negative), judged)

    def extract(self, trait: Trait) -> PersonaVector:
        """The persona vector of a trait, with counts, judge and hashes in its record."""
        judge, coherence = self.judges(trait)
        contrast = self.validate(trait)
        table = self.pairs(trait)
        recipe = self.recipe
        threshold = judge.threshold if recipe.threshold is None else recipe.threshold
        rows, counts = table.kept(threshold, recipe.coherence_threshold)
        check_survivors(trait.name, judge.name, counts, threshold)
        positive, negative = (
            mean_activations(self.lm, side.chosen(rows))
            for side in (table.positive, table.negative)
        )
        vectors = {name: positive[name] - negative[name] for name in positive}
        record = {
            "trait": trait.as_json(),
            "trait_sha256": trait.sha256,
            "recipe": asdict(recipe) | {"threshold": threshold},
            "counts": counts.as_json(),
            "survivors": rows,
            "judge": judge.as_json(),
            "coherence": None if coherence is None else coherence.as_json(),
            "held_out_contrast": None if contrast is None else contrast.as_json(),
            "commit": self._study.commit,
            **model_json(self.lm),
        }
        return PersonaVector(trait.name, vectors, record=record)

    def describe(self, name: str, description: str = "") -> Trait:
        """The trait that a name and a description mean, written by the generator.

        Raises PersonaError, with what was wrong, where the generator writes no whole trait.
        """
        writer = self.generator
        about = {
            "name": name,
            "description": description,
            "generator": writer if isinstance(writer, str) else getattr(writer, "name", ""),
        }
        make = partial(_described, name, description, writer, self.lm)
        content = self._study.resumed("persona_trait", make, **about)
        return Trait.from_json(content, name, "the kept trait")

    def extract_from_description(self, name: str, description: str = "") -> PersonaVector:
        """The persona vector of a trait that a name and a sentence describe."""
        return self.extract(self.describe(name, description))

    def _written(
        self, trait: Trait, questions: Sequence[str], positive: bool, **options: Any
    ) -> Rollouts:
        return rollouts(self._study, trait, questions, self.recipe, positive=positive, **options)


def _described(name: str, description: str, writer: Writer | str | None, lm: LM) -> dict[str, Any]:
    return described_trait(name, description, writer, lm).as_json()


def _scores(judge: Judge, positive: Rollouts, negative: Rollouts) -> tuple[Scores, Scores]:
    found = judge.score(
        positive.prompts + negative.prompts, positive.responses + negative.responses
    )
    return found[: len(positive)], found[len(positive) :]
