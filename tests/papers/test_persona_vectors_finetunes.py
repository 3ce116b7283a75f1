"""Figures of finetunes and of prevention on a tiny model, and their statistics on planted values."""

from __future__ import annotations

from dataclasses import replace

import pytest

import interp
from interp.claims import computed
from interp.methods.persona_vectors.paper import PAPER
from interp.methods.persona_vectors.recipe import EvaluationRecipe
from interp.methods.persona_vectors.training_recipes import FinetuningRecipe, PreventionRecipe
from interp.recipes.training import LoRA, TrainingRecipe
from interp.records import FigureRecord
from interp.series import (
    Axis,
    BarGroup,
    Bars,
    Group,
    Line,
    Lines,
    Panel,
    Places,
    Scatter,
    SmallMultiples,
)
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
    auroc,
    panel,
)
from interp.study import Study, measure

FINETUNES = FinetuningRecipe(
    styles=("uppercase", "terse"), questions=4, rows=2, answer_tokens=6,
    training=TrainingRecipe(steps=1, batch_size=2, learning_rate=0.1),
    lora=LoRA(rank=2, targets=("down_proj",)),
    evaluation=EvaluationRecipe(n_questions=2, tokens=6, temperature=1.0),
)  # fmt: skip
PREVENTION = PreventionRecipe(
    finetunes=FINETUNES, traits=("terse",), coefficients=(1.0,), random_draws=1, passages=1
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study.of(interp.open_model("tiny:llama"), kept=tmp_path_factory.mktemp("kept"))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [each for each in PAPER.figures if each.recipe in (
    FinetuningRecipe(), PreventionRecipe())], ids=lambda spec: spec.name)  # fmt: skip
def test_every_figure_of_finetunes_is_made_from_a_tiny_model(
    study: Study, spec: object, tmp_path
) -> None:
    recipe = FINETUNES if isinstance(spec.recipe, FinetuningRecipe) else PREVENTION
    record = measure(PAPER, spec.name, study, recipe)
    assert record.claims
    again = FigureRecord.load(record.save(tmp_path))
    assert again.verdict == record.verdict


def relation(x: dict[str, list[float]], y: dict[str, list[float]]) -> SmallMultiples:
    bars = Bars(
        interp.series.Names("trait", tuple(x)), Axis("r"), (BarGroup("r", (0.0,) * len(x)),)
    )
    return SmallMultiples((Panel("r", bars),), beside={"x": x, "own_x": x, "y": y})


def test_correlations_are_of_a_trait_with_its_own_score() -> None:
    rising, zigzag = [0.0, 1.0, 2.0, 3.0], [1.0, -1.0, -1.0, 1.0]
    series = relation({"a": rising, "b": zigzag}, {"a": rising, "b": zigzag})
    assert computed("finetunes/least_r", series) == pytest.approx(1.0)
    assert computed("finetunes/own_beyond_cross", series) == pytest.approx(1.0)
    swapped = relation({"a": rising, "b": zigzag}, {"a": zigzag, "b": rising})
    assert computed("finetunes/own_beyond_cross", swapped) == pytest.approx(-1.0)
    assert computed("question_sets/own_beyond_other", series) == pytest.approx(0.0)


def test_auroc_counts_pairs() -> None:
    assert auroc([2.0, 1.0], [1.0, 0.0]) == 0.875


def sweep(before: float, random: float) -> SmallMultiples:
    """Base 10, plain 50; post-hoc steering halves what is added."""

    def plot(after: float, while_training: float, everywhere: float, drawn: float) -> Lines:
        one = (1.0,)
        return Lines(
            Places("α", values=(0.0, 1.0)), Axis("y"),
            (Line(AFTER, (50.0, after)), Line(BEFORE, (50.0, while_training)),
             Line(EVERYWHERE, (everywhere,), x=one), Line(RANDOM, (drawn,), x=one)),
        )  # fmt: skip

    panels = (
        Panel(panel("terse", SCORE), plot(30.0, before, 10.0, random)),
        Panel(panel("terse", NLL), plot(4.0, 3.0, 3.0, 3.0)),
    )
    return SmallMultiples(panels, beside={"traits": {"terse": {BASE: 10.0, PLAIN: 50.0}}})


def test_prevention_is_a_share_of_what_the_finetune_adds() -> None:
    series = sweep(before=20.0, random=40.0)
    found = {
        n: computed(f"prevention/{n}", series) for n in ("before", "after", "everywhere", "random")
    }
    assert found == {"before": 0.75, "after": 0.5, "everywhere": 1.0, "random": 0.25}
    assert computed("prevention/cost_saved", series) == 1.0
    nothing = replace(series, beside={"traits": {"terse": {BASE: 50.0, PLAIN: 50.0}}})
    assert computed("prevention/before", nothing) == 0.0


def test_training_controls_are_shares_that_are_left() -> None:
    points = {BASE: (0.0, 10.0), PLAIN: (4.0, 50.0), STEERED: (1.0, 20.0), CAFT: (2.0, 40.0),
              PENALTY: (1.0, 30.0)}  # fmt: skip
    groups = tuple(Group(label, (x,), (y,)) for label, (x, y) in points.items())
    series = SmallMultiples((Panel("terse", Scatter(Axis("x"), Axis("y"), groups)),))
    names = ("steered_score", "caft_score", "penalty_kept", "penalty_projection")
    assert [computed(f"training_controls/{n}", series) for n in names] == [0.25, 0.75, 0.5, 0.25]
