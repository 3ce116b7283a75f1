"""heretic 1.4 itself, run as the program it is: its counts beside ours, and its hash of our adapter.

Skipped where heretic is not installed; ``make heretic`` installs it and runs this file alone.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from interp.cli import cli
from interp.export.heretic_program import Program, find
from interp.methods.heretic.opinion import environment

pytestmark = pytest.mark.heretic


@pytest.fixture(scope="module")
def program() -> Program:
    found = find()
    if found is None:
        pytest.skip("heretic is not installed; run: make heretic")
    return found


def interp(*words: str) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def opinion_of(export: Path, base: str, folder: Path, *more: str) -> dict:
    out = folder / "opinion.json"
    interp("verify", export, "--base", base, "--with", "heretic", "--json", out, *more)
    return json.loads(out.read_text())["heretic"]


@pytest.mark.parametrize("to", ["peft", "merged"])
def test_it_counts_and_measures_as_we_do_on_a_tiny_llama(to, program, tmp_path) -> None:
    made, out = tmp_path / "delta", tmp_path / to
    base = "tiny:llama"
    interp("edit", "ablation", "--model", base, "--block", 1, "--first-block", 0,
           "--strength", 1, "--limit", 12, "--out", made)  # fmt: skip
    interp("export", made, "--to", to, "--base", base, "--unproven", "--out", out)
    found = opinion_of(out, base, tmp_path, "--limit", "12", "--tokens", "6")
    assert found["agreement"] == "agree"
    assert found["theirs"]["kl"] > 0.01


def test_it_counts_and_measures_as_we_do_on_smollm2(program, tmp_path) -> None:
    made = tmp_path / "delta"
    interp("edit", "ablation", "--model", "smollm2", "--block", 22, "--first-block", 0,
           "--strength", 1, "--limit", 24, "--out", made)  # fmt: skip
    found = opinion_of(made, "smollm2", tmp_path, "--limit", "16", "--tokens", "16")
    assert found["agreement"] == "agree"
    assert found["ours"]["base_refusals"] > found["ours"]["refusals"]
    assert found["theirs"]["kl"] == pytest.approx(found["ours"]["kl"], abs=6e-5, rel=1e-3)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("jamba", "No abliterable modules found in layer"),
        ("mamba", "has no attribute 'model'"),
    ],
)
def test_what_it_cannot_load_it_says_itself(model_type, words, program, tmp_path) -> None:
    made, base = tmp_path / "delta", f"tiny:{model_type}"
    interp("edit", "ablation", "--model", base, "--block", 1, "--first-block", 0,
           "--strength", 1, "--limit", 8, "--out", made)  # fmt: skip
    found = opinion_of(made, base, tmp_path, "--limit", "8", "--tokens", "4")
    assert (found["theirs"], found["agreement"]) == (None, "no opinion")
    assert words in found["message"]
    assert found["ours"]["n"] == 8


@pytest.mark.parametrize("row_normalization", ["none", "full"])
def test_it_reproduces_our_adapter_to_the_last_bit(row_normalization, program, tmp_path) -> None:
    """Its menu is answered through its notebook mode, which reads numbers from standard input."""
    made, out = tmp_path / "delta", tmp_path / "heretic"
    interp("heretic", "--model", "tiny:llama", "--kernel", "1.2,1,0.5,2", "--kernel",
           "mlp.down_proj=0.8,0,0.1,1", "--direction-index", 0.4, "--limit", 20, "--tokens", 4,
           "--row-normalization", row_normalization, "--seed", 3, "--out", made)  # fmt: skip
    interp("export", made, "--to", "heretic", "--base", "tiny:llama", "--unproven", "--out", out)
    # Equal bits want sums split over equally many threads.
    more = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [str(program.executable), "--reproduce", "reproduce.json"],
        cwd=out,
        env=environment(offline=True) | more,
        input=f"1\n{tmp_path / 'theirs'}\n5\n",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "adapter_model.safetensors: Hash matches" in done.stdout, done.stdout + done.stderr
    ours, theirs = (p / "adapter_model.safetensors" for p in (out, tmp_path / "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()
