"""Settings of an extraction, an evaluation, an edit, an audit, and of the figures of steering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from interp.errors import InterpError
from interp.recipes.base import setting

PROMPT, RESPONSE = "prompt", "response"
BIAS, INCREMENTS, REMOVAL = FORMS = ("bias", "increments", "removal")


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


@dataclass(frozen=True, slots=True)
class PersonaEdit:
    """How a persona vector becomes a weight edit; layer ℓ, as in the paper, is the output of block ℓ − 1.

    Raises InterpError for a form that lacks its layer, and for a setting that the form ignores.
    """

    method: ClassVar[str] = "persona"

    form: str = setting(
        BIAS, "bias adds α v to the stream at one layer; increments adds α (v_ℓ − v_{ℓ−1}) at several; "
        "removal projects v out of every matrix that writes", choices=FORMS,
    )  # fmt: skip
    layer: int | None = setting(
        None, "layer of the vector, from 1 on; for bias and removal", least=1
    )
    coefficient: float = setting(1.0, "α of bias and increments; negative suppresses the trait")
    first_layer: int | None = setting(None, "first layer of increments", least=1, shown="1")
    last_layer: int | None = setting(None, "last layer of increments", least=1, shown="the last")
    reduction: str | None = setting(
        None, "response_avg, prompt_avg or prompt_last", advanced=True,
        shown="the one that the vectors name",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InterpError(f"no form {self.form!r}; forms are {', '.join(FORMS)}")
        if self.form != INCREMENTS and self.layer is None:
            raise InterpError(f"{self.form} needs layer: the one whose vector is taken")
        ignored = {BIAS: ("first_layer", "last_layer"), INCREMENTS: ("layer",)}
        ignored[REMOVAL] = (*ignored[BIAS], "coefficient")
        defaults = {name: each.default for name, each in self.__dataclass_fields__.items()}
        for name in ignored[self.form]:
            if getattr(self, name) != defaults[name]:
                raise InterpError(f"{name} does nothing in the form {self.form}; leave it out")


@dataclass(frozen=True, slots=True)
class SteeringRecipe:
    """Traits, blocks, strengths and controls of the figures.

    depths: steered blocks as shares of the stack. layers: in their place, layers of the paper, from 1 on.
    strengths: coefficients of the unnormalised vector. judge: as ``interp persona extract --judge``.
    most_damage: nats per token by which answers may become less likely under the chosen setting.
    controls, shuffles: random directions of either kind, and vectors of exchanged labels. The first half of
    the evaluation questions chooses block and strength, the second half is reported.
    """

    traits: tuple[str, ...] = ("exclamatory", "uppercase", "hedging", "apologetic", "listing")
    depths: tuple[float, ...] = (0.2, 0.4, 0.6, 0.7, 0.8, 0.95)
    layers: tuple[int, ...] = ()
    strengths: tuple[float, ...] = (0.3, 1.0, 2.0)
    most_damage: float = 1.0
    judge: str = "auto"
    controls: int = 10
    shuffles: int = 5
    samples_monitored: int = 2
    extraction: ExtractionRecipe = field(
        default_factory=lambda: ExtractionRecipe(demonstrations=3, tokens=32, n_questions=10)
    )
    evaluation: EvaluationRecipe = field(
        default_factory=lambda: EvaluationRecipe(n_questions=16, tokens=32)
    )


@dataclass(frozen=True, slots=True)
class AuditRecipe:
    """What an audit reads, where it projects, and on how many random directions beside the vectors."""

    layer: int | None = setting(
        None, "layer at which the shift is projected, from 1 on", least=1, shown="the middle"
    )
    read: str = setting(
        PROMPT, "prompt reads the stream at the last prompt token, as the paper does; response reads the "
        "mean over neutral English prose that stands where a response would", choices=(PROMPT, RESPONSE),
    )  # fmt: skip
    controls: int = setting(100, "random directions of equal norm beside each vector", least=10)
    seed: int = setting(0, "seed of the random directions", advanced=True)

    def layer_of(self, n_blocks: int) -> int:
        """The layer; the middle one where none is named."""
        return (n_blocks + 1) // 2 if self.layer is None else self.layer
