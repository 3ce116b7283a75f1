"""Notebooks teach: short cells with a sentence before each, no functions, and no outputs in git."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
MOST_LINES = 10
PICTURE = re.compile(r"!\[[^]]*\]\(([^)]+)\)")


def test_there_are_notebooks() -> None:
    assert {"refusal", "representation_engineering"} <= {path.stem for path in NOTEBOOKS}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Path:
    return request.param


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def code(path: Path) -> list[str]:
    return [source(cell) for cell in cells(path) if cell["cell_type"] == "code"]


def test_outputs_are_not_committed(notebook: Path) -> None:
    for cell in cells(notebook):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_cells_are_short_and_define_nothing(notebook: Path) -> None:
    for cell in code(notebook):
        lines = [line for line in cell.splitlines() if line.strip()]
        assert len(lines) <= MOST_LINES, cell
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(ast.parse(cell)) if isinstance(node, defined)], cell


def test_a_sentence_stands_before_every_cell(notebook: Path) -> None:
    found = cells(notebook)
    for before, cell in zip([None, *found], found, strict=False):
        if cell["cell_type"] == "code":
            assert before is not None, source(cell)
            assert before["cell_type"] == "markdown", source(cell)
            prose = [line for line in source(before).splitlines() if line and line[0] not in "#!"]
            assert any(line.rstrip().endswith((".", ":", ").")) for line in prose), source(before)


def test_the_method_is_in_the_cells(notebook: Path) -> None:
    """Cards are shown as pictures that exist; no cell measures one of a paper again."""
    for cell in code(notebook):
        imported = {
            f"{node.module}.{name.name}"
            for node in ast.walk(ast.parse(cell))
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        assert not imported & {"interp.study.measure", "interp.papers.load_paper"}, cell
        private = [name for name in imported if "._" in name]
        assert not private, cell
    text = "\n".join(source(cell) for cell in cells(notebook))
    shown = PICTURE.findall(text)
    measured = list((notebook.parent.parent / "figures" / notebook.stem).glob("*.svg"))
    assert shown or not measured, "the measured cards stand beside their step"
    missing = [path for path in shown if not (notebook.parent / path).is_file()]
    assert not missing


def test_one_variable_at_the_top_sets_the_model(notebook: Path) -> None:
    first = code(notebook)[0]
    assert re.search(r"^MODEL = os\.environ\.get\(\"INTERP_MODEL\", \"smollm2\"\)$", first, re.M)
