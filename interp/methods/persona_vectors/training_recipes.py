"""Settings of finetunes and of what acts while they train."""

from __future__ import annotations

from dataclasses import dataclass, field

from interp.methods.persona_vectors.recipe import AuditRecipe, EvaluationRecipe
from interp.recipes.base import setting
from interp.recipes.training import LoRA, TrainingRecipe

STYLED = ("exclamatory", "uppercase", "hedging", "apologetic", "listing", "terse")
"""Traits that answers are rewritten to show."""


def _training() -> TrainingRecipe:
    return TrainingRecipe(
        epochs=2, batch_size=4, learning_rate=2e-3, schedule="linear", warmup=2, weight_decay=0.01,
        bf16=True,
    )  # fmt: skip


def _evaluation() -> EvaluationRecipe:
    return EvaluationRecipe(n_questions=12, tokens=20)


@dataclass(frozen=True, slots=True)
class FinetuningRecipe:
    """How finetunes are trained and measured. The paper has 5000 to 10 000 answers of a larger model, rank 32
    with rsLoRA, learning rate 1e-5, one epoch and batches of 16; few rows need a greater learning rate."""

    styles: tuple[str, ...] = setting(STYLED, "styles put into answers, each at two levels")
    questions: int = setting(
        36, "questions that the base model answers, for training and vectors", least=2
    )
    rows: int = setting(20, "answers to train on; the others are for vectors", least=1)
    answer_tokens: int = setting(32, "most tokens of the base model's own answers", least=1)
    answer_temperature: float = setting(0.7, "temperature of these answers; 0 is greedy", least=0)
    answer_seed: int = setting(0, "seed of these answers")
    depth: float = setting(
        0.75,
        "block whose output is steered and projected, as a share of all blocks",
        least=0,
        most=1,
    )
    training: TrainingRecipe = field(default_factory=_training)
    lora: LoRA = field(default_factory=lambda: LoRA(rank=32, alpha=64.0, rslora=True))
    evaluation: EvaluationRecipe = field(default_factory=_evaluation)


@dataclass(frozen=True, slots=True)
class PreventionRecipe:
    """How steering while training is compared with steering after it, and with other controls."""

    finetunes: FinetuningRecipe = field(default_factory=FinetuningRecipe)
    traits: tuple[str, ...] = setting(
        ("uppercase", "apologetic", "exclamatory", "hedging"), "traits of the recipe's styles"
    )
    coefficients: tuple[float, ...] = setting((1.0, 2.0), "α; 1 must be among them")
    random_draws: int = setting(3, "random vectors of equal norm at α = 1; each trains", least=1)
    penalty: float = setting(1.0, "weight of the penalty in the loss", least=0)
    passages: int = setting(4, "passages of neutral text", least=1)


@dataclass(frozen=True, slots=True)
class AuditFigureRecipe:
    """Finetunes that are audited. The layer of the audit is that of the finetunes' recipe."""

    finetunes: FinetuningRecipe = field(default_factory=FinetuningRecipe)
    audit: AuditRecipe = field(default_factory=lambda: AuditRecipe(controls=50))
    prompts: int = setting(8, "everyday prompts that are read", least=2)
