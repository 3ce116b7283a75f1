"""Settings of an extraction and of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from interp.recipes.base import setting


@dataclass(frozen=True, slots=True)
class ExtractionRecipe:
    """How a persona vector is extracted. The paper has 10 samples, 1000 tokens and temperature 1."""

    samples: int = setting(1, "responses per question and instruction", least=1)
    tokens: int = setting(48, "most tokens of a response", least=1)
    temperature: float = setting(
        0.7, "temperature of the responses; 0 is greedy (2507.21509: 1)", least=0
    )
    seed: int = setting(0, "seed of the responses")
    n_questions: int | None = setting(
        None, "extraction questions used, from the first on", least=1, shown="all"
    )
    demonstrations: int = setting(
        0, "example turns of the trait before every question, for models too small to follow instructions "
        "alone (2507.21509: none)", least=0,
    )  # fmt: skip
    validation_questions: int = setting(
        5, "evaluation questions on which the judge is checked first; 0 for none", least=0
    )
    threshold: float | None = setting(
        None, "score that positive responses must reach and negative ones must not",
        advanced=True, shown="the judge's own: 50 of 100, 0 nats of a likelihood ratio",
    )  # fmt: skip
    coherence_threshold: float = setting(
        50.0, "coherence that both responses of a pair must reach", advanced=True, least=0, most=100
    )


@dataclass(frozen=True, slots=True)
class EvaluationRecipe:
    """How a trait is measured: on evaluation questions, which no vector is made from."""

    n_questions: int | None = setting(
        None, "evaluation questions used, from the first on", least=1, shown="all"
    )
    samples: int = setting(1, "responses per question", least=1)
    tokens: int = setting(40, "most tokens of a response", least=1)
    temperature: float = setting(
        0.7, "temperature of the responses; 0 is greedy (2507.21509: 1)", least=0
    )
    seed: int = setting(1, "seed of the responses")
