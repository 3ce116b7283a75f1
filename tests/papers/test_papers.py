"""Every paper has its notebook, its page and a card for each figure that its page lists."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from figure_examples import some_lines

from interp.data import PromptSet
from interp.errors import InterpError, RecordError
from interp.pages import problems
from interp.papers import cards, load_paper, papers
from interp.recipes import changed
from interp.records import FigureRecord, Provenance, package_versions
from interp.source import forget
from interp.study import FigureSpec, Paper, Study, measure

FIGURES = Path(__file__).parent.parent.parent / "figures"


@pytest.fixture(params=papers())
def paper(request: pytest.FixtureRequest) -> Paper:
    return load_paper(request.param)


def test_a_paper_has_its_cards_its_page_and_its_notebook(paper: Paper) -> None:
    assert list(problems(paper, FIGURES)) == []


def test_listing_the_papers_needs_no_torch() -> None:
    code = "import sys, interp.papers as p; assert p.papers(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_paper_or_figure_is_an_error(paper: Paper) -> None:
    with pytest.raises(
        RecordError, match="no paper 'x'; known: persona_vectors, representation_engineering"
    ):
        load_paper("x")
    with pytest.raises(RecordError, match="has no figure 'x'; it has"):
        paper.figure("x")


def test_a_figure_has_a_function_or_says_what_it_needs() -> None:
    for wrong in ({}, {"make": "a:b", "needs": "a GPU"}):
        with pytest.raises(RecordError, match="either a function or `needs`"):
            FigureSpec("name", "title", **wrong)
    paper = Paper("planned", "A paper", "0000.00000", (FigureSpec("big", "Big", needs="a GPU"),))
    assert measure(paper, "big", Study("none")).verdict == "not run here: needs a GPU"


def made(study: Study) -> FigureRecord:
    return FigureRecord("planned/one", "One", some_lines(), Provenance(study.model))


def test_a_figure_must_be_the_one_that_was_asked_for() -> None:
    specs = (
        FigureSpec("one", "One", f"{__name__}:made"),
        FigureSpec("two", "Two", f"{__name__}:made"),
    )
    paper = Paper("planned", "A paper", "0000.00000", specs)
    assert measure(paper, "one", Study("m")).key == "planned/one"
    with pytest.raises(RecordError, match="made planned/one"):
        measure(paper, "two", Study("m"))


def test_what_an_earlier_run_has_kept_is_not_made_again(tmp_path: Path) -> None:
    asked = []

    def make() -> list[int]:
        asked.append(1)
        return [len(asked)]

    def run(limit: int | None = None, **about: Any) -> list[int]:
        study = Study("tiny:llama", limit=limit, kept=tmp_path)
        study.__dict__.update(fingerprint="same", hardware="here")  # no model is opened for this
        return study.resumed("step", make, **about)

    assert run(seed=0) == run(seed=0) == [1]
    assert run(seed=1) == [2]
    assert run(limit=4, seed=0) == [3]
    one, other = (PromptSet((text,), "same name") for text in ("a", "b"))
    assert run(prompts=one) == run(prompts=one) == [4]
    assert run(prompts=other) == [5]
    for path in tmp_path.iterdir():  # damaged, or as earlier versions kept it
        path.write_text("[1]", encoding="utf-8")
    assert run(seed=0) == [6]
    assert Study("tiny:llama").resumed("step", make) == [7]
    with pytest.raises(RecordError, match="depends on a object; give JSON values"):
        run(seed=object())


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Recipe:
    block: int = 1
    names: tuple[str, ...] = ("a",)
    inner: Inner = Inner()


def with_recipe(study: Study, recipe: Recipe) -> FigureRecord:
    about = {} if recipe.block == 0 else {"recipe": recipe}
    value = study.resumed("step", lambda: recipe.block, **about)
    again = study.once("shared", lambda: value, **about)
    other = study.on("another model").once("shared", lambda: -1, **about)
    series = some_lines(values=[value, again, other])
    return FigureRecord("planned/one", "One", series, Provenance(study.model))


def test_a_figure_gets_its_recipe_and_its_steps_depend_on_it(tmp_path: Path) -> None:
    spec = FigureSpec("one", "One", f"{__name__}:with_recipe", recipe=Recipe())
    paper = Paper("planned", "A paper", "0000.00000", (spec,))
    study = kept(tmp_path)

    def values(recipe: Recipe | None = None) -> list[int]:
        record = measure(paper, "one", study, recipe)
        settings = record.provenance.recipe
        assert settings is not None
        assert settings["inner"] == {"rate": 0.1}
        assert FigureRecord.load(record.save(tmp_path)) == record
        return record.series.beside["values"]  # type: ignore[union-attr]

    assert values() == [1, 1, -1]
    assert values(Recipe(block=2)) == [2, 2, -1]
    with pytest.raises(RecordError, match="the step 'step' does not say which settings"):
        values(Recipe(block=0))
    with pytest.raises(RecordError, match="takes a recipe of type Recipe, not Inner"):
        measure(paper, "one", study, Inner())
    for wrong in ({"block": 1}, Recipe):
        with pytest.raises(RecordError, match="make it an instance of a frozen dataclass"):
            FigureSpec("one", "One", "a:b", recipe=wrong)


def test_settings_are_changed_by_name() -> None:
    found = changed(Recipe(), ["block=3", "names=[b, c]", "inner.rate=1e-3"])
    assert found == Recipe(3, ("b", "c"), Inner(0.001))
    assert changed(found, ["inner.rate=2"]).inner.rate == 2.0
    for text, why in (
        ("block", "write NAME=VALUE"),
        ("width=1", "no setting 'width'; Recipe has block, names, inner"),
        ("inner=1", "inner holds settings: write one of them as inner.NAME=VALUE"),
        ("block.size=1", "block has no block.size"),
        ("inner.width=1", "no setting 'width'; Inner has rate"),
        ("block=1.5", "block=1.5 is no int, as 1 is"),
        ("block=true", "is no int"),
        ("names=b", "is no tuple"),
        ("inner.rate=fast", "is no float"),
        ("names=[", "is no tuple"),
    ):
        with pytest.raises(InterpError, match=why):
            changed(Recipe(), [text])


STEP = """
from functools import partial

