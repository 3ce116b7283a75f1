"""Exports from the command line: ranks, cards, files without a model, heretic with a stand-in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toolbox import card

from interp.cli import main
from interp.export import heretic_program, load_delta
from interp.records import FigureRecord

pytestmark = pytest.mark.slow
"""Several processes or many checkpoints a test: these run in the CI."""


def call(*args: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory, chat_dir: Path) -> Path:
    out = tmp_path_factory.mktemp("edit") / "delta"
    assert call(
        "edit", "ablation", "--model", chat_dir, "--limit", 12, "--block", 1,
        "--first-block", 0, "--strength", 1, "--out", out,
    ) == 0  # fmt: skip
    return out


@pytest.fixture
def failing(tmp_path: Path) -> Path:
    record: FigureRecord = card(2.0)
    return record.save(tmp_path / "cards")


@pytest.mark.slow
def test_an_edit_is_proven_once_it_has_a_card_and_is_measured(
    delta: Path, chat_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    mine = Path(shutil.copytree(delta, tmp_path / "delta"))
    export = ["export", mine, "--to", "merged", "--base", chat_dir, "--out", tmp_path / "m"]
    export += ["--card", card().save(tmp_path)]
    measure = ["measure", "--model", chat_dir, "--limit", 8, "--tokens", 4, "--delta", mine]
    assert call(*export) == 1
    assert call(*measure, "--split", "fit") == 0
    shown = capsys.readouterr().err
    assert "error: the edit was not measured on held-out prompts" in shown
    assert "16 prompts that the edit was fitted or chosen on" in shown
    assert call(*export) == 1, "measured, but on what it was fitted on"
    assert call(*measure) == 0
    good = (mine / "measurement.json").read_bytes()
    assert call(*measure, "--split", "fit") == 0
    assert (mine / "measurement.json").read_bytes() == good, "a worse one does not replace it"
    assert call("verify", mine, "--base", chat_dir) == 0
    capsys.readouterr()
    assert call(*export) == 0
    shown = capsys.readouterr().out
    assert "figure cards: paper/figure (shape reproduced)" in shown
    assert "UNPROVEN" not in shown
    assert "stored as float32: rounding puts back at most 0.00%" in shown
    receipt = json.loads((tmp_path / "m" / "receipt.json").read_text())
    assert (receipt["unproven"], receipt["missing"]) == (False, [])
    assert receipt["measured"]["prompts"]["refuse"]["n"] == 8
    other = card(proves=("another method",)).save(tmp_path / "other")
    assert call(*export[:-1], other, "--overwrite") == 1, "a card of another kind"
    assert call(*export, "--overwrite", "--rank", 1) == 0, "nothing was cut"


def test_a_failing_card_keeps_it_in(
    delta: Path, chat_dir: Path, failing: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["export", delta, "--to", "delta", "--base", chat_dir, "--out", tmp_path / "out"]
    assert call(*words, "--card", failing) == 1
    assert "says 'not reproduced'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert call(*words, "--card", failing, "--unproven", "--json", tmp_path / "r.json") == 0
    assert "UNPROVEN" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["unproven"] is True


def test_a_rank_is_cut_and_the_error_printed(
    delta: Path, chat_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    twice = load_delta(delta)
    twice = twice.compose(twice.scale(-0.5))
    from interp.export import save_delta

    save_delta(twice, tmp_path / "thick")
    words = ["--to", "peft", "--base", chat_dir, "--unproven", "--out", tmp_path / "out"]
    assert call("export", tmp_path / "thick", *words, "--rank", 1) == 0
    assert "rank 1 leaves out 0.00%" in capsys.readouterr().out
    assert call("export", delta, *words, "--rank", 4, "--overwrite") == 0
    assert "no matrix has more than rank 4" in capsys.readouterr().out


def test_files_are_merged_without_the_model_and_verified_later(
    delta: Path, chat_dir: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded")

    out = tmp_path / "merged"
    with monkeypatch.context() as patch:
        patch.setattr("interp.models.loading.load", never)
        patch.setattr("interp.backends.opening.load", never, raising=False)
        words = ["--to", "merged", "--base", chat_dir, "--no-reload", "--unproven", "--out", out]
        assert call("export", delta, *words) == 0
    assert "merged, not reloaded" in capsys.readouterr().out
    assert call("verify", out, "--base", chat_dir) == 0
    assert "merged verified" in capsys.readouterr().out
    assert call("export", delta, "--to", "peft", "--base", chat_dir, "--no-reload",
                "--out", tmp_path / "x") == 2  # fmt: skip
    assert call("export", delta, "--to", "merged", "--base", chat_dir, "--no-reload", "--unproven",
                "--dtype", "bfloat16", "--out", tmp_path / "x") == 2  # fmt: skip


def test_an_adapter_is_read_as_a_delta(
    delta: Path, chat_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["--base", chat_dir, "--out"]
    peft = [*words, tmp_path / "peft", "--unproven"]
    assert call("export", delta, "--to", "peft", *peft) == 0
    assert call("export", tmp_path / "peft", "--to", "merged", *words, tmp_path / "m") == 1
    shown = capsys.readouterr().err
    assert "no figure card stands behind edits by peft" in shown
    assert "and the edit was not measured on held-out prompts" in shown
    assert call("export", tmp_path / "peft", "--to", "merged", "--unproven", *words,
                tmp_path / "m") == 0  # fmt: skip


def test_a_model_with_a_manifest_of_another_tool_is_read_as_a_model(
    delta: Path, chat_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["--base", chat_dir, "--unproven", "--out"]
    assert call("export", delta, "--to", "merged", *words, tmp_path / "model") == 0
    (tmp_path / "model" / "manifest.json").write_text("{}")
    assert call("export", tmp_path / "model", "--to", "delta", *words, tmp_path / "read") == 0
    assert load_delta(tmp_path / "read").updates.keys() == load_delta(delta).updates.keys()


# --- heretic -------------------------------------------------------------------------------------


def heretic(chat_dir: Path, out: Path, *more: object) -> int:
    return call("heretic", "--model", chat_dir, "--limit", 8, "--tokens", 4, "--out", out, *more)


def test_an_edit_of_heretics_family_is_made_and_exported(
    chat_dir: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.delenv(heretic_program.VARIABLE, raising=False)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "no-cache"))
    made = tmp_path / "made"
    assert heretic(chat_dir, made, "--kernel", "1,1,0.5,2", "--kernel", "mlp.down_proj=0.8,0,0,1",
                   "--direction-index", 0.5, "--json", tmp_path / "made.json") == 0  # fmt: skip
    shown = capsys.readouterr().out
    assert "first-token KL" in shown
    recipe = load_delta(made).recipe
    assert recipe["kernels"]["attn.o_proj"]["max_weight_position"] == 1.0
    assert recipe["kernels"]["mlp.down_proj"]["max_weight"] == 0.8
    found = json.loads((tmp_path / "made.json").read_text())["metrics"]
    assert found == recipe["metrics"]
    assert found["n_bad_prompts"] == 8
    words = ["export", made, "--to", "heretic", "--base", chat_dir, "--out", tmp_path / "out"]
    assert call(*words) == 1
    assert "no figure card stands behind edits by heretic" in capsys.readouterr().err
    assert call(*words, "--unproven") == 0
    told = capsys.readouterr()
    assert "SHA-256" in told.out
    assert "it will ask before it reproduces" in told.err


def test_files_of_prompts_are_cut_in_two_and_found_again(
    chat_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    for side in ("refuse", "comply"):
        lines = [f"{side} something {i}, please" for i in range(10)]
        (tmp_path / f"{side}.txt").write_text("\n".join(lines))
    files = ["--refuse", tmp_path / "refuse.txt", "--comply", tmp_path / "comply.txt"]
    assert heretic(chat_dir, tmp_path / "made", "--kernel", "1,1,1,9", *files) == 0
    named = load_delta(tmp_path / "made").recipe["prompts"]
    fit, held = named["bad_prompts"], named["bad_evaluation_prompts"]
    assert sorted(fit["rows"] + held["rows"]) == list(range(8))
    assert call("export", tmp_path / "made", "--to", "heretic", "--base", chat_dir, "--unproven",
                "--out", tmp_path / "out") == 0  # fmt: skip
    written = (tmp_path / "out" / "prompts" / "bad_prompts.txt").read_text().splitlines()
    assert len(written) == len(fit["rows"])
    (tmp_path / "refuse.txt").write_text("something else\n" * 3)
    assert call("export", tmp_path / "made", "--to", "heretic", "--base", chat_dir, "--unproven",
                "--out", tmp_path / "again") == 1  # fmt: skip


def test_a_kernel_for_nothing_is_wrong_use(chat_dir: Path, tmp_path: Path, capsys: Any) -> None:
    assert heretic(chat_dir, tmp_path / "x", "--kernel", "mlp.w2=1,1,1,1") == 2
    assert "no component 'mlp.w2' here; there is attn.o_proj, mlp.down_proj" in (
        capsys.readouterr().err
    )
    assert heretic(chat_dir, tmp_path / "x", "--kernel", "1,1") == 1
    assert heretic(chat_dir, tmp_path / "x", "--kernel", "attn.o_proj=1,1,1,1") == 1
    assert "one kernel for each" in capsys.readouterr().err


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: Any) -> Any:
    """``stand_in(text)``: a program in heretic's place that prints it."""

    def make(text: str) -> None:
        script = tmp_path / "heretic"
        script.write_text(f"#!{sys.executable}\nprint({text!r})\n")
        script.chmod(0o755)
        monkeypatch.setenv(heretic_program.VARIABLE, str(script))

    return make


