"""Write → read → same logits, for every described family and every format that may hold it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from interp.errors import ExportError
from interp.export import EXPORTERS, export, load_delta
from interp.export.adapters import read_adapter
from interp.export.peft import WITHOUT_OUT_PROJ
from interp.types import LowRank, Shift

pytestmark = pytest.mark.usefixtures("in_process")

TIGHT = 2e-5
"""Relative to the largest logit: five times tighter than what a receipt allows in float32."""


def assert_verified(receipt) -> None:
    assert receipt.verdict == "verified"
    assert receipt.difference <= TIGHT * receipt.scale
    assert receipt.effect > 1e-2 * receipt.scale


def test_the_registry_is_what_the_package_holds() -> None:
    assert set(EXPORTERS) >= {"delta", "peft", "merged"}
    assert all(name == exporter.name for name, exporter in EXPORTERS.items())


def test_delta_and_merged_hold_every_ablation(model_type, saved, tmp_path) -> None:
    base = saved(model_type)
    edit = base.ablated(embeddings=True)
    assert edit.coverage.skipped == base.anatomy.unreached
    for to in ("delta", "merged"):
        receipt = export(edit, to=to, **base.base, out=tmp_path / to)
        assert_verified(receipt)
        assert receipt.coverage["edited"] == len(base.anatomy.writers)


def test_peft_holds_every_weight_update_or_names_who_does(model_type, saved, tmp_path) -> None:
    base = saved(model_type)
    edit = base.disturbed()
    if model_type in WITHOUT_OUT_PROJ:
        with pytest.raises(ExportError, match=r"PEFT refuses LoRA.*that can: delta,.* merged$"):
            export(edit, to="peft", **base.base, out=tmp_path / "peft")
        assert list(tmp_path.iterdir()) == []
        return
    assert_verified(export(edit, to="peft", **base.base, out=tmp_path / "peft"))
    back = read_adapter(tmp_path / "peft", base.model, "base")
    assert back.keys() == edit.updates.keys()
    for name, update in edit:
        assert torch.equal(back[name].b, update.b), name
        assert torch.equal(back[name].a, update.a), name


def test_peft_holds_an_untied_embedding(saved, tmp_path) -> None:
    base = saved("qwen2")
    edit = base.ablated(embeddings=True)
    assert "model.embed_tokens.weight" in edit.updates
    assert_verified(export(edit, to="peft", **base.base, out=tmp_path / "peft"))
    assert torch.equal(
        read_adapter(tmp_path / "peft", base.model, "base")["model.embed_tokens.weight"].a,
        edit.updates["model.embed_tokens.weight"].a,
    )


def test_peft_refuses_what_lora_cannot_hold(model_type, saved, tmp_path) -> None:
    base = saved(model_type)
    edit = base.ablated(embeddings=True)
    if not edit.untied and not any(isinstance(u, Shift) for _, u in edit):
        assert_verified(export(edit, to="peft", **base.base, out=tmp_path / "peft"))
        return
    with pytest.raises(ExportError, match=r"cannot hold this edit: .*that can: delta, merged$"):
        export(edit, to="peft", **base.base, out=tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.every_family
def test_factors_come_back_bit_for_bit(model_type, saved, tmp_path) -> None:
    base = saved(model_type)
    edit = base.ablated(embeddings=True)
    export(edit, to="delta", **base.base, out=tmp_path / "delta")
    back = load_delta(tmp_path / "delta")
    assert list(back.updates) == list(edit.updates)
    for name, update in edit:
        again = back.updates[name]
        assert type(again) is type(update)
        for part in ("b", "a") if isinstance(update, LowRank) else ("value",):
            assert torch.equal(getattr(again, part), getattr(update, part)), name
        if isinstance(update, LowRank):
            assert again.axes == update.axes
    kept = ("base", "exactness", "coverage", "untied")
    assert all(getattr(back, field) == getattr(edit, field) for field in kept)
    assert back.recipe == json.loads(json.dumps(dict(edit.recipe)))
    assert dict(back.checkpoint) == dict(edit.checkpoint)


def test_the_delta_is_keyed_by_checkpoint_names(model_type, saved, tmp_path) -> None:
    """Every key is a tensor of the base's own files, with factors of its shape."""
    base = saved(model_type)
    export(base.ablated(embeddings=True), to="delta", **base.base, out=tmp_path / "delta")
    shapes = {k: v.shape for f in base.path.glob("*.safetensors") for k, v in load_file(f).items()}
    factors = load_file(tmp_path / "delta" / "delta.safetensors")
    for key, value in factors.items():
        stem, _, part = key.rpartition(".")
        if part == "shift":
            assert value.shape == shapes[stem], key
        else:
            b, a = factors[f"{stem}.b"], factors[f"{stem}.a"]
            assert b.ndim == len(shapes[stem]), key
            assert sorted([*b.shape[:-1], a.shape[-1]]) == sorted(shapes[stem]), key


def test_short_dtypes_state_their_tolerance(saved, tmp_path) -> None:
    for dtype, allowed in (("bfloat16", 4e-2), ("float16", 5e-3)):
        base = saved("llama", dtype=dtype)
        edit = base.ablated()
        for to in ("delta", "merged", "peft"):
            receipt = export(edit, to=to, **base.base, out=tmp_path / dtype / to)
            assert (receipt.dtype, receipt.tolerance) == (dtype, allowed)
            # The same weights in the same dtype: only an adapter rounds elsewhere.
            assert receipt.difference == 0.0 or to == "peft"
