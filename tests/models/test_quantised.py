"""Quantised checkpoints: scaled float8 is read as transformers reads it, every other format is named."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp.edits import fingerprint, readable
from interp.errors import DeltaError, ModelNotFound
from interp.export.difference import checkpoint_fingerprint, difference
from interp.models import describe, tiny_model
from interp.models.checkpoint import Checkpoint
from interp.models.loading import load
from interp.models.skeleton import skeleton

FLOAT8 = torch.float8_e4m3fn
WIDE = {"hidden_size": 128, "intermediate_size": 256}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 128]}
WHOLE = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": None}
CHANNELS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    },
}

Convert = Callable[[str, Tensor], dict[str, Tensor]]


def saved(folder: Path, convert: Convert, settings: Mapping[str, Any], **sizes: Any) -> Path:
    """A tiny bf16 llama, and beside it the same with its projections converted."""
    tiny_model("llama", dtype=torch.bfloat16, **(WIDE | sizes)).save_pretrained(folder / "plain")  # type: ignore[operator]
    other = folder / "other"
    other.mkdir()
    tensors: dict[str, Tensor] = {}
    for name, value in load_file(folder / "plain/model.safetensors").items():
        tensors |= convert(name, value) if "_proj.weight" in name else {name: value}
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "plain/config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return other


def scaled(
    *blocks: int, suffix: str, shape: tuple[int, ...] | None = None, exponents: bool = False
) -> Convert:
    """Codes and one scale for each block of so many rows and columns (0: all of them)."""

    def convert(name: str, weight: Tensor) -> dict[str, Tensor]:
        sizes = [block or n for block, n in zip(blocks, weight.shape, strict=True)]
        grid = [math.ceil(n / size) for n, size in zip(weight.shape, sizes, strict=True)]
        scale, codes = torch.empty(grid), torch.empty(weight.shape)
        for r in range(grid[0]):
            for c in range(grid[1]):
                part = (
                    slice(r * sizes[0], (r + 1) * sizes[0]),
                    slice(c * sizes[1], (c + 1) * sizes[1]),
                )
                largest = weight[part].float().abs().max() / 448
                scale[r, c] = largest.log2().ceil().exp2() if exponents else largest
                codes[part] = weight[part].float() / scale[r, c]
        stored = (scale.log2() + 127).to(torch.uint8) if exponents else scale
        return {name: codes.to(FLOAT8), name + suffix: stored.reshape(shape or stored.shape)}

    return convert


PRODUCERS: dict[str, tuple[Convert, dict[str, Any]]] = {
    "blocks": (scaled(64, 128, suffix="_scale_inv"), BLOCKS),
    "exponents": (scaled(64, 128, suffix="_scale_inv", exponents=True), BLOCKS),
    "tensor": (scaled(0, 0, suffix="_scale_inv", shape=()), WHOLE),
    "one value": (scaled(0, 0, suffix="_scale", shape=(1,)), CHANNELS),
    "rows": (scaled(1, 0, suffix="_scale"), CHANNELS),
    "a vector": (scaled(1, 0, suffix="_scale", shape=(-1,)), CHANNELS),
    "no config": (scaled(64, 128, suffix="_scale_inv"), {}),
}


@pytest.mark.parametrize("producer", PRODUCERS)
def test_scaled_float8_is_read_as_its_values(producer: str, tmp_path: Path) -> None:
    other = saved(tmp_path, *PRODUCERS[producer])
    files = [Checkpoint.open(tmp_path / name) for name in ("plain", "other")]
    for name in files[0].tensors:
        plain, read = (side.read(name) for side in files)
        assert read.dtype == torch.bfloat16
        assert (read - plain).norm() <= 0.07 * plain.norm()
        assert torch.equal(files[1].strided(name, 2, 5), read.flatten()[2::5])
    delta = difference(tmp_path / "plain", other)
    assert all(0 < entry["relative"] < 0.07 for entry in delta.recipe["tensors"].values())
    assert not delta.recipe["not_held"]


@pytest.mark.parametrize("producer", ["blocks", "exponents", "tensor"])
def test_it_is_read_as_transformers_reads_it(producer: str, tmp_path: Path) -> None:
    other = saved(tmp_path, *PRODUCERS[producer])
    model = AutoModelForCausalLM.from_pretrained(other)
    checkpoint, anatomy = Checkpoint.open(other), skeleton(str(other))[1]
    for name, value in model.state_dict().items():
        if name in checkpoint.tensors:
            assert torch.equal(checkpoint.read(name), value), name
    assert checkpoint_fingerprint(checkpoint, anatomy) == fingerprint(model, describe(model))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dequantised_float8_runs_in_the_dtype_that_is_asked_for(dtype: str, tmp_path: Path) -> None:
    other = saved(tmp_path, *PRODUCERS["blocks"])
    model, _ = load(str(other), dtype=dtype)
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    plain, _ = load(str(tmp_path / "plain"), dtype=dtype)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert (model(ids).logits - plain(ids).logits).norm() < 0.2 * plain(ids).logits.norm()
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_float8_in_memory_has_the_fingerprint_of_its_files_and_is_never_edited(
    tmp_path: Path,
) -> None:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    other = saved(tmp_path, *PRODUCERS["blocks"])
    model = AutoModelForCausalLM.from_pretrained(other)
    anatomy, tensors = describe(model), load_file(other / "model.safetensors")
    for writer in anatomy.block_writers:
        layer = FP8Linear(writer.d_in, writer.d_out, block_size=(64, 128), has_bias=False)
        layer.weight.data = tensors[writer.weight]
        layer.weight_scale_inv.data = tensors[f"{writer.weight}_scale_inv"]
        model.set_submodule(writer.module, layer)
    expected = checkpoint_fingerprint(Checkpoint.open(other), anatomy)
    assert fingerprint(model, anatomy) == expected != "unverified"
    with pytest.raises(DeltaError, match="is quantised"):
        readable(model, anatomy.block_writers[0].weight)


def test_blocks_that_do_not_divide_the_weight_are_those_of_the_config(tmp_path: Path) -> None:
    saved(tmp_path, scaled(96, 128, suffix="_scale_inv"), BLOCKS | {"weight_block_size": [96, 128]})
    files = [Checkpoint.open(tmp_path / name) for name in ("plain", "other")]
    name = "model.layers.0.mlp.down_proj.weight"  # 128 rows: a block of 96 and one of 32
    plain, read = (side.read(name).float() for side in files)
    assert (read - plain).norm() <= 0.07 * plain.norm()


@pytest.mark.parametrize("extra", ["_scale_2", "_zero_point", ".scales"])
def test_float8_with_more_than_a_known_scale_is_not_read(extra: str, tmp_path: Path) -> None:
    def convert(name: str, weight: Tensor) -> dict[str, Tensor]:
        return {name: weight.to(FLOAT8), name.removesuffix(".weight") + extra: torch.ones(1)}

    other = saved(tmp_path, convert, {})
    with pytest.raises(DeltaError, match=r"are quantised \(.*; give the unquantised checkpoint"):
        difference(tmp_path / "plain", other)


def test_float8_that_is_only_a_cast_is_read_as_it_is(tmp_path: Path) -> None:
    other = saved(tmp_path, lambda name, weight: {name: weight.to(FLOAT8)}, {})
    assert Checkpoint.open(other).quantisation is None


def packed(*ends: str, code: torch.dtype = torch.int32) -> Convert:
    def convert(name: str, weight: Tensor) -> dict[str, Tensor]:
        stem = name.removesuffix(".weight")
        codes = torch.zeros(weight.shape[0] // 8, weight.shape[1], dtype=code)
        return {f"{stem}{ends[0]}": codes, **{f"{stem}{end}": torch.ones(3) for end in ends[1:]}}

    return convert


FORMATS: dict[str, tuple[Convert, dict[str, Any], str]] = {
    "gptq": (packed(".qweight", ".scales", ".g_idx"), {"quant_method": "gptq", "bits": 4}, "GPTQ, bits 4"),
    "gptq without config": (packed(".qweight", ".scales", ".g_idx"), {}, "GPTQ"),
    "awq": (packed(".qweight", ".scales"), {"quant_method": "awq", "bits": 4}, "AWQ, bits 4"),
    "compressed": (
        packed(".weight_packed", ".weight_scale"),
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        "compressed-tensors, format pack-quantized",
    ),
    "mxfp4": (packed("_blocks", "_scales", code=torch.uint8), {"quant_method": "mxfp4"}, "MXFP4"),
    "nvfp4": (packed(".weight", ".weight_scale_2", code=torch.uint8), {"quant_algo": "NVFP4"}, "NVFP4"),
    "int8": (packed(".weight", ".weight_scale", code=torch.int8), {}, "a format"),
    "bnb 4": (
        packed(".weight", ".weight.absmax", ".weight.quant_state.bitsandbytes__nf4", code=torch.uint8),
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes 4-bit, bnb_4bit_quant_type nf4",
    ),
    "bnb 8": (packed(".weight", ".SCB", code=torch.int8), {}, "bitsandbytes 8-bit"),
    "hqq": (packed(".W_q", ".meta", code=torch.uint8), {"quant_method": "hqq"}, "HQQ"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_other_format_is_named(name: str, tmp_path: Path) -> None:
    convert, settings, how = FORMATS[name]
    other = saved(tmp_path, convert, settings)
    with pytest.raises(DeltaError) as error:
        difference(tmp_path / "plain", other)
    assert f"{other} are quantised ({how}" in str(error.value)
    assert str(error.value).count("; give the unquantised checkpoint") == 1
    checkpoint, anatomy = Checkpoint.open(other), skeleton(str(tmp_path / "plain"))[1]
    assert checkpoint_fingerprint(checkpoint, anatomy) == "unverified"
    with pytest.raises(ModelNotFound, match="are quantised"):
        checkpoint.read(min(checkpoint.quantisation.opaque))  # type: ignore[union-attr]
