"""Biases that an architecture leaves out, in a checkpoint of its own that has them: exact, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import interp
from interp import add
from interp.edits import applied, steering, to_delta
from interp.errors import ExportError, NotExpressible
from interp.export import EXPORTERS, export, load_delta, save_delta, verify_export
from interp.export.exporter import Base
from interp.export.merged import merge
from interp.models import describe, tiny_model
from interp.models.tiny import byte_tokenizer
from interp.sites import Site
from interp.types import Shift, WeightDelta

IDS = torch.tensor([[5, 9, 31, 7, 60, 2, 14]])
HELD = {
    "llama": ({}, None, ("mlp_bias",)),
    "smollm3": ({}, None, ("mlp_bias",)),
    "granite": ({"attention_bias": False, "mlp_bias": False}, None, ("mlp_bias",)),
    "starcoder2": ({"use_bias": False}, None, ("use_bias",)),
    "qwen2": ({}, "LlamaForCausalLM", ("attention_bias", "mlp_bias")),
    "mistral": ({"sliding_window": None}, "LlamaForCausalLM", ("mlp_bias",)),
}
"""Config, class that it is saved as if another, and settings."""
HAVE_BIASES = {
    "bamba", "falcon_h1", "falcon_mamba", "gpt2", "gpt_neox", "gptj", "granite", "mamba", "mamba2", "phi",
    "starcoder2", "zamba2",
}  # fmt: skip
"""Families whose tiny model has a bias there."""


def added(base: Any, block: int = 1, size: float = 1.0) -> WeightDelta:
    vector = size * torch.randn(base.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    return to_delta(base.model, base.anatomy, steering(Site.resid_post(block), vector))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("model_type", HELD)
def test_a_constant_becomes_a_bias_exactly(model_type: str, saved: Any, tmp_path: Path) -> None:
    options, architecture, settings = HELD[model_type]
    base = saved(model_type, **options)
    delta, out = added(base), tmp_path / "merged"
    receipt = export(delta, to="merged", **base.base, out=out)
    assert (receipt.verdict, receipt.difference) == ("verified", 0.0)
    assert receipt.effect > 0.5
    made = receipt.notes["resaved"]
    assert (made["class"], tuple(made["settings"])) == (architecture or "", settings)
    config = json.loads((out / "config.json").read_text())
    assert all(config[name] is True for name in settings)
    again = AutoModelForCausalLM.from_pretrained(out)
    assert type(again).__name__ == (architecture or type(base.model).__name__)
    assert again.config.dtype == torch.float32
    with torch.no_grad(), applied(base.model, base.anatomy, delta) as model:
        assert torch.equal(again(IDS).logits, model(IDS).logits)
        texts = [m.generate(IDS, max_new_tokens=5, do_sample=False) for m in (again, model)]
    assert torch.equal(*texts)
    plain, merged = (load_file(p / "model.safetensors") for p in (base.path, out))
    new = merged.keys() - plain.keys()
    given = {name for names in delta.checkpoint.values() for name in names}
    assert len(new) == made["new_biases"]
    assert {name for name in new if merged[name].any()} == given & new
    assert all(torch.equal(merged[name], value) for name, value in plain.items())
    assert verify_export(out, str(base.path)).verdict == "verified"


@pytest.mark.usefixtures("in_process")
def test_shards_bf16_an_untied_embedding_and_other_updates_go_together(
    saved: Any, tmp_path: Path
) -> None:
    base = saved("qwen2", dtype="bfloat16", tie_word_embeddings=True)
    folder = tmp_path / "base"
    base.model.save_pretrained(folder, max_shard_size="30KB")
    both = base.ablated(embeddings=True, weights=True).compose(added(base))
    named = {**base.base, "base_name": str(folder)}
    receipt = export(both, to="merged", **named, out=tmp_path / "merged")
    assert (receipt.verdict, receipt.difference) == ("verified", 0.0)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    shards = {
        name: load_file(tmp_path / "merged" / name) for name in {*index["weight_map"].values()}
    }
    assert all(name in shards[shard] for name, shard in index["weight_map"].items())
    values = [value for shard in shards.values() for value in shard.values()]
    assert index["metadata"]["total_size"] == sum(v.numel() * v.element_size() for v in values)
    assert {value.dtype for value in values} == {torch.bfloat16}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.config.tie_word_embeddings is False
    with torch.no_grad(), applied(base.model, base.anatomy, both) as model:
        assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_merge_that_loads_no_model_writes_the_same(saved: Any, tmp_path: Path) -> None:
    base = saved("qwen2")
    report = merge(added(base), str(base.path), tmp_path / "merged", unproven=True)
    assert report["resaved"]["class"] == "LlamaForCausalLM"
    assert "leak" not in report
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad(), applied(base.model, base.anatomy, added(base)) as model:
        assert torch.equal(again(IDS).logits, model(IDS).logits)


REFUSED = {
    "qwen3": ({}, "no setting that gives model.layers.1.mlp.down_proj a bias, and no other class"),
    "phi3": ({}, "no other class"),
    "gemma": ({}, "no other class"),
    "mistral": ({}, "no sliding window"),
    "qwen2": (
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "no sliding",
    ),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_where_there_is_no_exact_form_the_reason_is_named(
    model_type: str, saved: Any, tmp_path: Path
) -> None:
    options, why = REFUSED[model_type]
    base = saved(model_type, **options)
    with pytest.raises(ExportError, match=rf"{why}.*formats that can: delta") as error:
        export(added(base), to="merged", **base.base, out=tmp_path / "merged")
    assert "gguf" in str(error.value) or model_type == "qwen2"
    assert not (tmp_path / "merged").exists()


def test_code_that_comes_with_a_model_is_not_left_behind(saved: Any, tmp_path: Path) -> None:
    base = saved("qwen2")
    folder = tmp_path / "base"
    base.model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoConfig": "own.Own"}})
    )
    with pytest.raises(ExportError, match="code comes with this model"):
        export(
            added(base), to="merged", **{**base.base, "base_name": str(folder)}, out=tmp_path / "m"
        )


def test_a_delta_that_was_saved_is_held_as_well(saved: Any, tmp_path: Path) -> None:
    base = saved("llama")
    save_delta(added(base), tmp_path / "delta")
    back = load_delta(tmp_path / "delta")
    held = EXPORTERS["merged"].refusal(back, Base(base.model, None, base.anatomy, str(base.path)))
    assert held is None


@pytest.mark.slow
@pytest.mark.every_family
def test_every_family_has_a_bias_there_or_is_held_or_refused(
    model_type: str, tmp_path: Path
) -> None:
    made = tiny_model(model_type)
    anatomy = describe(made)
    made.save_pretrained(tmp_path)
    edit = steering(Site.resid_post(1), torch.ones(anatomy.d_model))
    try:
        delta = to_delta(made, anatomy, edit)
    except NotExpressible:
        return
    assert all(isinstance(update, Shift) for _, update in delta)
    why = EXPORTERS["merged"].refusal(delta, Base(made, None, anatomy, str(tmp_path)))
    held = model_type in HAVE_BIASES | {"llama", "smollm3", "qwen2"}
    assert (why is None) == held, why


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_a_fresh_process_opens_another_class_with_the_same_tokenizer(
    name: str, tmp_path: Path
) -> None:
    made = tiny_model(name, vocab_size=259, sliding_window=None)
    made.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    lm = interp.open_model(str(tmp_path / "base"))
    delta = lm.to_delta(add(lm.resid_post[1], torch.ones(lm.d_model)))
    assert delta.export(tmp_path / "merged", to="merged").verdict == "verified"
    again = interp.open_model(str(tmp_path / "merged"))
    assert again.anatomy.model_type == "llama"
    text = "  Naïve café, 12345 tokens:\n\tok?"
    assert again.tokenizer(text).input_ids == lm.tokenizer(text).input_ids
