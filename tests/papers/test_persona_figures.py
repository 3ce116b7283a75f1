"""Figures of steering and monitoring on a tiny model with a planted vector, and their statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import interp
from interp.claims import computed
from interp.errors import PersonaError
from interp.judges import TraitJudge
from interp.judges.agreement import Agreement
from interp.methods.persona_vectors import ExtractionRecipe, PersonaVector, shipped_trait
from interp.methods.persona_vectors.monitoring import (
    Monitored,
    graded_systems,
    many_shots,
    within_conditions,
)
from interp.methods.persona_vectors.monitoring_figures import (
    monitoring_correlations,
    monitoring_shots,
    monitoring_system,
)
from interp.methods.persona_vectors.recipe import EvaluationRecipe, SteeringRecipe
from interp.methods.persona_vectors.rollouts import Context, Rollouts
from interp.methods.persona_vectors.steering_figures import (
    layer_sweep,
    persona_cosines,
    positions,
    steering_controls,
)
from interp.methods.persona_vectors.studied import Studied, steerable
from interp.methods.persona_vectors.sweeps import (
    Setting,
    neutral_nll,
    of_equal_damage,
    random_vectors,
    shuffled_vectors,
    together,
)
from interp.records import FigureRecord, outcomes
from interp.series import (
    Axis,
    BarGroup,
    Bars,
    Cells,
    Column,
    HeatMap,
    Line,
    Lines,
    MapPanel,
    Mark,
    Names,
    Panel,
    Places,
    SmallMultiples,
    Table,
)
from interp.study import Study

RECIPE = SteeringRecipe(
    traits=("terse", "exclamatory"),
    depths=(0.0, 0.5),
    strengths=(1.0, 4.0),
    controls=2,
    shuffles=2,
    samples_monitored=1,
    extraction=ExtractionRecipe(tokens=4),
    evaluation=EvaluationRecipe(n_questions=8, tokens=6),
)


def planted(study: Study) -> tuple[list[Studied], dict[str, str]]:
    """Traits of random vectors and responses: a tiny model shows no trait."""
    lm, found = study.lm, []
    contrast = Agreement("planted", 1.0, None, 1.0, (0.5, 1.0), 50.0, 4, 4, 0)
    for seed, name in enumerate(RECIPE.traits):
        trait = shipped_trait(name)
        generator = torch.Generator().manual_seed(seed)
        shape = (lm.n_blocks + 1, lm.d_model)
        rows = {
            reduction: torch.randn(shape, generator=generator)
            for reduction in ("response_avg", "prompt_avg", "prompt_last")
        }
        record = {"counts": {"kept": 4}, "held_out_contrast": contrast.as_json()}
        persona = PersonaVector(name, rows, record=record)
        questions = trait.questions[:6]
        pairs = tuple(
            Rollouts((Context(),) * 6, questions, tuple(f"{word} {i}, so it is" for i in range(6)))
            for word in ("yes", "no")
        )
        judge = TraitJudge(trait.score or "")
        found.append(Studied(study, RECIPE, trait, persona, judge, pairs))  # type: ignore[arg-type]
    return found, {"listing": "no survivors"}


@pytest.fixture(scope="module")
def study() -> Study:
    made = Study.of(interp.open_model("tiny:llama"))
    made.once("persona: studied", lambda: planted(made), recipe=RECIPE)
    return made


FIGURES = (
    layer_sweep, steering_controls, positions, persona_cosines,
    monitoring_system, monitoring_shots, monitoring_correlations,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f.__name__)
def test_every_figure_makes_a_record_with_outcomes(
    study: Study, figure: Callable[[Study, SteeringRecipe], FigureRecord]
) -> None:
    record = figure(study, RECIPE)
    assert len(outcomes(record)) == len(record.claims) > 0
    assert record.series is not None
    if figure not in (monitoring_correlations,):
        assert record.series.beside["no_vector"] == {"listing": "no survivors"}


def test_a_trait_whose_answers_every_setting_ruins_is_left_out(study: Study) -> None:
    strict = replace(RECIPE, most_damage=float("-inf"))
    ruined = [replace(each, recipe=strict) for each in planted(study)[0]]
    study.once("persona: studied", lambda: (ruined, {}), recipe=strict)
    with pytest.raises(PersonaError, match="add weaker strengths"):
        steerable(study, strict)


def test_a_kept_answer_is_of_this_very_vector(tmp_path: Path) -> None:
    kept = Study.of(interp.open_model("tiny:llama"), kept=tmp_path)
    each = planted(kept)[0][0]
    setting = each.settings[-1]
    _, one = each.answered("persona_sweep", [setting], each.halves[0])
    other = replace(setting, vector=-setting.vector)
    assert each.answered("persona_sweep", [other], each.halves[0])[1] != one
    assert each.answered("persona_sweep", [setting], each.halves[0])[1] == one


# --- statistics -----------------------------------------------------------------------------------

SCORE = Axis("score")


def panels(*series: Lines) -> SmallMultiples:
    return SmallMultiples([Panel(f"trait {i}", each) for i, each in enumerate(series)])


def by_block(*values: list[float], base: float = 10.0) -> Lines:
    lines = [Line(f"α = {i}", each) for i, each in enumerate(values)]
    return Lines(Places("block", values=[1, 2, 3]), SCORE, lines, [Mark("y", base, "unsteered")])


def test_the_sweep_counts_gains_over_the_base_and_peaks_inside() -> None:
    series = panels(by_block([10, 20, 15], [10, 60, 30]), by_block([12, 14, 35]))
    assert computed("layer_sweep/least_gain", series) == 25
    assert computed("layer_sweep/inner_peaks", series) == 0.5


def test_a_trait_clears_its_controls_if_no_vector_of_any_reaches_it() -> None:
    def group(label: str, means: list[float], tops: list[float]) -> BarGroup:
        return BarGroup(label, means, [0.0] * len(tops), tops)

    series = Bars(
        Names("trait", ["a", "b", "c"]),
        SCORE,
        [
            group("unsteered", [5, 5, 40], [90, 90, 90]),
            group("persona vector", [50, 50, 30], [60, 60, 60]),
            group("random, equal norm", [10, 10, 10], [49, 51, 20]),
            group("random, equal damage", [10, 10, 10], [20, 20, 20]),
            group("labels shuffled", [10, 10, 10], [20, 20, 20]),
        ],
    )
    assert computed("steering_controls/traits_above_controls", series) == 1


def test_reductions_and_halves_are_compared_in_the_mean_and_at_the_least() -> None:
    places = Places("norm", values=[1, 2])
    lines = [
        Line(name, values)
        for name, values in (
            ("response_avg", [10, 30]), ("prompt_avg", [10, 20]), ("prompt_last", [30, 30]),
        )
    ]  # fmt: skip
    series = panels(Lines(places, SCORE, lines))
    assert computed("positions/response_beyond_prompt_avg", series) == 5
    assert computed("positions/response_beyond_prompt_last", series) == -10
    names = Names("trait", ["a", "b"])
    values = MapPanel("cosine", [[1.0, 0.4], [0.4, 1.0]])
    heat = HeatMap(names, names, [values], beside={"split_half": [0.9, 0.6]})
    assert computed("persona_cosines/least_split_half", heat) == 0.6
    assert computed("persona_cosines/split_half_beyond_others", heat) == pytest.approx(0.2)


def test_within_conditions_that_do_not_vary_count_as_no_correlation() -> None:
    columns = [Column(name) for name in ("s", "s within", "m", "m within")]
    rows = [
        Cells("ours", [0.5, 0.1, 0.7, None]),
        Cells("paper", [0.9, 0.9, 0.9, 0.9], theirs=True),
    ]
    found = computed("monitoring_correlations/overall_beyond_within", Table(columns, rows))
    assert found == pytest.approx(0.55)


# --- settings in one batch ------------------------------------------------------------------------


def test_settings_run_together_are_what_each_is_alone() -> None:
    lm = interp.open_model("tiny:llama")
    vectors = random_vectors(torch.full((lm.d_model,), 0.5), 2)
    settings = [
        Setting(lm.resid_post[0], vectors[0], 2.0),
        Setting(lm.resid_post[-1], vectors[1], -1.0),
        Setting(lm.resid_post[0], vectors[1], 0.0),
    ]
    prompts = ["one", "a longer prompt"]
    found = lm.logits(prompts, together(settings))
    for k, setting in enumerate(settings):
        edit = interp.add(setting.site, setting.vector, setting.coefficient)
        assert torch.allclose(found[k], lm.logits(prompts, edit), atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    with pytest.raises(PersonaError, match="no setting"):
        together([])


def test_controls_have_the_norm_or_the_damage_of_what_they_control() -> None:
    lm = interp.open_model("tiny:llama")
    vector = 3 * torch.randn(lm.d_model, generator=torch.Generator().manual_seed(1))
    drawn = random_vectors(vector, 3)
    assert torch.allclose(drawn.norm(dim=-1), vector.norm().expand(3))
    differences = torch.randn(8, lm.d_model, generator=torch.Generator().manual_seed(2))
    shuffled = shuffled_vectors(differences, 3)
    assert torch.allclose(shuffled.norm(dim=-1), differences.mean(0).norm().expand(3), atol=1e-5)
    # Exchanged labels leave nothing of what all pairs share.
    shared = shuffled_vectors(differences + 100.0, 3)
    whole = (differences + 100.0).mean(0)
    assert (torch.cosine_similarity(shared, whole[None]).abs() < 0.9).all()
    passages = ("a short passage of text", "another one")
    target = neutral_nll(lm, Setting(lm.resid_post[0], vector, 1.0), passages)
    other = Setting(lm.resid_post[0], drawn[0], 1.0)
    scaled = of_equal_damage(lm, other, target, passages)
    before = neutral_nll(lm, None, passages)
    assert abs(neutral_nll(lm, scaled, passages) - target) < 0.5 * abs(target - before) + 0.05


# --- monitoring ------------------------------------------------------------------------------------


def test_within_condition_r_is_the_mean_over_conditions_that_vary() -> None:
    rows = [
        *(
            Monitored("a", str(i), x, y)
            for i, (x, y) in enumerate([(0.0, 0.0), (1.0, 10.0), (2.0, 20.0)])
        ),
        *(
            Monitored("b", str(i), x, y)
            for i, (x, y) in enumerate([(0.0, 20.0), (1.0, 10.0), (2.0, 0.0)])
        ),
        *(Monitored("flat", str(i), x, 50.0) for i, x in enumerate((0.0, 1.0, 2.0))),
        *(Monitored("few", str(i), x, 9.0 * x) for i, x in enumerate((0.0, 1.0))),
    ]
    assert within_conditions(rows) == pytest.approx(0.0)
    assert within_conditions(rows[:3]) == pytest.approx(1.0)
    assert within_conditions(rows[6:]) is None


def test_graded_texts_differ_and_shots_are_earlier_turns() -> None:
    lm = interp.open_model("tiny:llama")
    texts = [context.system for context in graded_systems(shipped_trait("terse"))]
    assert len(set(texts)) == 8
    none, two = many_shots([("why?", "so"), ("how?", "thus")], (0, 2))
    assert none.on(lm).tokens("tea?").ids.tolist() == lm.tokens("tea?").ids.tolist()
    assert two.on(lm).chat == replace(lm.chat, history=two.history)  # type: ignore[type-var]
    with pytest.raises(PersonaError, match="3 shots need"):
        many_shots([("why?", "so")], (3,))
