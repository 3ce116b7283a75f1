"""Traits that a model writes: what is repaired, what is asked for again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import interp
from interp import LM
from interp.errors import PersonaError
from interp.methods.persona_vectors import PersonaVectorExtractor, shipped_trait
from interp.methods.persona_vectors.generation import LocalWriter, from_template, generated
from interp.study import Study


class Script:
    """A writer whose replies are given; keeps what it was asked."""

    name = "script"

    def __init__(self, *replies: str) -> None:
        self.replies, self.requests = replies, []

    def write(self, request: str, attempt: int) -> str:
        self.requests.append(request)
        return self.replies[min(attempt, len(self.replies) - 1)]


def content(**changes: Any) -> dict[str, Any]:
    whole = {
        "adjective": "sycophantic",
        "opposite": "frank",
        "instruction": [{"pos": f"flatter {i}", "neg": f"be frank {i}"} for i in range(5)],
        "questions": [f"what is number {i}?" for i in range(40)],
        "criterion": "It agrees with all.",
    }
    return whole | changes


def reply(**changes: Any) -> str:
    return json.dumps(content(**changes))


def test_a_whole_reply_becomes_a_trait() -> None:
    trait = generated(Script(reply()), "sycophancy", "agrees with all")
    assert trait.system(0, positive=True) == "You are a sycophantic assistant. flatter 0"
    assert trait.system(4, positive=False) == "You are a frank assistant. be frank 4"
    assert len(trait.questions) == len(trait.evaluation_questions) == 20
    assert "It agrees with all." in trait.eval_prompt
    assert (trait.made_by, trait.description, trait.score) == ("script", "agrees with all", None)


@pytest.mark.parametrize(
    "text",
    [
        f"Sure, here it is:\n```json\n{reply()}\n```\nAnything {{else}}?",
        f"<think>a {{brace}}</think>{reply()}",
        reply().replace("]", ",]").replace("}", ",}"),
        reply(instruction=[[f"flatter {i}", f"be frank {i}"] for i in range(5)]),
        reply(questions=[f"what is number {i}?" for i in range(60)], more=[1]),
    ],
)
def test_a_reply_is_repaired_where_its_meaning_is_plain(text: str) -> None:
    writer = Script(text)
    assert generated(writer, "sycophancy") == generated(Script(reply()), "sycophancy")
    assert len(writer.requests) == 1


def test_what_is_missing_is_asked_for_again() -> None:
    first = reply(
        questions=[*(f"what is number {i}?" for i in range(30)), "WHAT is number 3", "Is sycophancy bad?",
                   "Who are sycophants?", " ", 7, "\ud83d"],
        instruction=[{"pos": "flatter", "neg": "be frank"}, {"pos": "Flatter!", "neg": "no"},
                     {"pos": "x"}, "y", {"pos": "same", "neg": "Same."}],
    )  # fmt: skip
    writer = Script(first, reply())
    trait = generated(writer, "sycophancy")
    assert "30" not in writer.requests[0]
    assert "10 different everyday questions" in writer.requests[1]
    assert "a list of 4 objects" in writer.requests[1]
    assert "- what is number 29?" in writer.requests[1]
    assert trait.instructions[0] == ("flatter", "be frank")
    assert {*trait.questions, *trait.evaluation_questions} == {
        f"what is number {i}?" for i in range(40)
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I would rather not.", "3 replies that are no JSON object"),
        ("[" * 100_000, "3 replies that are no JSON object"),
        ("{" * 10, "3 replies that are no JSON object"),
        ("{}", "too few texts"),
        (reply(questions="many"), "5 of 5 pairs of instructions and 0 of 40 questions"),
        (reply(questions=["Why so sycophantic?"] * 40), "120 questions that name the trait"),
        (reply(questions=["Why?"] * 40), "119 questions that were there before"),
        (reply(instruction=[{"pos": "a", "neg": "A"}] * 5), "0 of 5 pairs"),
    ],
)
def test_bad_replies_are_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(PersonaError, match=why):
        generated(Script(text), "sycophancy")


def test_fixed_sentences_make_a_trait_of_any_words() -> None:
    trait = from_template("speaks like a pirate", "Arr, matey.")
    assert len(trait.instructions) == 5
    assert "speaks like a pirate, which means: Arr, matey" in trait.system(0, positive=True)
    assert trait.system(0, positive=False).startswith(
        "You are a helpful assistant. In every answer"
    )
    assert trait.questions == shipped_trait("exclamatory").questions
    with pytest.raises(PersonaError, match="needs a name"):
        from_template(" ")


def test_a_description_becomes_a_trait_by_the_generator(chat_dir: Path, tmp_path: Path) -> None:
    lm = interp.open_model(str(chat_dir))

    def described(name: str, generator: Any = None, about: str = "", lm: LM = lm) -> Any:
        return PersonaVectorExtractor(lm, generator=generator).describe(name, about)

    assert described("terse") == shipped_trait("terse")
    assert described("pirate", "template").made_by == "template"
    assert described("sycophancy", Script(reply())).made_by == "script"
    with pytest.raises(PersonaError, match="no shipped trait 'pirate'"):
        described("pirate", "shipped")
    with pytest.raises(PersonaError, match="no generator 'x'; there are shipped, local, template"):
        described("pirate", "x")
    writer = Script(reply())
    for _ in range(2):
        study = Study.of(lm, kept=tmp_path)
        made = PersonaVectorExtractor(lm, generator=writer, study=study).describe("sycophancy")
        assert made == generated(Script(reply()), "sycophancy")
    assert len(writer.requests) == 1


def test_a_local_model_that_cannot_write_a_trait_is_named(chat_dir: Path) -> None:
    lm = interp.open_model(str(chat_dir))
    with pytest.raises(PersonaError, match="the local chat model gave 0 of 5 pairs"):
        generated(LocalWriter(lm, tokens=8), "pirate")
