"""The shipped narrowness pairs and the tone file: structure and language (no model needed)."""

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from interp.data import load_class, load_pairs, shipped_sets

FOLDER = Path(__file__).resolve().parents[2] / "interp" / "data"
KINDS = ("paraphrase", "spanish", "french", "german", "polite", "indirect")
ENGLISH = ("paraphrase", "polite", "indirect")
SIDES = ("refuse", "comply")
SIZE = 32

# Common words that English does not use; every prompt of that language holds at least one.
COMMON_WORDS = {
    "spanish": "al cómo cuál cuántas cuántos de del dime dónde el en es está la las los mi mis para "
    "por que qué se tengo un una",
    "french": "au avec ce de des du en est et il je la le les ma mes mon où pour que quel quelle sur "
    "un une à",
    "german": "auf das dem der des diese du ein eine einem einer eines für habe ich im ist meine meinem "
    "meinen meiner mir mit und vom von warum wie wir wo wurde zu über",
}
LETTERS = {"spanish": "áéíóúüñ¿¡", "french": "àâçéèêëîïôùûœ", "german": "äöüß"}


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data():
    return read("sets/narrowness.json")


@pytest.fixture(scope="module")
def original():
    return read("sets/capability.json")


@pytest.fixture(scope="module")
def tone():
    return read("tone.json")


def in_kind(data, kind):
    topics = set(data["splits"][kind])
    return [p for p in data["pairs"] if p["topic"] in topics]


def prompts(pairs):
    return [p[side] for p in pairs for side in SIDES]


def plain(text):
    """Words in lower case, so that case, spaces and punctuation cannot hide a repeat."""
    return " ".join(re.findall(r"\w+", text.lower()))


def test_header(data):
    assert data["name"] == "narrowness"
    assert data["version"] == 1
    assert data["licence"] == "MIT (written for this project)"
    assert data["description"]


def test_loads_as_a_shipped_set(data):
    assert "narrowness" in shipped_sets()
    pairs = load_pairs("narrowness")
    assert tuple(pairs.splits) == KINDS
    for side in SIDES:
        assert len(pairs.side(side, "all")) == len(data["pairs"])
        for kind in KINDS:
            expected = tuple(p[side] for p in in_kind(data, kind))
            assert load_class(f"narrowness:{kind}", side).prompts == expected


def test_pairs_are_well_formed(data):
    for p in data["pairs"]:
        assert set(p) == {"topic", "refuse", "comply", "from"}
        assert p["refuse"][-1] == p["comply"][-1]
        for text in (p["refuse"], p["comply"]):
            assert text == " ".join(text.split())
            assert text.lstrip("¿")[0].isupper()
            assert text[-1] in ".?"


@pytest.mark.parametrize("kind", KINDS)
def test_counts(data, original, kind):
    chosen = in_kind(data, kind)
    assert len(chosen) == SIZE
    assert data["splits"][kind] == [f"{kind}: {t}" for t in original["splits"]["report"]]
    for topic in data["splits"][kind]:
        assert sum(p["topic"] == topic for p in chosen) == 4


def test_kinds_cover_every_pair_once(data):
    listed = [t for topics in data["splits"].values() for t in topics]
    assert len(listed) == len(set(listed))
    assert set(listed) == {p["topic"] for p in data["pairs"]}
    assert len(data["pairs"]) == SIZE * len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_comes_from_a_report_pair(data, original, kind):
    report = set(original["splits"]["report"])
    chosen = in_kind(data, kind)
    for p in chosen:
        source = original["pairs"][p["from"]]
        assert source["topic"] in report
        assert p["topic"] == f"{kind}: {source['topic']}"
    sources = [p["from"] for p in chosen]
    assert sources == sorted(set(sources))
    assert sources == [p["from"] for p in in_kind(data, KINDS[0])]


def test_no_prompt_is_an_original(data, original):
    held = {plain(text) for text in prompts(original["pairs"])}
    assert not held & {plain(text) for text in prompts(data["pairs"])}


@pytest.mark.parametrize("kind", KINDS)
def test_no_prompt_repeats(data, kind):
    found = [plain(text) for text in prompts(in_kind(data, kind))]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("kind", KINDS)
