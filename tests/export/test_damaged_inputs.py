"""Whatever lies where a model or an adapter belongs: ``inspect``, ``diff``, ``verify`` and ``export`` answer
with one line and an exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.cli import main
from interp.models import tiny_model
from interp.models.loading import load

pytestmark = pytest.mark.usefixtures("in_process")
O_PROJ = "model.layers.0.self_attn.o_proj.weight"
SCALE = f"{O_PROJ}_scale_inv"
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}

Change = Callable[[Path], object]


def config(file: str, **entries: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def tensors(file: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    def write(folder: Path) -> None:
        found = change(load_file(folder / file))
        kept = {k: v.clone().contiguous() for k, v in found.items()}
        save_file(kept, folder / file, metadata={"format": "pt"})

    return write


def text(file: str, value: str) -> Change:
    return lambda folder: (folder / file).write_text(value)


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def model(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    return tensors("model.safetensors", change)


def float8(found: dict[str, Tensor], scale: Tensor) -> dict[str, Tensor]:
    return found | {O_PROJ: found[O_PROJ].to(torch.float8_e4m3fn), SCALE: scale}


def adapter(**entries: Any) -> Change:
    return config("adapter_config.json", **entries)


def pickled(content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.bin").write_bytes(content)

    return change


MODELS: dict[str, Change] = {
    "codes for weights": model(lambda t: t | {O_PROJ: t[O_PROJ].int()}),
    "NaN": model(lambda t: t | {O_PROJ: t[O_PROJ] * float("nan")}),
    "a weight less": model(lambda t: {k: v for k, v in t.items() if k != O_PROJ}),
    "another shape": model(lambda t: t | {O_PROJ: t[O_PROJ][:3]}),
    "an undeclared scale": model(lambda t: float8(t, torch.ones(1))),
    "a scale of another shape": both(
        model(lambda t: float8(t, torch.ones(7, 5))), config("config.json", quantization_config=FP8)
    ),
    "blocks that are no numbers": both(
        model(lambda t: float8(t, torch.ones(1))),
        config("config.json", quantization_config=FP8 | {"weight_block_size": ["a", -1, 2]}),
    ),
    "a quantisation in a word": config("config.json", quantization_config="fp8"),
    "an index that leads outside": text(
        "model.safetensors.index.json", json.dumps({"weight_map": {"a": "../x"}})
    ),
    "half a file": lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:999]
    ),
    "no JSON": text("config.json", "{"),
}
ADAPTERS: dict[str, Change] = {
    "a pattern that is none": adapter(target_modules="((("),
    "a list for patterns": adapter(rank_pattern=[1, 2]),
    "no alpha": adapter(lora_alpha=None),
    "junk for a pickle": pickled(b"junk"),
    "an empty pickle": pickled(b""),
    "scalars": tensors("adapter_model.safetensors", lambda t: {k: v[0, 0] for k, v in t.items()}),
    "no JSON": text("adapter_config.json", "["),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("made")
    tiny_model("llama").save_pretrained(folder / "model")  # type: ignore[operator]
    known = LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    get_peft_model(load(str(folder / "model"))[0], known).save_pretrained(folder / "adapter")  # type: ignore[arg-type]
    return folder


def answers(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The error of a command that fails as it should."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in args])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (ended.value.code, len(lines)) == (1, 1)
    assert len(lines[0]) > len("error: ;")
    return lines[0]


def damaged(made: Path, kind: str, change: Change, out: Path) -> Path:
    shutil.copytree(made / kind, out)
    change(out)
    return out


@pytest.mark.parametrize("name", MODELS)
def test_a_damaged_model_is_one_error(
    name: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, base = damaged(made, "model", MODELS[name], tmp_path / "other"), made / "model"
    out = ("--unproven", "--out", tmp_path / "out")
    answers(capsys, "verify", other, "--base", base)
    answers(capsys, "verify", made / "adapter", "--base", other)
    answers(capsys, "export", made / "adapter", "--to", "merged", "--base", other, *out)
    if name not in ("an undeclared scale", "blocks that are no numbers"):
        answers(capsys, "diff", base, other)
        answers(capsys, "export", other, "--to", "merged", "--base", base, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_damaged_adapter_is_one_error(
    name: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = damaged(made, "adapter", ADAPTERS[name], tmp_path / "adapter")
    base = made / "model"
    answers(capsys, "inspect", source)
    answers(capsys, "diff", base, source)
    answers(capsys, "verify", source, "--base", base)
    answers(
        capsys,
        "export",
        source,
        "--to",
        "peft",
        "--base",
        base,
        "--unproven",
        "--out",
        tmp_path / "out",
    )
    assert not (tmp_path / "out").exists()
