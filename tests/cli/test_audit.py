"""``interp audit``: deltas, adapters and finetunes along persona vectors, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp import LM
from interp.cli import main
from interp.export import save_delta
from interp.methods.persona_vectors import PersonaVector, steering


def call(*args: object) -> int:
    """The exit code of ``interp audit``."""
    with pytest.raises(SystemExit) as stop:
        main(["audit", *map(str, args)])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def lm(chat_dir: Path) -> LM:
    return interp.open_model(str(chat_dir))


@pytest.fixture(scope="module")
def folder(lm: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with persona vectors, a delta of them, a finetune, and an adapter."""
    from peft import LoraConfig, get_peft_model

    made = tmp_path_factory.mktemp("audit")
    rows = torch.randn(lm.n_blocks + 1, lm.d_model, generator=torch.Generator().manual_seed(0))
    persona = PersonaVector("keen", {"response_avg": rows})
    persona.save(made / "keen")
    save_delta(lm.to_delta(steering(persona, persona.site(2), -1.5)), made / "delta")
    base = lm.backend.source
    other = interp.open_model(base)
    with torch.no_grad():
        other.hf.model.layers[0].mlp.down_proj.weight.add_(0.05)
        other.hf.model.norm.weight.add_(0.1)
    other.hf.save_pretrained(made / "finetune")
    config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    get_peft_model(interp.open_model(base).hf, config).save_pretrained(made / "adapter")
    return made


def audited(folder: Path, chat_dir: Path, other: str, *more: object) -> dict[str, Any]:
    out = folder / "found.json"
    words = (
        chat_dir,
        folder / other,
        "--vectors",
        folder / "keen",
        "--n-prompts",
        6,
        "--json",
        out,
    )
    assert call(*words, *more) == 0
    return json.loads(out.read_text())


def test_a_planted_shift_is_found(
    folder: Path, chat_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = audited(folder, chat_dir, "delta", "--layer", 2, "--refusal", "--limit", 4)
    keen, refusal = found["traits"]
    assert keen["shift"]["value"] == pytest.approx(-1.5, abs=1e-3)
    assert (keen["predicted"], keen["layer"]) == ("less", 2)
    assert refusal["trait"] == "refusal"
    assert found["prompts"]["n"] == 6
    shown = capsys.readouterr().out
    assert "-1.500" in shown
    assert "1: -1.500" in shown


@pytest.mark.parametrize("other", ["finetune", "adapter"])
def test_finetunes_and_adapters_are_audited(
    other: str, folder: Path, chat_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (keen,) = audited(folder, chat_dir, other)["traits"]
    assert keen["shift"]["value"] != 0
    assert keen["weights"]["value"] != 0
    assert ("not held: model.norm.weight" in capsys.readouterr().out) == (other == "finetune")


def test_what_cannot_be_audited_says_so(
    folder: Path, chat_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(chat_dir, folder / "delta") == 2
    assert "give --vectors DIR" in capsys.readouterr().err
    given = ("--vectors", folder / "keen")
    for words, why in {
        (chat_dir, chat_dir, *given): "does not differ from",
        (chat_dir, folder / "delta", "--vectors", folder): "describes no persona vector",
        (chat_dir, folder / "keen", *given): "holds no export",
        (chat_dir, folder / "delta", *given, "--layer", 9): "layers of the paper are 1 … 3",
        ("tiny:gemma2", folder / "delta", *given): "another base",
    }.items():
        assert call(*words) == 1, why
        assert why in capsys.readouterr().err