def ask(delta: Path, chat_dir: Path, *more: object) -> int:
    return call("verify", delta, "--base", chat_dir, "--with", "heretic", "--limit", 6,
                "--tokens", 3, *more)  # fmt: skip


def test_a_second_opinion_that_differs_is_a_failure(
    delta: Path, chat_dir: Path, tmp_path: Path, stand_in: Any, capsys: Any
) -> None:
    stand_in("* Initial refusals: 0/6\n* KL divergence: 9.0000\n* Refusals: 0/6")
    assert ask(delta, chat_dir, "--json", tmp_path / "r.json") == 1
    assert "heretic and interp disagree" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["verdict"] == "verified"
    assert (found["heretic"]["agreement"], found["heretic"]["theirs"]["kl"]) == ("disagree", 9.0)
    kl = found["heretic"]["ours"]["kl"]
    stand_in(f"* Initial refusals: 0/6\n* KL divergence: {kl:.4f}\n* Refusals: 0/6")
    assert ask(delta, chat_dir) == 0
    assert "heretic and interp agree" in capsys.readouterr().out


def test_what_heretic_cannot_load_leaves_our_measures(
    delta: Path, chat_dir: Path, stand_in: Any, capsys: Any
) -> None:
    stand_in("AssertionError: No abliterable modules found in layer")
    assert ask(delta, chat_dir) == 0
    assert "it says: AssertionError: No abliterable modules" in capsys.readouterr().out


def test_without_a_network_the_second_opinion_says_what_to_do(
    delta: Path, chat_dir: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def offline(words: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 1, "", "ERROR: no network")

    monkeypatch.delenv(heretic_program.VARIABLE, raising=False)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", offline)
    assert ask(delta, chat_dir) == 1
    assert "no network; it needs a network, or set INTERP_HERETIC" in capsys.readouterr().err
