"""A paper outside this package is a recipe, figures and a notebook, and every command knows it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toolbox import measured, random_direction

import interp
from interp.cli import main
from interp.errors import InterpWarning, RecordError
from interp.export import gate
from interp.papers import cards, load_paper, papers
from interp.records import FigureRecord
from interp.source import forget

TOY = Path(__file__).parent / "toy"
MODEL = ("--model", "tiny:llama")


def run(root: Path, *words: str) -> int:
    """Exit code of a command that knows the paper in ``root`` by its path."""
    where = ("--paper-path", str(root / "toy_paper"))
    if words[0] != "export":
        where += ("--folder", str(root / "figures"))
    with pytest.raises(SystemExit) as done:
        main([*words, *where])
    return int(done.value.code or 0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the toy paper, a directory for pages and one for cards."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(TOY, folder, dirs_exist_ok=True)
    (folder / "papers").mkdir()
    (folder / "figures").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(folder / "cache"))
        patch.setenv("TOY_STEPS", str(folder / "steps"))
        patch.setattr(sys, "path", [*sys.path])
        yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_paper"]:
        del sys.modules[name]
    forget()


def test_every_command_lists_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "papers.json"
    assert run(root, "papers", "toy", "--check", "--json", str(file)) == 1
    (about,) = json.loads(file.read_text())
    assert (about["key"], about["figures"]) == ("toy", ["learning", "blocks", "large"])
    assert "toy/learning has no card: interp run toy --figure learning" in about["missing"]
    assert any("there is no page" in line for line in about["missing"])
    assert not any("notebook" in line for line in about["missing"])
    assert run(root, "figures") == 0
    assert "interp run toy --figure blocks" in capsys.readouterr().out
    assert run(root, "run", "toy", "--figure", "none") == 1
    assert "toy has no figure 'none'; it has learning, blocks, large" in capsys.readouterr().err
    assert run(root, "run", "toy", "--figure", "large") == 0
    assert "| not run here: needs a large model |" in (root / "papers/toy.md").read_text()


@pytest.mark.slow
def test_its_figures_are_measured_drawn_and_checked(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(root, "run", "toy", *MODEL) == 0
    found = cards(root / "figures")
    assert {key: card.verdict for key, card in found.items()} == {
        "toy/learning": "shape reproduced",
        "toy/blocks": "shape reproduced",
        "toy/large": "not run here: needs a large model",
    }
    trained = found["toy/blocks"].provenance
    assert trained.model.startswith("toy-")
    assert trained.recipe["taught"]["answer"] == "no"
    (root / "figures/toy/blocks.svg").unlink()
    assert run(root, "papers", "toy", "--check") == 1
    assert "toy/blocks has no picture: interp draw toy/blocks" in capsys.readouterr().out
    assert run(root, "draw", "toy/blocks") == 0
    assert run(root, "papers", "toy", "--check") == 0

    words = ("run", "toy", "--figure", "blocks", *MODEL)
    measured_steps = (root / "steps").read_text().split("\n")
    assert run(root, *words) == 0
    assert (root / "steps").read_text().split("\n") == measured_steps, "kept"
    assert codes(root) == {"learning": "same", "blocks": "same", "large": ""}
    assert run(root, *words, "--set", "factor=0.5") == 0
    assert codes(root)["blocks"] == "other recipe"
    figures = root / "toy_paper/figures.py"
    text = figures.read_text()
    figures.write_text(text.replace("Who sings?", "Who speaks?"))
    forget()
    assert codes(root) == {"learning": "changed", "blocks": "changed", "large": ""}
    figures.write_text(text)
    forget()


def codes(root: Path) -> dict[str, str]:
    """What `interp figures` says of the code of each card."""
    assert run(root, "figures", "--json", str(root / "all.json")) == 0
    rows = json.loads((root / "all.json").read_text())
    return {r["key"].partition("/")[2]: r["code"] for r in rows if r["key"].startswith("toy/")}


@pytest.mark.slow
def test_an_edit_of_its_kind_is_proven_by_its_card(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The card is as one of a committed state, whatever this checkout is."""
    assert run(root, "run", "toy", "--figure", "blocks", *MODEL) == 0
    card = FigureRecord.load(root / "figures/toy/blocks.json")
    replace(card, provenance=replace(card.provenance, commit="c0ffee", resumed=())).save(
        tmp_path / "cards"
    )
    lm = interp.open_model("tiny:llama")
    made = lm.to_delta(interp.ablate(lm.writers, random_direction(lm.d_model).vector))
    delta = replace(made, recipe={"method": "toy steering"}, provenance={"seen_prompts": ["0"]})
    interp.export.save_delta(delta, tmp_path / "delta")
    words = ("export", str(tmp_path / "delta"), "--to", "peft", "--base", "tiny:llama",
             "--out", str(tmp_path / "out"))  # fmt: skip
    assert run(root, *words) == 1
    assert "no figure card stands behind edits by toy steering" in capsys.readouterr().err
    assert run(root, *words, "--card", str(tmp_path / "cards")) == 1
    error = capsys.readouterr().err
    assert "was not measured on held-out prompts" in error
    assert "no figure card" not in error
    proof = gate.check(delta, list(cards(tmp_path / "cards").values()), measured(delta))
    assert (proof.unproven, proof.cards[0]["key"]) == (False, "toy/blocks")


