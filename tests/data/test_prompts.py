"""Where prompts come from, and that bad sources give one clear error."""

from __future__ import annotations

import builtins
import itertools
import re
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.data import (
    fit_passages,
    is_shipped,
    load_class,
    load_pairs,
    neutral_passages,
    shipped_sets,
)
from interp.data.prompts import PromptSet
from interp.errors import InterpWarning, PromptError


def test_shipped_splits_are_disjoint_and_hashed() -> None:
    pairs = load_pairs()
    parts = [set(pairs.side("refuse", split).prompts) for split in ("fit", "select", "report")]
    assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])
    assert set(pairs.side("refuse", "all").prompts) == set.union(*parts)
    assert len(pairs.sha256) == 64


def test_a_class_can_name_its_split() -> None:
    assert load_class("capability:fit", "comply") == load_class("capability", "comply", split="fit")
    assert len(load_class("capability", "refuse", limit=5)) == 5


def test_text_file_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\n\n  two  \none\n", encoding="utf-8")
    with pytest.warns(InterpWarning, match="1 of 3 prompts left out as repeats"):
        assert load_class(str(path), "refuse").prompts == ("one", "two")


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ('{"prompt": "a"}\n{"prompt": "b"}\n', ""),
        ('{"x": "a"}\n\n{"x": "b"}\n', "#x"),
        ('"a"\n"b"\n', ""),
    ],
)
def test_jsonl_file(tmp_path: Path, text: str, column: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8")
    assert load_class(f"{path}{column}", "refuse").prompts == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", b"\n\n", "no prompts"),
        ("p.txt", b"\xff\xfe\x00", "UTF-8"),
        ("p.jsonl", b'{"a": 1', "line 1 is not JSON"),
        ("p.jsonl", b'{"a": 1}\n', "columns: a"),
        ("p.jsonl", b"[1]\n", "JSON object"),
        ("p.csv", b"a,b\n", "no rows below its first line, which names columns: a, b"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=says):
        load_class(str(tmp_path / name), "refuse")


@pytest.mark.parametrize("name", ["nothing.txt", "capability:nosplit", "nonsense"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(PromptError):
        load_class(name, "refuse")


def test_shipped_sets_are_joined_where_they_have_the_split() -> None:
    both = load_class("capability+broad", "comply", split="fit")
    parts = [load_class(f"{name}:fit", "comply") for name in ("capability", "broad")]
    assert both.prompts == parts[0].prompts + parts[1].prompts
    assert both.source == "capability:fit (comply) + broad:fit (comply)"
    alone = load_class("capability+broad", "comply", split="report")
    assert alone == load_class("capability:report", "comply")
    assert is_shipped("capability+broad:fit")
    assert not is_shipped("capability+mine.txt")
    with pytest.raises(PromptError, match="broad has no split 'report'; use fit, select or all"):
        load_class("broad", "comply", split="report")
    with pytest.raises(PromptError, match="no split 'x'"):
        load_class("capability:x+broad:x", "comply")


def test_unknown_set_names_the_shipped_ones() -> None:
    with pytest.raises(PromptError, match=shipped_sets()[0]):
        load_pairs("nope")


def test_hub_data_set_by_id_split_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(repo: str, split: str) -> list[dict[str, str]]:
        asked.append((repo, split))
        return [{"text": "a", "other": "b"}]

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert load_class("org/name:test#other", "refuse").prompts == ("b",)
    assert load_class("org/name", "refuse").prompts == ("a",)
    assert asked == [("org/name", "test"), ("org/name", "train")]


def test_hub_failure_is_one_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(repo: str, split: str) -> None:
        raise ConnectionError("no route")

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    with pytest.raises(PromptError, match="hf download --repo-type dataset org/name"):
        load_class("org/name", "refuse")


def test_hub_without_the_library_names_the_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: object, **kw: object) -> object:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **kw)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(PromptError, match="pip install datasets"):
        load_class("org/name", "refuse")


@pytest.mark.slow
@given(st.sets(st.text("abcdefgh", min_size=1), min_size=4, max_size=40))
def test_halves_partition_and_do_not_depend_on_order(prompts: set[str]) -> None:
    forward = PromptSet(tuple(sorted(prompts)), "x").halves()
    backward = PromptSet(tuple(sorted(prompts, reverse=True)), "x").halves()
    assert set(forward[0].prompts) | set(forward[1].prompts) == prompts
    assert not set(forward[0].prompts) & set(forward[1].prompts)
    assert set(forward[0].prompts) == set(backward[0].prompts)
    assert min(len(part) for part in forward) >= 1


def test_too_few_prompts_to_cut() -> None:
    with pytest.raises(PromptError, match="at least 4"):
        PromptSet(("a", "b"), "x").halves()


def test_neutral_text_is_there() -> None:
    assert len(neutral_passages()) >= 20
    assert all(len(p.split()) > 40 for p in neutral_passages())


def test_prose_for_fits_is_none_of_that_for_report() -> None:
    """No five words in a row are in both."""

    def runs(passages: tuple[str, ...]) -> set[tuple[str, ...]]:
        words = (re.findall(r"[a-z']+", p.lower()) for p in passages)
        return {tuple(w[i : i + 5]) for w in words for i in range(len(w) - 4)}

    assert len(fit_passages()) == len(set(fit_passages())) > 50
    assert all(len(p.split()) > 40 for p in fit_passages())
    assert not runs(fit_passages()) & runs(neutral_passages())


@given(n=st.integers(1, 60), most=st.integers(1, 70))
def test_some_prompts_are_spread_over_all(n: int, most: int) -> None:
    whole = PromptSet(tuple(f"{i}" for i in range(n)), "s")
    places = [int(p) for p in whole.spread(most).prompts]
    assert len(places) == min(n, most)
    steps = {b - a for a, b in itertools.pairwise([*places, n])}
    assert places[0] == 0
    assert max(steps) - min(steps) <= 1
