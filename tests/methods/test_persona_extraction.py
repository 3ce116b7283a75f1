"""Extraction of persona vectors: filter, means, planted directions, and runs that go on after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import random_direction, relative

import interp
from interp import LM
from interp.backends.opening import wrap
from interp.errors import PersonaError
from interp.judges import ChatJudge, LikelihoodRatio, TraitJudge
from interp.methods.persona_vectors import (
    ExtractionRecipe,
    PersonaVector,
    PersonaVectorExtractor,
    Trait,
    shipped_trait,
)
from interp.methods.persona_vectors.activations import conversations, mean_activations, reduced
from interp.methods.persona_vectors.filtering import check_survivors, surviving
from interp.methods.persona_vectors.judging import held_out_ratio
from interp.methods.persona_vectors.rollouts import Context, Rollouts, rollouts
from interp.models import tiny_model
from interp.models.tiny import byte_tokenizer
from interp.study import Study

TRAIT = replace(
    shipped_trait("exclamatory"),
    instructions=(("Shout!", "Talk."), ("Be loud!", "Be calm.")),
    questions=("tea?", "why is it so?", "egg?"),
    evaluation_questions=("a pond?", "who?"),
)
RECIPE = ExtractionRecipe(samples=2, tokens=4, temperature=1.0)


@pytest.fixture(scope="module")
def lm(chat_dir: Path) -> LM:
    return interp.open_model(str(chat_dir), batch_size=4)


class Sides:
    """A judge that knows the responses of the positive side; everything else has a low score."""

    name, threshold = "sides", 50.0

    def __init__(self, positive: set[str]) -> None:
        self.positive, self.calls = positive, 0

    def score(self, prompts: Any, responses: Any) -> list[float | None]:
        self.calls += len(responses)
        return [90.0 if text in self.positive else 10.0 for text in responses]

    def as_json(self) -> dict[str, Any]:
        return {"kind": "sides", "positive": sorted(self.positive)}


def knowing(lm: LM, trait: Trait = TRAIT, recipe: ExtractionRecipe = RECIPE) -> Sides:
    """A judge that sees the trait in what the model writes on the positive side."""
    blind = TraitJudge("blind", measure=lambda text: 0.0)
    extractor = PersonaVectorExtractor(lm, blind, recipe=recipe)
    swapped = replace(trait, questions=trait.evaluation_questions, evaluation_questions=())
    tables = [
        extractor.pairs(trait),
        replace(extractor, recipe=replace(recipe, samples=1)).pairs(swapped),
    ]
    return Sides({text for table in tables for text in table.positive.responses})


# --- the filter ------------------------------------------------------------------------------------


def test_a_pair_survives_if_both_halves_do() -> None:
    positive = [50.0, 49.99, 80.0, 80.0, None, 80.0, 80.0]
    negative = [49.99, 0.0, 50.0, 0.0, 0.0, None, 0.0]
    rows, counts = surviving(positive, negative, threshold=50.0)
    assert rows == [0, 3, 6]
    assert counts.as_json() == {
        "pairs": 7, "positive": 5, "negative": 5, "coherent": None, "unscorable": 2, "kept": 3,
    }  # fmt: skip
    coherence = ([50.0] * 7, [50.0, 50.0, 50.0, 49.99, 50.0, 50.0, None])
    rows, counts = surviving(positive, negative, threshold=50.0, coherence=coherence)
    assert (rows, counts.coherent, counts.unscorable) == ([0], 5, 3)


@pytest.mark.parametrize(
    ("positive", "negative", "coherence", "why"),
    [
        ([10.0, 20.0], [0.0, 0.0], None, "no positive response reaches 50 by the judge j"),
        ([90.0, 90.0], [60.0, 70.0], None, "every negative response reaches 50"),
        ([90.0], [0.0], ([90.0], [20.0]), "no pair has two coherent responses"),
        ([90.0, 10.0], [90.0, 0.0], None, "no pair passes all criteria at once"),
    ],
)
def test_without_survivors_the_step_that_failed_is_named(
    positive: Any, negative: Any, coherence: Any, why: str
) -> None:
    rows, counts = surviving(positive, negative, threshold=50.0, coherence=coherence)
    assert rows == []
    with pytest.raises(PersonaError, match=why):
        check_survivors("keen", "j", counts, 50.0)


# --- means ---------------------------------------------------------------------------------------------


def conversation_rows(responses: tuple[str, ...]) -> Rollouts:
    n = len(responses)
    shown = (("soup?", "yes, soup"),)
    contexts = (Context("be brief"), Context("be very, very long", shown), Context("be brief"))[:n]
    return Rollouts(contexts, ("tea?", "why is it so, and how?", "egg")[:n], responses)


def test_means_leave_out_prompt_padding_and_the_first_token(lm: LM) -> None:
    rows = conversation_rows(("yes", "no, never", "a pan"))
    batch = conversations(lm, rows)
    found = {
        int(row): {name: value[i] for name, value in parts.items()}
        for index, parts in reduced(lm.using(batch_size=2), batch)
        for i, row in enumerate(index)
    }
    sites = (lm.embed, *lm.resid_post)
    for i in range(len(rows)):
        own = rows.chosen([i])
        chat = own.contexts[0].on(lm)
        n = chat.tokens(own.prompts).ids.shape[1]
        one = chat.run_with_cache(chat.tokens(own.prompts, own.responses), sites)[1]
        stream = torch.stack([one[site][0] for site in sites])
        wanted = {
            "response_avg": stream[:, n:].mean(1),
            "prompt_avg": stream[:, 1:n].mean(1),
            "prompt_last": stream[:, n - 1],
        }
        for name, value in wanted.items():
            assert relative(found[i][name], value) < 1e-5, name
    one, four = (mean_activations(lm.using(batch_size=size), rows) for size in (1, 4))
    for name, value in one.items():
        assert value.shape == (lm.n_blocks + 1, lm.d_model)
        assert relative(four[name], value) < 1e-5


def test_responses_can_be_read_without_their_context(lm: LM) -> None:
    rows = conversation_rows(("yes", "no"))
    bare = conversations(lm, rows, context=False)
    assert torch.equal(bare.ids, lm.tokens(rows.prompts, rows.responses).ids)


def test_a_planted_direction_is_found_and_swapping_the_sides_negates_it() -> None:
    model = tiny_model("llama", vocab_size=259, tie_word_embeddings=False)
    tokenizer, planted = byte_tokenizer(), random_direction(model.config.hidden_size).vector
    with torch.no_grad():
        for block in model.model.layers:  # the stream stays what the embedding wrote
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        loud, calm = (tokenizer(mark, add_special_tokens=False).input_ids[0] for mark in "!.")
        embedding = model.model.embed_tokens.weight
        embedding[loud] = embedding[calm] + 3.0 * planted
    lm = LM(wrap(model, tokenizer), batch_size=2)
    sides = [
        conversation_rows(tuple(f"{text}{mark}{mark}" for text in ("yes", "no", "tea")))
        for mark in "!."
    ]
    loud_means, calm_means = (mean_activations(lm, side) for side in sides)
    vectors = {name: loud_means[name] - calm_means[name] for name in loud_means}
    share = 3.0 * sum(2 / len(text) for text in sides[0].responses) / 3
    assert relative(vectors["response_avg"], share * planted.expand(lm.n_blocks + 1, -1)) < 1e-4
    assert vectors["prompt_avg"].norm() == vectors["prompt_last"].norm() == 0
    with lm.editing(interp.add(lm.embed, torch.randn(lm.d_model))):
        moved = [mean_activations(lm, side)["response_avg"] for side in sides]
    assert relative(moved[0] - moved[1], vectors["response_avg"]) < 1e-4


# --- from a trait to a vector --------------------------------------------------------------------------


def test_a_trait_becomes_a_vector_with_its_record(lm: LM, tmp_path: Path) -> None:
    judge = knowing(lm)
    persona = PersonaVectorExtractor(lm, judge, recipe=RECIPE).extract(TRAIT)
    assert persona.rows.shape == (lm.n_blocks + 1, lm.d_model)
    assert set(persona.vectors) == {"response_avg", "prompt_avg", "prompt_last"}
    record = persona.record
    assert record["counts"]["pairs"] == 2 * 3 * 2
    assert record["counts"]["kept"] == len(record["survivors"]) > 0
    assert record["held_out_contrast"]["auc"] > 0.9
    assert (record["trait_sha256"], record["coherence"]) == (TRAIT.sha256, None)
    back = PersonaVector.load(persona.save(tmp_path / "out"))
    assert Trait.from_json(back.record["trait"], "", "") == TRAIT


@pytest.mark.slow
def test_what_was_written_and_scored_is_kept(lm: LM, tmp_path: Path) -> None:
    judge = knowing(lm)

    def extract() -> PersonaVector:
        study = Study.of(lm, kept=tmp_path)
        return PersonaVectorExtractor(lm, judge, recipe=RECIPE, study=study).extract(TRAIT)

    first = extract()
    steps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("persona_rollouts*")}
    assert len(steps) == 2 * 2 * 2  # evaluation and extraction, two sides, two instructions
    calls = judge.calls
    again = extract()
    assert torch.equal(again.rows, first.rows)
    assert judge.calls == calls
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("persona_rollouts*")} == steps
    next(iter(steps)).unlink()  # as after a kill
    assert torch.equal(extract().rows, first.rows)
    assert set(tmp_path.glob("persona_rollouts*")) == set(steps)


def test_a_judge_at_chance_is_named(lm: LM) -> None:
    judge = TraitJudge("constant", measure=lambda text: 60.0)
    with pytest.raises(PersonaError, match="the judge constant is at chance on held-out questions"):
        PersonaVectorExtractor(lm, judge, recipe=RECIPE).extract(TRAIT)
    silent = TraitJudge("silent", measure=lambda text: None)
    with pytest.raises(PersonaError, match="the judge silent cannot be checked"):
        PersonaVectorExtractor(lm, silent, recipe=RECIPE).extract(TRAIT)
    unchecked = replace(RECIPE, validation_questions=0)
    with pytest.raises(PersonaError, match="every negative response reaches 50"):
        PersonaVectorExtractor(lm, judge, recipe=unchecked).extract(TRAIT)


def test_the_judge_follows_from_the_trait(lm: LM) -> None:
    own = PersonaVectorExtractor(lm).judges(TRAIT)
    assert (own[0].as_json()["kind"], own[1]) == ("trait", None)
    judge, coherence = PersonaVectorExtractor(lm).judges(shipped_trait("evil"))
    assert isinstance(judge, ChatJudge)
    assert coherence is not None
    assert (judge.name, coherence.name) == ("evil", "coherence")
    assert PersonaVectorExtractor(lm, coherence=None).judges(shipped_trait("evil"))[1] is None


def test_a_likelihood_ratio_reads_pairs_that_no_rollout_is_made_with(lm: LM) -> None:
    trait = shipped_trait("hedging")
    rest, judge = held_out_ratio(lm, trait)
    assert isinstance(judge, LikelihoodRatio)
    assert rest.instructions == trait.instructions[:3]
    assert judge.positive == tuple(trait.system(i, positive=True) for i in (3, 4))
    assert judge.negative == tuple(trait.system(i, positive=False) for i in (3, 4))
    with pytest.raises(PersonaError, match="cannot be held out"):
        held_out_ratio(lm, trait, held_out=5)


def test_demonstrations_stand_before_every_question_of_their_side(lm: LM) -> None:
    trait = shipped_trait("exclamatory")
    recipe = ExtractionRecipe(demonstrations=2, tokens=1)
    for positive, mark in ((True, "!"), (False, ".")):
        rows = rollouts(Study.of(lm), trait, trait.questions[:1], recipe, positive=positive)
        assert all(len(context.history) == 2 for context in rows.contexts)
        assert all(answer.endswith(mark) for c in rows.contexts for _, answer in c.history)
        text = lm.tokenizer.decode(conversations(lm, rows).ids[0])
        assert rows.contexts[0].history[1][1] in text
    with pytest.raises(PersonaError, match="has 3 demonstrations, not 4"):
        trait.history(4, positive=True)
    assert Trait.from_json(trait.as_json(), "x", "here") == trait