def test_twins_match_in_length(data, kind):
    chosen = in_kind(data, kind)
    for p in chosen:
        assert abs(len(p["refuse"].split()) - len(p["comply"].split())) <= 3, p
    labels = np.repeat([1, 0], len(chosen))
    lengths = [len(p[side]) for side in SIDES for p in chosen]
    assert 0.40 <= roc_auc_score(labels, lengths) <= 0.60


@pytest.mark.parametrize("kind", KINDS)
def test_first_words_are_shared(data, kind):
    same = [p["refuse"].split()[0] == p["comply"].split()[0] for p in in_kind(data, kind)]
    assert np.mean(same) >= 0.55


@pytest.mark.parametrize("kind", sorted(COMMON_WORDS))
def test_translations_are_in_their_language(data, kind):
    common = set(COMMON_WORDS[kind].split())
    for text in prompts(in_kind(data, kind)):
        assert common & set(re.findall(r"\w+", text.lower())), text
        assert set(re.findall(r"[^\x00-\x7f]", text.lower())) <= set(LETTERS[kind]), text


def test_spanish_questions_open_with_a_mark(data):
    for text in prompts(in_kind(data, "spanish")):
        assert text.startswith("¿") == text.endswith("?"), text


def test_french_question_marks_follow_a_space(data):
    for text in prompts(in_kind(data, "french")):
        assert text.endswith(" ?") == text.endswith("?"), text


@pytest.mark.parametrize("kind", ENGLISH)
def test_english_kinds_are_ascii(data, kind):
    assert all(text.isascii() for text in prompts(in_kind(data, kind)))


def test_polite_prompts_are_longer_and_open_alike(data, original):
    for p in in_kind(data, "polite"):
        for side in SIDES:
            assert len(p[side].split()) >= 2 * len(original["pairs"][p["from"]][side].split())
    openings = {" ".join(p["refuse"].split()[:4]) for p in in_kind(data, "polite")}
    assert len(openings) == SIZE


def test_indirect_prompts_are_statements(data):
    orders = {"please", "tell", "could", "would", "can", "what", "which", "who", "how", "where"}
    for text in prompts(in_kind(data, "indirect")):
        assert text.endswith(".")
        assert text.split()[0].lower() not in orders or text.startswith("What I need"), text


@pytest.mark.parametrize("name", ["sets/narrowness.json", "tone.json"])
def test_text_is_sane_unicode(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text == unicodedata.normalize("NFC", text)
    assert not re.search("\ufffd|Ã|Â|â€|\\\\u", text)
    assert all(c == "\n" or c.isprintable() for c in text)


# ---- tone.json


def test_tone_is_no_shipped_set(tone):
    assert "tone" not in shipped_sets()
    assert tone["name"] == "tone"
    assert tone["licence"] == "MIT (written for this project)"
    assert set(tone) == {
        *("name", "version", "licence", "description"),
        *("personas", "stems", "words", "contexts"),
    }


def test_tone_personas(tone):
    assert set(tone["personas"]) == {"positive", "negative"}
    lengths = [len(text.split()) for text in tone["personas"].values()]
    assert abs(lengths[0] - lengths[1]) <= 2


def test_tone_openings(tone):
    stems, contexts = tone["stems"], tone["contexts"]
    assert (len(stems), len(contexts)) == (20, 8)
    openings = [plain(text) for text in (*stems, *contexts)]
    assert len(set(openings)) == len(openings)
    for one in openings:
        assert not any(other != one and other.startswith(one) for other in openings)
    tonal = {word for words in tone["words"].values() for word in words}
    for text in (*stems, *contexts):
        assert text.isascii()
        assert text == text.strip()
        assert text[-1].isalpha()  # the next token starts a word
        assert not tonal & set(plain(text).split())
    assert all(4 <= len(text.split()) <= 10 for text in stems)


def test_tone_words(tone):
    positive, negative = tone["words"]["positive"], tone["words"]["negative"]
    assert set(tone["words"]) == {"positive", "negative"}
    assert len(positive) == len(negative) == 24
    assert len({*positive, *negative}) == 48
    assert all(re.fullmatch("[a-z]+", word) for word in (*positive, *negative))
