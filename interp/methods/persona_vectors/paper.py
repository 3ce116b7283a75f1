"""What the persona-vector module reproduces, and what each figure still needs."""

from __future__ import annotations

from interp.methods.persona_vectors.recipe import SteeringRecipe
from interp.methods.persona_vectors.training_recipes import (
    AuditFigureRecipe,
    FinetuningRecipe,
    PreventionRecipe,
)
from interp.study import FigureSpec, Paper

KEY = "persona_vectors"
HOME = f"interp.methods.{KEY}"
BIG = "a model of 7 billion parameters, a GPU and the paper's judge"
FINETUNES = "figures_finetuning", FinetuningRecipe()
PREVENTION = "figures_prevention", PreventionRecipe()
DATA = BIG + ", and finetunes on the paper's data"


def _spec(name: str, title: str, stands_for: str, needs: str) -> FigureSpec:
    return FigureSpec(name, title, stands_for=f"2507.21509, {stands_for}", needs=needs)


def _own(
    name: str, title: str, function: str, stands_for: str | None, recipe: object
) -> FigureSpec:
    """A figure that is measured here. function: ``module:function`` of this package."""
    source = None if stands_for is None else f"2507.21509, {stands_for}"
    return FigureSpec(name, title, f"{HOME}.{function}", source, recipe=recipe)


def _trained(name: str, title: str, stands_for: str, home: tuple[str, object]) -> FigureSpec:
    """A figure of finetunes. home: module of the function with its name, and the recipe."""
    module, recipe = home
    return _own(name, title, f"{module}:{name}", stands_for, recipe)


STEERING = (
    ("layer_sweep", "Trait score by steered block", "steering_figures:layer_sweep", "Figures 3 and 13"),
    ("steering_controls", "Steering beside its controls", "steering_figures:steering_controls", None),
    ("monitoring_system", "Monitoring graded system prompts", "monitoring_figures:monitoring_system",
     "Figure 4"),
    ("monitoring_shots", "Monitoring many-shot prompts", "monitoring_figures:monitoring_shots", "Figure 14"),
    ("monitoring_correlations", "Overall and within-condition r",
     "monitoring_figures:monitoring_correlations", "Table 2"),
    ("positions", "Reductions compared at equal norm", "steering_figures:positions", "Figure 11"),
    ("cosines", "Cosines between traits", "steering_figures:persona_cosines", "Figure 20"),
)  # fmt: skip
"""Name, title, function, and what it stands for."""

PAPER = Paper(
    key=KEY,
    title="Persona Vectors: Monitoring and Controlling Character Traits in Language Models",
    arxiv="2507.21509",
    figures=(
        *(_own(*figure, SteeringRecipe()) for figure in STEERING),
        _own("audit", "Audit: predicted and measured", "figures_audit:audit_figure", None,
             AuditFigureRecipe()),
        _spec("finetunes", "Traits of 24 finetunes", "Figures 5 and 15", DATA),
        _trained("finetuning_shift", "Finetuning shift and trait", "Figures 6 and 18", FINETUNES),
        _trained("prevention", "Steering after and during a finetune", "Figures 7 and 26", PREVENTION),
        _trained("data_projection", "Projection of data and trait", "Figures 8 and 19", FINETUNES),
        _trained("sample_histograms", "Projections of samples", "Figure 9", FINETUNES),
        _spec("chat_data", "Subsets of real chat data", "Figures 10 and 34", DATA),
        _trained("question_sets", "Own and other questions", "Figure 12", FINETUNES),
        _spec("human_agreement", "Human and judge", "Table 1", "people who judge answers"),
        _trained("difference_and_shift", "Projection difference and shift", "Figure 17", FINETUNES),
        _spec("projection_variants", "Cheaper projections of data", "Figures 21 to 23", DATA),
        _spec("narrow_skill", "Skill kept, steering and prompting", "Figures 24 and 25", DATA),
        _trained("training_controls", "CAFT and a regulariser", "Figures 27 and 28", PREVENTION),
        _spec("benign_data", "Prevention on benign data", "Figure 29", DATA),
        _spec("new_facts", "Facts learned under steering", "Figures 30 and 31", DATA),
        _spec("data_filter", "Filtering chat data", "Figures 32 and 33, Table 6", DATA),
        _spec(
            "sae_features", "Sparse features of a vector", "Figure 35, Tables 8 to 10",
            "sparse autoencoders of the paper's models",
        ),
    ),
)  # fmt: skip
