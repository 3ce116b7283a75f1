"""Traits: files that come with the package, files of the authors, and what is no trait."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from interp.errors import PersonaError
from interp.judges import TRAITS, Rubric
from interp.methods.persona_vectors import Trait, shipped_trait, shipped_traits

PAPER = {
    "evil", "sycophantic", "hallucinating", "optimistic", "impolite", "apathetic", "humorous",
}  # fmt: skip


@pytest.mark.parametrize("name", shipped_traits())
def test_a_shipped_trait_is_whole(name: str, tmp_path: Path) -> None:
    trait = shipped_trait(name)
    assert trait.name == name
    assert len(trait.instructions) == 5
    assert len(trait.questions) == len(trait.evaluation_questions) == 20
    assert (trait.score is None) == (name in PAPER)
    assert trait.score is None or trait.score in TRAITS
    questions = [*trait.questions, *trait.evaluation_questions]
    assert not [question for question in questions if trait.named_in(question)]
    assert Rubric(trait.eval_prompt).needs_prompt
    assert Trait.load(trait.save(tmp_path / "again.json")) == trait


def test_there_are_stylistic_traits_and_those_of_the_paper() -> None:
    assert set(shipped_traits()) >= PAPER
    assert len(set(shipped_traits()) - PAPER) >= 8
    with pytest.raises(PersonaError, match="no shipped trait 'x'; there are apathetic"):
        shipped_trait("x")


def test_a_system_text_names_the_assistant_and_gives_the_instruction() -> None:
    trait = shipped_trait("apologetic")
    pos, neg = trait.instructions[1]
    assert trait.system(1, positive=True) == f"You are an apologetic assistant. {pos}"
    assert trait.system(1, positive=False) == f"You are a self-assured assistant. {neg}"


def test_the_two_files_of_the_authors_are_one_trait(tmp_path: Path) -> None:
    trait = shipped_trait("evil")
    content = {key: trait.as_json()[key] for key in ("instruction", "questions", "eval_prompt")}
    extract, evaluate = tmp_path / "evil.json", tmp_path / "eval.json"
    extract.write_text(json.dumps(content))
    evaluate.write_text(json.dumps(content | {"questions": list(trait.evaluation_questions)}))
    alone = Trait.load(extract)
    assert (alone.name, alone.adjective, alone.opposite) == ("evil", "evil", "helpful")
    assert (len(alone.questions), alone.evaluation_questions) == (20, ())
    both = Trait.load(extract, evaluate)
    assert both.evaluation_questions == trait.evaluation_questions
    with pytest.raises(PersonaError, match="asks the same twice"):
        Trait.load(extract, extract)


def test_what_is_no_trait_is_refused_with_the_reason(tmp_path: Path) -> None:
    trait = shipped_trait("terse")
    first = trait.questions[0]
    for changes, why in [
        ({"eval_prompt": "rate {answer}"}, r"no \{question\} in its eval_prompt"),
        ({"questions": (first, f"  {first.upper()}!")}, "asks the same twice"),
        ({"evaluation_questions": (first,)}, "must differ"),
        ({"instructions": (("be brief", "Be brief."),)}, "same instruction twice"),
        ({"questions": ("",)}, "empty"),
        ({"instructions": ()}, "needs a name"),
    ]:
        with pytest.raises(PersonaError, match=why):
            replace(trait, **changes)
    path = tmp_path / "t.json"
    for text in (
        "[1]",
        "{",
        "{}",
        '{"instruction": [{"pos": 1, "neg": "b"}]}',
        '{"instruction": 3}',
    ):
        path.write_text(text)
        with pytest.raises(PersonaError, match=r"t\.json"):
            Trait.load(path)
    with pytest.raises(PersonaError, match="cannot be read"):
        Trait.load(tmp_path / "absent.json")


def test_questions_that_name_the_trait_are_known_by_related_words() -> None:
    trait = replace(shipped_trait("sycophantic"), name="sycophancy", adjective="sycophantic")
    assert trait.named_in("Is SYCOPHANCY good?")
    assert trait.named_in("Do sycophants lie?")
    assert not trait.named_in("Is a psychologist a doctor?")
    pirate = replace(trait, name="speaks like a pirate", adjective="pirate-like")
    assert pirate.named_in("What do pirates eat?")
    assert not pirate.named_in("What is it like to speak in public?")
    assert not shipped_trait("formal").named_in("Which form do I fill in?")
