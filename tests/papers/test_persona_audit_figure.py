"""The figure of the audit on a tiny model, and its statistics on planted values."""

from __future__ import annotations

from typing import Any

import pytest

import interp
from interp.claims import computed
from interp.data import load_class
from interp.methods.persona_vectors.figures_audit import PROMPTS, audit_figure, audited_finetunes
from interp.methods.persona_vectors.finetune_measures import site_of, vectors
from interp.methods.persona_vectors.finetuning import finetunes, tuned
from interp.methods.persona_vectors.projections import moved, prompt_ends
from interp.methods.persona_vectors.recipe import PROMPT, AuditRecipe, EvaluationRecipe
from interp.methods.persona_vectors.training_recipes import AuditFigureRecipe, FinetuningRecipe
from interp.recipes.training import LoRA, TrainingRecipe
from interp.records import FigureRecord
from interp.series import Axis, BarGroup, Bars, Names, Panel, SmallMultiples
from interp.study import Study

RECIPE = AuditFigureRecipe(
    finetunes=FinetuningRecipe(
        styles=("uppercase", "terse"), questions=4, rows=2, answer_tokens=6,
        training=TrainingRecipe(steps=1, batch_size=2, learning_rate=0.1),
        lora=LoRA(rank=2, rslora=True),
        evaluation=EvaluationRecipe(n_questions=2, tokens=6, temperature=1.0),
    ),
    audit=AuditRecipe(controls=10),
    prompts=3,
)  # fmt: skip


@pytest.mark.slow
def test_the_figure_is_made_and_the_shift_is_that_of_the_finetune(tmp_path: Any) -> None:
    study = Study.of(interp.open_model("tiny:llama"), kept=tmp_path)
    record = audit_figure(study, RECIPE)
    assert record.claims
    assert record.n["finetunes"] == 5
    again = FigureRecord.load(record.save(tmp_path / "cards"))
    assert again.verdict == record.verdict
    assert len(record.series.beside["random"]) == 10
    prompts = load_class(PROMPTS, "comply", limit=3).prompts
    site, personas = site_of(study, RECIPE.finetunes), vectors(study, RECIPE.finetunes)
    before = prompt_ends(study.lm, prompts, site)
    pairs = zip(finetunes(study, RECIPE.finetunes), audited_finetunes(study, RECIPE), strict=True)
    for each, audited in pairs:
        after = prompt_ends(tuned(study.lm, each.path), prompts, site)
        for trait, persona in personas.items():
            vector = persona.at(site)
            expected = moved(before, after, vector) / vector.norm().item()
            found = audited.audits[PROMPT][trait]["shift"]["value"]
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


BESIDE: dict[str, Any] = {
    "styles": ["a", "a", "b", "b", ""],
    "shift": {"a": [1.0, 2.0, 0.0, -0.5, 0.1], "b": [0.0, 0.5, 1.0, 2.0, 0.1]},
    "response": {"a": [1.0, 2.0, 0.0, -0.5, 0.1], "b": [1.0, 0.5, 0.0, -1.0, 0.9]},
    "weights": {"a": [1.0, 2.0, 0.0, -0.5, 0.1], "b": [0.0, -0.5, -1.0, -2.0, 0.0]},
    "change": {"a": [10.0, 20.0, 0.0, -5.0, 1.0], "b": [0.0, 5.0, 10.0, 20.0, 1.0]},
    "clear": {"a": [True, True, False, True, False], "b": [False, False, True, True, False]},
    "random": [[0.3, -0.2, 0.1, 0.4, 0.0], [0.0, 0.1, 0.0, 0.1, 0.3]],
}


def series(**changes: Any) -> SmallMultiples:
    bars = Bars(Names("trait", ("a", "b")), Axis("r"), (BarGroup("r", (0.0, 0.0)),))
    return SmallMultiples((Panel("r", bars),), beside=BESIDE | changes)


def statistic(name: str, **changes: Any) -> float:
    return computed(f"audit/{name}", series(**changes))


def test_statistics_of_a_prediction_that_is_right() -> None:
    assert statistic("least_r") == pytest.approx(1.0)
    assert statistic("response_least_r") == pytest.approx(-1.0, abs=0.01)
    assert statistic("weights_least_r") == pytest.approx(-1.0, abs=0.01)
    assert (statistic("sign"), statistic("clear"), statistic("named")) == (1.0, 5, 1.0)
    assert statistic("beyond_random") == 1.0


def test_statistics_of_a_prediction_that_is_wrong() -> None:
    wrong = {"shift": {t: [-x for x in BESIDE["shift"][t]] for t in ("a", "b")}}
    assert statistic("least_r", **wrong) == pytest.approx(-1.0)
    assert statistic("sign", **wrong) == 0.0
    assert statistic("named", **wrong) == 0.0
    assert statistic("beyond_random", **wrong) == 0.0
    nothing = {"clear": {t: [False] * 5 for t in ("a", "b")}}
    assert statistic("sign", **nothing) == 0.0
    flat = {"change": {"a": [None] * 5, "b": [1.0] * 5}, **nothing}
    assert (statistic("least_r", **flat), statistic("least_r_low", **flat)) == (0.0, -1.0)