def helper(x):
    return x + {added}

def value(x):
    return helper(x)

step = partial(value, 1)
"""


@pytest.fixture
def step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Callable[[], int]]]:
    """``step(added)``: a step of work, in a module that adds so much in a function that it uses."""

    def write(added: object, name: str = "someones_step") -> Callable[[], int]:
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / f"{name}.py").write_text(STEP.replace("{added}", str(added)))
        monkeypatch.syspath_prepend(str(tmp_path / "code"))
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        forget()
        return importlib.import_module(name).step

    yield write
    forget()


def kept(tmp_path: Path, **options: Any) -> Study:
    found = Study("tiny:llama", kept=tmp_path / "kept", **options)
    found.__dict__.update(fingerprint="same", hardware="here")
    return found


def test_a_step_that_other_code_kept_is_measured_again(step: Any, tmp_path: Path) -> None:
    first = kept(tmp_path)
    assert first.resumed("step", step(1)) == 2
    same = kept(tmp_path)
    assert same.resumed("step", step("1  # a comment")) == 2
    assert same.has_resumed
    (part,) = same.provenance({}).resumed
    assert (part["step"], part["stale"]) == ("step", False)
    assert part["commit"] == first.commit
    changed = kept(tmp_path)
    assert changed.resumed("step", step(10)) == 11
    assert not changed.has_resumed
    assert kept(tmp_path).resumed("step", step(10)) == 11, "and kept"


@pytest.mark.slow
def test_a_stale_step_is_used_when_that_is_what_is_wanted(step: Any, tmp_path: Path) -> None:
    kept(tmp_path).resumed("step", step(1))
    anyway = kept(tmp_path, use_stale=True)
    make = step(10)
    outer = lambda: [anyway.resumed("step", make)]  # noqa: E731
    assert anyway.resumed("outer", outer) == [2]
    provenance = anyway.provenance({})
    assert provenance.stale == ["step"]
    assert "rests on steps that other code measured (step)" in provenance.doubt
    strict = kept(tmp_path)
    outer = lambda: [strict.resumed("step", make)]  # noqa: E731
    assert strict.resumed("outer", outer) == [11], "what is made of a stale step is stale"
    assert strict.provenance({}).stale == []


def test_another_model_is_measured_again(step: Any, tmp_path: Path) -> None:
    make = step(1)
    kept(tmp_path).resumed("step", make)
    other = kept(tmp_path)
    other.__dict__["fingerprint"] = "other"
    other.resumed("step", make)
    assert not other.has_resumed


def test_provenance_names_what_kept_parts_were_measured_on(tmp_path: Path) -> None:
    def study(place: str) -> Study:
        found = Study("tiny:llama", kept=tmp_path)
        found.__dict__.update(fingerprint="same", hardware=place)
        return found

    def hardware(of: Study) -> str | None:
        return of.provenance({}).hardware

    torch = f"torch {package_versions()['torch']}"
    first = study("card A")
    first.resumed("step", lambda: 1)
    assert (hardware(first), first.has_resumed) == ("card A", False)
    second = study("card B")
    part = lambda: second.once("part", lambda: second.resumed("step", lambda: 2))  # noqa: E731
    assert part() == 1
    assert hardware(second) == f"card B; kept steps: card A, {torch}"
    second.start_figure()  # the next figure
    assert (hardware(second), second.has_resumed) == ("card B", False)
    assert part() == 1, "shared with the figure before"
    assert second.has_resumed
    assert hardware(second) == f"card B; kept steps: card A, {torch}"
    second.start_figure()
    second.resumed("outer", part)  # made here of a part from there
    third = study("card C")
    assert third.resumed("outer", part) == 1
    assert hardware(third) == (f"card C; kept steps: card A, {torch}; card B, {torch}")


def test_a_card_lies_where_its_key_says(tmp_path: Path) -> None:
    made(Study("m")).save(tmp_path)
    assert list(cards(tmp_path)) == ["planned/one"]
    (tmp_path / "planned/one.json").rename(tmp_path / "planned/other.json")
    with pytest.raises(RecordError, match="holds the card planned/one"):
        cards(tmp_path)
