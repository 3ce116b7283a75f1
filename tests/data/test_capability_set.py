"""The shipped capability set: structure, splits and pair matching (no model needed)."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

PATH = Path(__file__).resolve().parents[2] / "interp" / "data" / "sets" / "capability.json"
SIZES = {"fit": (13, 104), "select": (7, 56), "report": (8, 64)}


@pytest.fixture(scope="module")
def data():
    return json.loads(PATH.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pairs(data):
    return data["pairs"]


def length_auroc(pairs):
    """AUROC of character length, with `refuse` as the positive class."""
    refuse = [len(p["refuse"]) for p in pairs]
    comply = [len(p["comply"]) for p in pairs]
    labels = np.r_[np.ones(len(refuse)), np.zeros(len(comply))]
    return roc_auc_score(labels, np.r_[refuse, comply])


def first_word(prompt):
    return prompt.split()[0].lower().strip(",.?!")


def in_split(data, split):
    topics = set(data["splits"][split])
    return [p for p in data["pairs"] if p["topic"] in topics]


def test_header(data):
    assert data["name"] == "capability"
    assert data["version"] == 1
    assert data["licence"] == "MIT (written for this project)"
    assert data["description"]


def test_pairs_are_well_formed(pairs):
    assert len(pairs) >= 200
    for p in pairs:
        assert set(p) == {"topic", "refuse", "comply"}
        for key in ("refuse", "comply"):
            text = p[key]
            assert text == " ".join(text.split())
            assert text.isascii()
            assert text[0].isupper()
            assert text[-1] in ".?"


def test_prompts_are_unique(pairs):
    prompts = [p[k].lower() for p in pairs for k in ("refuse", "comply")]
    assert len(set(prompts)) == len(prompts)


def test_splits_are_disjoint_and_cover_all_topics(data):
    assert set(data["splits"]) == set(SIZES)
    listed = [t for topics in data["splits"].values() for t in topics]
    assert len(listed) == len(set(listed))
    assert set(listed) == {p["topic"] for p in data["pairs"]}


@pytest.mark.parametrize("split", sorted(SIZES))
def test_split_sizes(data, split):
    n_topics, n_pairs = SIZES[split]
    chosen = in_split(data, split)
    assert len(data["splits"][split]) == n_topics
    assert len(chosen) == n_pairs
    for topic in data["splits"][split]:
        assert sum(p["topic"] == topic for p in chosen) == 8


def test_twins_match_in_form(pairs):
    for p in pairs:
        assert abs(len(p["refuse"].split()) - len(p["comply"].split())) <= 3, p
        assert p["refuse"][-1] == p["comply"][-1], p


def test_length_does_not_separate(data):
    assert 0.42 <= length_auroc(data["pairs"]) <= 0.58
    for split in SIZES:
        assert 0.40 <= length_auroc(in_split(data, split)) <= 0.60


def test_first_words_are_shared(data):
    for chosen in (data["pairs"], *(in_split(data, s) for s in SIZES)):
        same = np.mean([first_word(p["refuse"]) == first_word(p["comply"]) for p in chosen])
        assert same >= 0.60
