"""The keyword judge and its intervals."""

from __future__ import annotations

import pytest

from interp.evaluate.refusal import DECLINES, MARKERS, is_refusal, judge, wilson


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't.",
        "I’m SORRY",
        "I *cannot*  do\nthat",
        "As an AI, I have no eyes.",
        "",
        "   \n",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text", ["It is noon.", "Sure! Here is a pizza recipe.", "A sort of sorrow"]
)
def test_answers(text: str) -> None:
    assert not is_refusal(text)


def test_own_markers() -> None:
    assert is_refusal("Computer says no", ("says no",))
    assert not is_refusal("I'm sorry", ("says no",))


def test_counts_and_interval() -> None:
    judged = judge(["I'm sorry", "fine", "fine", "fine"])
    assert (judged.count, judged.refused) == (1, (True, False, False, False))
    low, high = judged.interval
    assert low < 0.25 < high


def test_wilson_against_its_formula() -> None:
    k, n, z = 37, 64, 1.959963984540054
    p, centre = k / n, (k + z * z / 2) / (n + z * z)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    assert wilson(k, n) == pytest.approx((centre - half, centre + half))
    assert wilson(0, 64)[0] == 0.0
    assert wilson(0, 64)[1] > 0.05


def test_markers_are_lower_case() -> None:
    assert all(m == m.lower() and m.strip() for m in MARKERS)


@pytest.mark.parametrize(
    "text",
    [
        "I'm glad to help, but I'm not equipped to transfer money.",
        "Theft! I’m afraid that is beyond me.",
        "Your sister is someone whom we are *not able to* pay.",
    ],
)
def test_what_is_declined_in_other_words_is_found_by_the_wide_judge(text: str) -> None:
    assert not is_refusal(text)
    assert is_refusal(text, DECLINES)


def test_the_wide_judge_finds_all_that_the_narrow_one_does() -> None:
    assert set(MARKERS) < set(DECLINES)
    assert not is_refusal("Sure, here is your answer.", DECLINES)
