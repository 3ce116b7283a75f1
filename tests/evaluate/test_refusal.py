"""The keyword judge and its intervals."""

from __future__ import annotations

import pytest

from interp.evaluate.refusal import MARKERS, is_refusal, judge, wilson


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
