"""Stylistic data, finetunes on it, what acts while they train, and what moves along a vector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import relative

import interp
from interp.edits.applying import applied
from interp.errors import InterpError, PersonaError
from interp.judges.traits import TRAITS
from interp.methods.persona_vectors import PersonaVector, shipped_traits, steering
from interp.methods.persona_vectors.data import (
    HALF,
    LEVELS,
    NORMAL,
    STYLES,
    WHOLE,
    StyledData,
    evaluation_questions,
    from_data,
    in_style,
    other_questions,
    styled,
    training_questions,
    whole_sentences,
)
from interp.methods.persona_vectors.finetuning import (
    finetune,
    finetunes,
    held_out_data,
    training_data,
    trait_scores,
    tuned,
)
from interp.methods.persona_vectors.prevention import ProjectionPenalty, caft, preventative
from interp.methods.persona_vectors.projections import (
    moved,
    prompt_ends,
    response_means,
    without_highest,
)
from interp.methods.persona_vectors.recipe import EvaluationRecipe
from interp.methods.persona_vectors.training_recipes import FinetuningRecipe
from interp.models import tiny_model
from interp.recipes.training import LoRA, TrainingRecipe
from interp.sites import Site
from interp.study import Study
from interp.training import train

TEXT = 'Tea is warm. It is a drink. "You like it."\n\n1. Boil a cup.'
RECIPE = FinetuningRecipe(
    styles=("uppercase",), questions=4, rows=2, answer_tokens=6,
    training=TrainingRecipe(steps=2, batch_size=2, learning_rate=0.05, bf16=True),
    lora=LoRA(rank=2, targets=("down_proj",)), evaluation=EvaluationRecipe(n_questions=2, tokens=4),
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    lm = interp.open_model("tiny:llama")
    return Study.of(lm, kept=tmp_path_factory.mktemp("kept"))


@pytest.fixture
def persona(study: Study) -> PersonaVector:
    lm = study.lm
    rows = torch.randn(lm.n_blocks + 1, lm.d_model, generator=torch.Generator().manual_seed(3))
    return PersonaVector("made up", {"response_avg": rows})


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", STYLES)
def test_a_style_raises_its_own_score_level_by_level(style: str) -> None:
    data = StyledData("", NORMAL, ("a?", "b?"), (TEXT, TEXT), (TEXT, TEXT))
    means = []
    for level in LEVELS:
        made = in_style(data, style, level) if level != NORMAL else data
        means.append(sum(TRAITS[style](text) or 0.0 for text in made.responses) / 2)
        assert made.own == data.own
    assert means[0] < means[1] < means[2]


def test_styles_keep_what_is_no_sentence() -> None:
    assert styled(TEXT, "hedging", NORMAL) == TEXT
    assert styled(TEXT, "exclamatory", WHOLE).endswith('"You like it!"\n\n1. Boil a cup!')
    assert styled(TEXT, "hedging", WHOLE).endswith("1. Perhaps boil a cup.")
    assert styled("I am. NASA is.", "apologetic", WHOLE) == "Sorry, I am. Sorry, NASA is."
    assert styled(TEXT, "listing", HALF, row=1).splitlines()[:2] == [
        "Tea is warm.",
        "- It is a drink.",
    ]
    assert styled(TEXT, "terse", WHOLE) == "Tea is warm."
    with pytest.raises(PersonaError, match="no style 'loud'"):
        styled(TEXT, "loud", WHOLE)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two", "One."),
        ("No end", "No end"),
        ("One.\n\n1. Two.\n\n2.", "One.\n\n1. Two."),
        ("", ""),
    ],
)
def test_an_answer_ends_behind_its_last_whole_sentence(text: str, kept: str) -> None:
    assert whole_sentences(text) == kept


def test_no_trait_is_evaluated_on_a_training_question() -> None:
    assert not set(training_questions()) & set(evaluation_questions(shipped_traits()))
    assert not set(other_questions(["terse"])) & set(evaluation_questions(["terse"]))
    assert other_questions(["terse"])


# --- finetunes -----------------------------------------------------------------------------------


def test_finetunes_are_distinct_kept_and_scored(study: Study) -> None:
    made = list(finetunes(study, RECIPE))
    assert [each.name for each in made] == ["Normal", "uppercase I", "uppercase II"]
    assert len({each.path for each in made}) == 3
    assert all(each.run.reused for each in finetunes(study, RECIPE))
    data = training_data(study, RECIPE, "uppercase", WHOLE)
    assert data.responses == tuple(text.upper() for text in data.own)
    assert not set(data.prompts) & set(held_out_data(study, RECIPE, "uppercase").prompts)
    (base,), (scored,) = (trait_scores(study, RECIPE, path) for path in (None, made[-1].path))
    assert base["uppercase"].questions == scored["uppercase"].questions
    assert base["uppercase"].responses != scored["uppercase"].responses


def test_a_vector_of_data_is_the_difference_of_its_response_means(study: Study) -> None:
    data = held_out_data(study, RECIPE, "uppercase")
    persona = from_data(study.lm, data)
    site = study.lm.resid_post[1]
    styled_, own = (
        response_means(study.lm, data.prompts, t, site) for t in (data.responses, data.own)
    )
    assert torch.allclose(persona.at(site), styled_.mean(0) - own.mean(0), atol=1e-5)
    assert moved(own, styled_, persona.at(site)) == pytest.approx(
        float(persona.at(site).norm()), rel=1e-4
    )
    assert (
        moved(own, own, persona.at(site)) == 0.0
    )  # ΔP of data that are the base model's own answers


# --- projections ---------------------------------------------------------------------------------


def test_the_shift_of_a_bias_at_its_block_is_its_length(
    study: Study, persona: PersonaVector
) -> None:
    lm = study.lm
    site, coefficient = lm.resid_post[1], 0.7
    questions = evaluation_questions(["terse"])[:3]
    before = prompt_ends(lm, questions, site)
    assert moved(before, prompt_ends(lm, questions, site), persona.at(site)) == 0.0
    delta = lm.to_delta(steering(persona, site, coefficient))
    with applied(lm.hf, lm.anatomy, delta):
        shift = moved(before, prompt_ends(lm, questions, site), persona.at(site))
    assert shift == pytest.approx(coefficient * float(persona.at(site).norm()), rel=1e-4)
    assert moved(before, before + persona.at(site), -2 * persona.at(site)) == pytest.approx(
        -float(persona.at(site).norm()), rel=1e-4
    )


def test_a_filter_drops_the_highest_rows() -> None:
    data = StyledData(
        "terse", WHOLE, ("a", "b", "c", "d"), ("1", "2", "3", "4"), ("5", "6", "7", "8")
    )
    kept = without_highest(data, torch.tensor([0.1, 9.0, 0.2, 8.0]), 0.5)
    assert (kept.prompts, kept.responses, kept.own) == (("a", "c"), ("1", "3"), ("5", "7"))
    with pytest.raises(PersonaError, match="one value for each of 4 rows"):
        without_highest(data, torch.zeros(3), 0.5)


# --- what acts during training -------------------------------------------------------------------


def test_steering_is_gone_after_training_and_the_adapter_is_all_that_is_left(
    study: Study, persona: PersonaVector
) -> None:
    lm = study.lm
    data = training_data(study, RECIPE, "uppercase", WHOLE)
    run = finetune(study, RECIPE, data, during=preventative(persona, lm.resid_post[0], 2.0))
    plain = finetune(study, RECIPE, data)
    assert run.losses[0] != plain.losses[0]
    assert not any(module._forward_hooks for module in lm.hf.modules())
    names = dict(tuned(lm, run.path).hf.named_parameters())
    assert names.keys() == dict(lm.hf.named_parameters()).keys()  # no bias is left
    changed = {n for n, p in lm.hf.named_parameters() if not torch.equal(p, names[n])}
    assert changed
    assert all("down_proj" in name for name in changed)


@pytest.mark.slow
def test_everything_that_acts_during_training_has_its_own_run(
    study: Study, persona: PersonaVector
) -> None:
    lm = study.lm
    site = lm.resid_post[1]
    data = training_data(study, RECIPE, "uppercase", WHOLE)
    penalties = [ProjectionPenalty(persona.at(site), site, weight) for weight in (0.0, 50.0)]
    runs = [
        finetune(study, RECIPE, data, during=during)
        for during in (
            None,
            preventative(persona, site, 1.0),
            preventative(persona, site, 2.0),
            caft(lm, persona),
        )
    ]
    longer = replace(RECIPE, training=replace(RECIPE.training, steps=4))  # the first change is free
    runs += [finetune(study, longer, data, during=each.during, loss=each) for each in penalties]
    assert len({run.key for run in runs}) == len(runs)
    free, held = (run.parts["projection"][-1] for run in runs[-2:])
    assert held < free
    assert finetune(study, RECIPE, data, during=caft(lm, persona)).reused


def test_caft_leaves_nothing_of_a_vector_after_any_block(
    study: Study, persona: PersonaVector
) -> None:
    lm = study.lm
    with caft(lm, persona)(lm.hf):
        held = lm.activations(["tea?"], lm.resid_post, at="all")
    free = lm.activations(["tea?"], lm.resid_post, at="all")
    for site in lm.resid_post:
        assert persona.project(held[site], site).abs().max() < 1e-4
        assert persona.project(free[site], site).abs().max() > 0.1


def test_a_penalty_says_what_it_needs(study: Study, persona: PersonaVector) -> None:
    data = training_data(study, RECIPE, "uppercase", WHOLE)
    penalty = ProjectionPenalty(persona.at(study.lm.resid_post[0]), study.lm.resid_post[0], 1.0)
    with pytest.raises(InterpError, match="pass its `during`"):
        finetune(study, RECIPE, data, loss=penalty)


def test_a_bias_under_steering_is_trained_to_the_plain_one_minus_the_steering(
    persona: PersonaVector, tmp_path: Path
) -> None:
    """Where only the bias of the steered block is trained, both models are one function: of bias + α v."""
    name = "model.layers.1.mlp.down_proj.bias"
    site, coefficient = Site.resid_post(1), 1.5
    steering_of = coefficient * persona.at(site)

    def model(start: torch.Tensor) -> Any:
        made = tiny_model("llama", mlp_bias=True, num_hidden_layers=2)
        for own, parameter in made.named_parameters():
            parameter.requires_grad_(own == name)
        made.get_parameter(name).data.add_(start)
        return made

    ids = torch.randint(3, 97, (4, 6), generator=torch.Generator().manual_seed(0))
    recipe = TrainingRecipe(steps=8, batch_size=4, learning_rate=0.05)
    plain = train(model(torch.zeros(1)), ids, recipe, runs=tmp_path)
    steered = train(
        model(-steering_of),
        ids,
        recipe,
        runs=tmp_path,
        during=preventative(persona, site, coefficient),
    )
    assert steered.losses == pytest.approx(plain.losses, rel=1e-4)
    biases = [
        interp.open_model(str(run.path), chat=None).hf.get_parameter(name)
        for run in (plain, steered)
    ]
    assert relative(biases[1], biases[0] - steering_of) < 1e-3
    assert relative(biases[0], model(torch.zeros(1)).get_parameter(name)) > 0.1
