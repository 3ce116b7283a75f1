"""The README says what the code and the figures say."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from interp.backends import BACKENDS
from interp.backends.support import SUPPORT
from interp.cli import COMMANDS, main
from interp.models import known_model_types

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name}.*?-->\n(.*?)<!-- end of {name} -->", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_table_is_the_figure() -> None:
    record = json.loads((ROOT / "figures/refusal/report.json").read_text())
    rows, n = record["series"]["rows"], record["n"]
    table = block("table")
    for row in rows:
        refused, over, first, later, nll = row["values"]
        line = next(line for line in table.splitlines() if line.startswith(f"| {row['label']} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        assert float(cells[0].split("/")[0]) / n["refuse"] * 100 == pytest.approx(refused)
        assert float(cells[2].split("/")[0]) / n["comply"] * 100 == pytest.approx(over)
        assert [float(c) for c in cells[3:]] == pytest.approx([first, later, nll], abs=6e-4)


def test_the_best_edits_are_the_bar() -> None:
    record = json.loads((ROOT / "figures/representation_engineering/bar.json").read_text())
    rows = {row["label"]: row["values"] for row in record["series"]["rows"]}
    refuse, comply = record["n"]["refuse"], record["n"]["comply"]
    lines = [line for line in block("best").splitlines() if line.startswith("| ")][1:]
    assert len(lines) >= 4
    for line in lines:
        label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        refused, declined, over, first, later, nll = rows[label][:6]
        counts = [round(share * n / 100) for share, n in
                  ((refused, refuse), (declined, refuse), (over, comply))]  # fmt: skip
        sides = [f"{c}/{n}" for c, n in zip(counts, (refuse, refuse, comply), strict=True)]
        assert cells[:3] == sides
        assert cells[3:5] == ["–" if v is None else f"{v:.4f}" for v in (first, later)]
        assert cells[5] == f"{nll:.3f}"


def test_the_speed_of_a_merge_is_the_benchmarks() -> None:
    measured = json.loads((ROOT / "benchmarks/results/merge.json").read_text())
    merge, slow = (
        measured["variants"][name] for name in ("streamed merge", "transformers: load, edit, save")
    )
    pattern = (
        r"checkpoint of (N) GB takes ×(N) the time of copying its files "
        r"\([^()]*quartiles ×(N)–(N)\); "
        r"loading, editing and saving it through transformers takes ×(N)\. "
        r"Peak memory is that of the imports and (N) MB more \((N) MB\), against (N) MB"
    )
    found = re.search(pattern.replace("N", r"\d+(?:\.\d+)?"), " ".join(block("speed").split()))
    assert found is not None, "the sentence is not as this test reads it"
    values = [
        measured["checkpoint_gb"],
        *(merge[k] for k in ("ratio", "ratio_low", "ratio_high")),
        slow["ratio"],
        merge["peak_mb"] - merge["before_mb"],
        merge["peak_mb"],
        slow["peak_mb"],
    ]
    decimals = [len(text.partition(".")[2]) for text in found.groups()]
    assert list(found.groups()) == [f"{v:.{d}f}" for v, d in zip(values, decimals, strict=True)]


def test_every_family_is_in_the_support_table() -> None:
    rows = {
        name: [cell.strip() for cell in line.strip("|").split("|")][1:]
        for line in block("support").splitlines()[2:]
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert sorted(rows) == known_model_types()
    assert f"of {len(rows)} transformer" in README
    for name, cells in rows.items():
        assert cells == ["yes" if name in SUPPORT[b] else "no" for b in SUPPORT]


def test_every_command_is_shown() -> None:
    for name in COMMANDS:
        assert f"interp {name}" in README


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run_first_example(opening: str, to: str = "peft", blocks: Mapping[str, str] = {}) -> str:
    """The verdict of the export in the example, run with another model, format and blocks."""
    code = EXAMPLES[0].replace('"smollm2"', opening).replace('"peft"', repr(to))
    for place, other in blocks.items():
        code = code.replace(place, other)
    made: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), made)
    return made["receipt"].verdict


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", ["llama", "mamba", "jamba", "qwen3_moe"])
def test_the_first_example_runs_on_every_backend(
    model: str,
    backend: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On tiny models, which have three blocks or four. LoRA has no biases, which these Mamba layers have."""
    monkeypatch.chdir(tmp_path)
    opening, to = (
        f'"tiny:{model}", backend="{backend}"',
        "merged" if model in ("mamba", "jamba") else "peft",
    )
    assert run_first_example(opening, to, {"[12]": "[1]", "[13": "[2"}) == "verified"
    assert "('strength', 'prompt', 'sample')" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_example_runs_as_written(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_first_example(f'"smollm2", backend="{backend}"') == "verified"


@pytest.mark.slow
def test_the_libraries_behind_a_model_are_to_hand(tmp_path: Path) -> None:
    """From a file: nnsight reads the source of a trace."""
    opening = 'import interp\nlm = interp.open_model("tiny:llama")\n'
    script = tmp_path / "example.py"
    script.write_text(opening + EXAMPLES[1].replace("smollm2", "tiny:llama"))
    runpy.run_path(str(script))


@pytest.mark.slow
def test_the_python_example_runs(
    chat_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[2].replace('"smollm2"', repr(str(chat_dir))), "README.md", "exec"), {})
    assert "of 8 refused" in capsys.readouterr().out
    assert (tmp_path / "out/adapter/adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_training_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    example = next(text for text in EXAMPLES if "interp.training" in text)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["run"].adapter
    assert (tmp_path / "runs").is_dir()


@pytest.mark.slow
def test_the_example_of_judges_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    example = next(text for text in EXAMPLES if "interp.judges" in text)
    exec(compile(example.replace("smollm2", "tiny:llama"), "README.md", "exec"), names)
    assert "likelihood ratio: AUC" in capsys.readouterr().out
    assert len(names["scores"]) == 4  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_paper_of_ones_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    example = next(text for text in EXAMPLES if "PAPER = Paper" in text)
    (tmp_path / "my_paper").mkdir()
    (tmp_path / "my_paper/paper.py").write_text(example)
    (commands,) = re.findall(r"```\n(interp run my_paper.*?)```", README, re.DOTALL)
    lines = [shlex.split(line, comments=True)[1:] for line in commands.splitlines()]
    for words, code in ((lines[0] + ["--model", "tiny:llama"], 0), (lines[1], 1)):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert (done.value.code or 0) == code
    card = json.loads((tmp_path / "figures/my_paper/norms.json").read_text())
    assert card["provenance"]["recipe"] == {"prompts": ["Who are you?"]}
    assert (tmp_path / "figures/my_paper/norms.svg").is_file()


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