@pytest.mark.slow
def test_its_notebook_runs(root: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(root / "notebooks/toy.ipynb", as_version=4)
    place = {"metadata": {"path": str(root / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()
    assert "svg" in str(notebook.cells[-1].outputs)


# --- a kill ------------------------------------------------------------------------------------


def command(root: Path, **environment: str) -> int:
    """Exit code of `interp run` on the toy paper in a process of its own."""
    words = ["run", "toy", "--paper-path", "toy_paper", *MODEL]
    code = f"from interp.cli import main; main({words!r})"
    own = {"INTERP_CACHE": str(root / "cache"), "TOY_STEPS": str(root / "steps")}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | own | environment,
                          capture_output=True, check=False)  # fmt: skip
    return done.returncode


@pytest.mark.slow
def test_a_kill_while_measuring_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    shutil.copytree(TOY, tmp_path, dirs_exist_ok=True)
    steps = tmp_path / "steps"
    assert command(tmp_path, TOY_KILL="block 1") == -signal.SIGKILL
    assert steps.read_text().split("\n") == ["training", "block 0", "block 1", ""]
    first = tmp_path / "figures/toy/learning.json"
    assert FigureRecord.load(first).verdict == "shape reproduced", "finished before the kill"
    assert not (tmp_path / "figures/toy/blocks.json").exists()
    steps.unlink()
    assert command(tmp_path) == 0
    assert steps.read_text().split("\n") == ["block 1", "block 2", ""]
    record = FigureRecord.load(tmp_path / "figures/toy/blocks.json")
    assert [part["step"] for part in record.provenance.resumed] == ["block-0"]
    steps.unlink()
    assert command(tmp_path) == 0
    assert not steps.exists(), "everything was kept"


# --- where papers come from --------------------------------------------------------------------

PLAIN = "from interp.study import Paper\nPAPER = Paper({key!r}, 'A paper', '0000.00000', ())\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``place(package, key)`` writes a paper without figures; returns the directory of its package."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def write(package: str, key: str, text: str = PLAIN) -> Path:
        folder = tmp_path / package
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "paper.py").write_text(text.format(key=key))
        return folder

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(folder: Path, key: str, reference: str) -> None:
    """Declare an entry point, as an installer does, and make the package importable."""
    about = folder / f"{key}_paper-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {key}-paper\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[interp.papers]\n{key} = {reference}\n")
    sys.path.append(str(folder))


def test_an_installed_package_names_its_papers(place: Any, tmp_path: Path) -> None:
    folder = place("elsewhere", "installed")
    install(tmp_path, "installed", "elsewhere.paper:PAPER")
    assert load_paper("installed").title == "A paper"
    assert {"installed", "representation_engineering"} <= papers().keys()
    assert papers([folder]).keys() == papers().keys(), "the same one, named twice"


def test_an_installed_paper_that_is_broken_leaves_the_others(place: Any, tmp_path: Path) -> None:
    place("broken_package", "broken", "import nothing_of_this_name\n")
    install(tmp_path, "broken", "broken_package.paper:PAPER")
    with pytest.warns(InterpWarning, match="broken_package.* cannot be loaded .*nothing_of_this_"):
        assert "broken" not in papers()
    assert load_paper("representation_engineering").key == "representation_engineering"
    with pytest.raises(RecordError, match="cannot be loaded"):
        load_paper("broken")


def test_a_package_inside_another_is_imported_by_its_whole_name(place: Any, tmp_path: Path) -> None:
    folder = place("outer_package/inner", "inner", "from outer_package import NAME\n" + PLAIN)
    (tmp_path / "outer_package/__init__.py").write_text("NAME = 1\n")
    assert load_paper("inner", [folder]).key == "inner"
    assert "outer_package.inner.paper" in sys.modules


def test_what_is_no_paper_is_an_error(place: Any, tmp_path: Path) -> None:
    for package, text, why in (
        ("without_one", "PAPER = 1\n", "is a int, not an interp.study.Paper"),
        ("without_name", "", "cannot be loaded .*no attribute 'PAPER'"),
        ("json", PLAIN, "cannot be loaded|is imported from .*: rename the directory"),
        ("a_twin", PLAIN.replace("{key!r}", "'representation_engineering'"), "two papers have the"),
    ):
        with pytest.raises(RecordError, match=why):
            papers([place(package, "key", text)])
    with pytest.raises(RecordError, match=r"has no paper\.py; give the directory of a package"):
        papers([tmp_path])
    with pytest.raises(RecordError, match=r"no paper 'x'; known: .*--paper-path"):
        load_paper("x")
