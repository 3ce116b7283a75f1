"""Every command with every kind of input: done, or one line that says what is wrong. Never a traceback."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from unusual import CASES, Case

from interp.cli import COMMANDS, main
from interp.methods.persona_vectors import PersonaVector

Argv = list[object]

ABLATION = ("--block", 1, "--first-block", 0, "--strength", 1)
CLOSED = ("--responses", 2)


def model(case: Case) -> Argv:
    return ["--model", case.model, *case.loading]


def persona(folder: Path) -> Path:
    """Persona vectors in the shape of the good model."""
    return PersonaVector("keen", {"response_avg": torch.eye(4, 32)}).save(folder / "keen")


def asking(case: Case, folder: Path) -> Argv:
    """Both classes of prompts and how they are put."""
    refuse = case.refuse or folder / "refuse.txt"
    return ["--refuse", refuse, "--comply", folder / "comply.txt", *case.options]


def heretic_asking(case: Case, folder: Path) -> Argv:
    options = [o for o in case.options if o != "--thinking"]
    return [*asking(case, folder)[:4], *options, "--tokens", 2]


ARGV: dict[str, Callable[[Case, Path], list[Argv]]] = {
    "demo": lambda c, out: [[*model(c), *asking(c, out.parent), "--out", out]],
    "inspect": lambda c, out: [[c.model]],
    "ruler": lambda c, out: [[c.model]],
    "attribute": lambda c, out: [[*model(c), *asking(c, out.parent), "--out", out]],
    "edit": lambda c, out: [
        ["ablation", *model(c), *asking(c, out.parent), *ABLATION, "--out", out / "a"],
        ["least-disturbance", *model(c), *asking(c, out.parent), *CLOSED, "--out", out / "b"],
        ["persona", persona(out.parent), "--layer", 1, *model(c), "--out", out / "c"],
    ],
    "persona": lambda c, out: [
        ["extract", "terse", *model(c), "--tokens", 2, "--n-questions", 1, "--validation-questions", 0,
         "--out", out]
    ],
    "audit": lambda c, out: [
        [base, other, "--vectors", persona(out.parent), "--n-prompts", 2, *c.loading]
        for base, other in ((c.base, c.model), (c.model, c.artefact))
    ],
    "measure": lambda c, out: [
        [*model(c), *asking(c, out.parent), "--tokens", 3, "--backend", backend, "--json", out / "m.json"]
        for backend in ("hooks", "transformer_lens", "nnsight")
    ],
    "export": lambda c, out: [
        [c.artefact, "--base", base, "--to", to, "--unproven", *c.loading, "--out", out / to]
        for to, base in (("peft", c.model), ("merged", c.base))
    ],
    "diff": lambda c, out: [[c.base, c.model], [c.model, c.base, "--out", out / "d"]],
    "heretic": lambda c, out: [
        [*model(c), *heretic_asking(c, out.parent), "--kernel", "1.0,1,0.5,2", "--out", out]
    ],
    "verify": lambda c, out: [[c.artefact, "--base", c.model], [c.model, "--base", c.base]],
    "figures": lambda c, out: [["--folder", c.model]],
    "run": lambda c, out: [
        ["representation_engineering", "--figure", "reading", "--model", c.model, "--limit", 4,
         "--seeds", 2, "--fresh", "--folder", out]
    ],
    "draw": lambda c, out: [["--folder", c.model, "--out", out]],
    "models": lambda c, out: [[]],
    "papers": lambda c, out: [[]],
}  # fmt: skip
"""How a user would give a case to a command. A new command needs a line here."""

UNTOUCHED = {"models", "papers"}
"""Commands that open no input of the user: one call is enough."""


SUCCEEDS = {
    "vision_tower_beside", "pad_out_of_range", "bos_out_of_range", "eos_appended", "strict_turns",
    "prompts_ndjson", "prompts_few", "prompts_of_chats", "thinking_by_another_name", "leftover_adapter",
}  # fmt: skip
"""Cases with a good answer; every other one is an error in commands that open the model and read prompts."""

MEASURED = {
    "missing_weight": r"missing: model\.layers\.1\.self_attn\.q_proj\.weight",
    "left_over_weight": r"without a place in the model: model\.layers\.0\.mlp\.up_proj\.bias",
    "nan_weight": r"block 1 is the first.*layers\.1\.mlp\.up_proj\.weight holds NaN",
    "overflow": "block 0 is the first.*bfloat16",
    "gptq": "quantised",
    "beyond_positions": "the prompt .*48 positions",
    "token_out_of_range": "'bag'.*259 rows",
    "tokenizer_cut": r"tokenizer\.json is not JSON",
    "tokenizer_not_fetched": "git LFS pointer",
    "weights_not_fetched": "git LFS pointer",
    "shard_absent": r"lacks b\.safetensors",
    "no_tokenizer": "no tokenizer",
    "template_drops_system": "leaves out the system text",
    "no_thinking_switch": "no thinking switch",
}
"""What `interp measure` says of some cases."""


@pytest.fixture(scope="module")
def delta(chat_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An edit of the good model, to be given with every case."""
    folder = tmp_path_factory.mktemp("good")
    write_prompts(folder)
    good = Case(chat_dir, chat_dir)
    argv = ["ablation", *model(good), *asking(good, folder), *ABLATION, "--out", folder / "delta"]
    assert exit_code("edit", argv) == 0
    return folder / "delta"


def write_prompts(folder: Path) -> None:
    for name, whose in (("refuse", "my"), ("comply", "a")):
        lines = [f"what is in {whose} bag number {i} now?" for i in range(12)]
        (folder / f"{name}.txt").write_text("\n".join(lines))


def exit_code(command: str, argv: Argv) -> int:
    with pytest.raises(SystemExit) as stop:  # anything else is a traceback
        main([command, *map(str, argv)])
    return int(stop.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_input_leads_to_a_traceback(
    command: str, name: str, chat_dir: Path, delta: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if command in UNTOUCHED and name != next(iter(CASES)):
        return
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    write_prompts(tmp_path)
    case = CASES[name](tmp_path, chat_dir)
    case = replace(case, artefact=case.artefact or delta)
    for argv in ARGV[command](case, tmp_path / "out"):
        capsys.readouterr()
        code = exit_code(command, argv)
        shown = capsys.readouterr()
        assert code in (0, 1, 2), argv
        assert "Traceback" not in shown.err + shown.out
        assert "nan" not in shown.out.lower().split(), argv
        if command == "measure":
            assert (code == 0) == (name in SUCCEEDS), shown.err
            assert re.search(MEASURED.get(name, ""), shown.err)
        if code == 1 and "error: " in shown.err:
            message = shown.err[shown.err.index("error: ") :]
            assert message.count("\n") == 1, message
