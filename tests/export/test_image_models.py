"""Exports of models that read images, whose checkpoints have gone by several names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.backends.opening import wrap
from interp.edits import applied
from interp.export import export
from interp.models import describe, families
from interp.models.loading import load
from interp.types import TokenBatch

TYPES = sorted(t for t, family in families().items() if family.image_writers)
OTHER_NAMES = {
    "gemma3": ("language_model.model.", "model.language_model."),
    "qwen2_5_vl": ("model.", "model.language_model."),
}
"""A prefix as transformers 5 saves it, and as some of version 4 did."""


@pytest.mark.parametrize("model_type", TYPES)
def test_adapters_and_merged_checkpoints_verify(
    model_type: str, saved: Callable[..., Any], tmp_path: Path, batch: TokenBatch, in_process: None
) -> None:
    base = saved(model_type)
    assert (
        export(base.disturbed(), to="peft", **base.base, out=tmp_path / "p").verdict == "verified"
    )
    delta = base.ablated(embeddings=True)
    assert export(delta, to="merged", **base.base, out=tmp_path / "m").verdict == "verified"
    merged = wrap(load(str(tmp_path / "m"))[0])
    with applied(base.model, base.anatomy, delta):
        assert torch.allclose(merged.logits(batch), wrap(base.model).logits(batch), atol=1e-5)


@pytest.mark.parametrize("model_type", OTHER_NAMES)
def test_a_checkpoint_under_other_names_is_merged(
    model_type: str, saved: Callable[..., Any], tmp_path: Path, in_process: None
) -> None:
    base = saved(model_type)
    old, new = OTHER_NAMES[model_type]
    folder = tmp_path / "base"
    shutil.copytree(base.path, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        renamed = {
            new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in tensors.items()
        }
        assert renamed.keys() != tensors.keys()
        save_file(renamed, file, metadata={"format": "pt"})
    model, tokenizer = load(str(folder))
    opened = (model, tokenizer, describe(model))
    receipt = export(
        base.ablated(), to="merged", base=opened, base_name=str(folder), out=tmp_path / "m",
        unproven=True,
    )  # fmt: skip
    assert receipt.verdict == "verified"
