"""The shipped broad pairs: structure, matching, and that nothing held out elsewhere is in them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from interp.data import load_pairs

FOLDER = Path(__file__).resolve().parents[2] / "interp" / "data" / "sets"
STYLES = ["plain"] * 4 + ["polite"] * 2 + ["indirect", "casual"]
SIDES = ("refuse", "comply")
COMMON_WORDS = (
    "the a an is are of to in on for me my i you can please what how do did does tell who which it be "
    "and or this that now today at with was have has your from"
)
COMMON = frozenset(COMMON_WORDS.split())
NEAR = 0.6
"""Share of words in common from which two prompts count as the same question."""


def read(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, str]]:
    return read("broad")["pairs"]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z']+", text.lower())) - COMMON


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b) if len(a) > 1 else 0.0


def test_every_topic_has_the_same_styles_and_one_split(pairs: list[dict[str, str]]) -> None:
    content = read("broad")
    listed = [t for topics in content["splits"].values() for t in topics]
    assert Counter(listed) == Counter({p["topic"] for p in pairs})
    for topic in listed:
        assert [p["style"] for p in pairs if p["topic"] == topic] == STYLES
    loaded = load_pairs("broad")
    assert {name: len(loaded.side("refuse", name)) for name in loaded.splits} == {
        "fit": 736,
        "select": 64,
    }


def test_prompts_are_tidy_and_occur_once(pairs: list[dict[str, str]]) -> None:
    texts = [p[side] for p in pairs for side in SIDES]
    assert [t for t, n in Counter(t.lower() for t in texts).items() if n > 1] == []
    for text in texts:
        assert text.isascii()
        assert text == " ".join(text.split())


def test_no_topic_and_no_prompt_is_one_of_the_other_sets(pairs: list[dict[str, str]]) -> None:
    """So that these pairs may join a fit whatever is held out of the others."""
    others = [*read("capability")["pairs"], *read("narrowness")["pairs"]]
    assert not {p["topic"] for p in pairs} & {p["topic"] for p in others}
    held = [words(p[side]) for p in others for side in SIDES]
    own = {p[side]: words(p[side]) for p in pairs for side in SIDES}
    near = [text for text, a in own.items() if any(overlap(a, other) >= NEAR for other in held)]
    assert near == []


def test_length_tells_nothing(pairs: list[dict[str, str]]) -> None:
    lengths = {side: [len(p[side]) for p in pairs] for side in SIDES}
    labels = np.r_[np.ones(len(pairs)), np.zeros(len(pairs))]
    assert abs(roc_auc_score(labels, lengths["refuse"] + lengths["comply"]) - 0.5) < 0.06
    gaps = [abs(len(p["refuse"].split()) - len(p["comply"].split())) for p in pairs]
    assert max(gaps) <= 3
