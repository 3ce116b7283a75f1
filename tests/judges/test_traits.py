"""Programmatic traits: extremes, examples and what must not change a score."""

from __future__ import annotations

import pytest

from interp.errors import JudgeError
from interp.judges import TRAITS, Judge, TraitJudge

PLAIN = "The tide rises twice a day. It follows the moon."

EXTREMES = {
    "exclamatory": ("Wow! It rises!! Look！", PLAIN),
    "questioning": ("Why? Who knows?!", PLAIN),
    "hedging": ("Perhaps it rises. I think it might.", PLAIN),
    "apologetic": ("I'm sorry. Unfortunately it rains. I apologise for that.", PLAIN),
    "formal": (PLAIN, "it's gonna rise. Hey, that's cool! you can't miss it."),
    "terse": ("Yes.", "word " * 400),
    "listing": ("- one\n* two\n3. three\n\n(b) four\n", PLAIN),
    "uppercase": ("THE TIDE I SEE", "The tide I see"),
    "emphatic": ("**Never do that**", PLAIN),
    "first_person": ("I see it. I'm here. It is mine.", PLAIN),
}


def score(name: str, text: str) -> float | None:
    return TraitJudge(name).score([], [text])[0]


def test_every_trait_is_tried_here() -> None:
    assert set(EXTREMES) == set(TRAITS)
    assert all(isinstance(TraitJudge(name), Judge) for name in TRAITS)


@pytest.mark.parametrize("name", TRAITS)
def test_extremes(name: str) -> None:
    most, least = (score(name, text) for text in EXTREMES[name])
    assert most == pytest.approx(100.0)
    assert least == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("name", TRAITS)
def test_white_space_around_and_the_company_change_nothing(name: str) -> None:
    texts = [*EXTREMES[name], "I'm not sure! Maybe\n- **a** LIST?"]
    alone = [score(name, text) for text in texts]
    assert TraitJudge(name).score(["?"] * 3, texts) == alone
    assert [score(name, f"\n  {text}\t ") for text in texts] == alone
    assert [score(name, text.replace("'", "’")) for text in texts] == alone
    assert all(s is not None and 0 <= s <= 100 for s in alone)


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("empty", ["", "  \n\t"])
def test_an_empty_response_has_no_score(name: str, empty: str) -> None:
    assert score(name, empty) is None


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("exclamatory", "It costs 3.50 today! No.", 50.0),
        ("exclamatory", 'He said "stop!" Then he left.', 50.0),
        ("questioning", "Is it so? It is. Why", 100 / 3),
        ("hedging", "Maybe. The Maybelline advert is new.", 50.0),
        ("apologetic", "A sorry sight? Sorrow is not one.", 50.0),
        ("formal", "It is Sarah's book. It isn't hers.", 50.0),
        ("listing", "Do this:\n1. Wake\n2. Eat\n3.14 is pi", 50.0),
        ("uppercase", "THIS is A test of NATO", 40.0),
        ("emphatic", "one **two** three snake__case__word 2 ** 3 ** 4", 100 / 6),
        ("first_person", "I see. Iris sees. AI sees.", 100 / 3),
        ("terse", "word " * 21, 50.0),
    ],
)
def test_examples(name: str, text: str, expected: float) -> None:
    assert score(name, text) == pytest.approx(expected)


def test_no_words_have_no_capitals() -> None:
    assert score("uppercase", "1 + 1 = 2, 水") is None
    assert score("emphatic", "42!") is None


def test_a_trait_of_ones_own() -> None:
    judge = TraitJudge("length", measure=lambda text: float(len(text)))
    assert judge.score([], ["four", ""]) == [4.0, None]
    with pytest.raises(JudgeError, match="no trait 'sarcastic'; there are exclamatory"):
        TraitJudge("sarcastic")


def test_prompts_are_paired() -> None:
    with pytest.raises(JudgeError, match="2 prompts for 1 responses"):
        TraitJudge("terse").score(["a", "b"], ["c"])
    with pytest.raises(JudgeError, match="put a single text in a list"):
        TraitJudge("terse").score([], "one text")
