"""An export is compared with what it was read from, as PEFT or transformers loads that."""

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
from transformers import AutoModelForCausalLM

from interp.errors import ExportError, InterpWarning
from interp.export import export
from interp.export.difference import difference
from interp.export.reading import read_edit
from interp.export.truncation import truncated
from interp.models import describe, tiny_model
from interp.models.loading import load
from interp.models.receipt import receipt

pytestmark = pytest.mark.usefixtures("in_process")
IDS = torch.arange(3, 40)[None]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CLOSE = 1e-4


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(input_ids=IDS).logits.float()


def adapter(base: Path, out: Path, **options: Any) -> Tensor:
    """Write an adapter that PEFT made; the logits that PEFT gives with it."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(5)
    known = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "init_lora_weights": False}
    get_peft_model(load(str(base))[0], LoraConfig(**known | options)).save_pretrained(out)
    return logits(PeftModel.from_pretrained(load(str(base))[0], str(out)))


ADAPTERS = {
    "alpha of a parameter": {
        "target_modules": ["o_proj"],
        "target_parameters": EXPERTS[1:],
        "alpha_pattern": {"mlp.experts.down_proj": 64},
    },
    "two parameters": {"target_modules": [], "target_parameters": EXPERTS},
    "experts of granite": {
        "target_modules": [],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    },
}


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("qwen3_moe", "alpha of a parameter"),  # experts that are saved one by one
        # the same, under other names
        pytest.param("mixtral", "two parameters", marks=pytest.mark.slow),
        ("gpt_oss", "two parameters"),  # saved as they are in memory
        # saved fused, under another name
        pytest.param("granitemoe", "experts of granite", marks=pytest.mark.slow),
    ],
)
def test_a_merged_adapter_gives_the_logits_of_peft(
    name: str, model_type: str, saved: Callable[..., Any], tmp_path: Path
) -> None:
    base, source = saved(model_type), tmp_path / "adapter"
    expected = adapter(base.path, source, **ADAPTERS[name])
    delta = read_edit(source, str(base.path))
    found = export(delta, to="merged", **base.base, out=tmp_path / "out", source=source)
    assert (found.source["library"], found.source["whole"]) == ("PEFT", True)
    assert found.source["difference"] < CLOSE
    again = export(delta, to="peft", **base.base, out=tmp_path / "peft", source=source)
    assert again.source["difference"] < CLOSE
    assert (
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")) - expected
    ).abs().max() < CLOSE


def test_a_reading_that_is_not_the_source_is_not_exported(
    saved: Callable[..., Any], tmp_path: Path
) -> None:
    base = saved("llama")
    adapter(base.path, tmp_path / "one", target_modules=["q_proj"])
    adapter(base.path, tmp_path / "two", target_modules=["q_proj"], lora_alpha=7)
    delta = read_edit(tmp_path / "one", str(base.path))
    with pytest.raises(
        ExportError, match=r"two: its logits differ by .* from those that PEFT gives"
    ):
        export(delta, to="merged", **base.base, out=tmp_path / "out", source=tmp_path / "two")
    assert not (tmp_path / "out").exists()
    cut = truncated(delta, 1)[0]
    found = export(cut, to="delta", **base.base, out=tmp_path / "out", source=tmp_path / "one")
    assert not found.source["whole"]
    assert found.source["difference"] > CLOSE


def tuned(base: Path, out: Path, change: Callable[[Any], None]) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        change(model)
    model.save_pretrained(out)
    return out


def test_a_change_that_a_delta_does_not_hold_is_named(
    saved: Callable[..., Any], tmp_path: Path
) -> None:
    base = saved("llama")

    def change(model: Any) -> None:
        model.model.layers[0].mlp.down_proj.weight += 0.1
        model.model.norm.weight *= 2

    other = tuned(base.path, tmp_path / "tuned", change)
    delta = difference(base.path, other)
    with pytest.raises(
        ExportError,
        match=r"that transformers gives .* no update in a delta, the first model\.norm",
    ):
        export(delta, to="merged", **base.base, out=tmp_path / "out", source=other)


@pytest.mark.parametrize("tied", [True, False])
def test_a_finetune_with_more_tokens_is_compared_on_those_of_both(
    tied: bool, tmp_path: Path
) -> None:
    tiny_model("llama", tie_word_embeddings=tied).save_pretrained(tmp_path / "base")  # type: ignore[operator]
    rows = tiny_model("llama").config.vocab_size

    def change(model: Any) -> None:
        model.resize_token_embeddings(rows + 2, mean_resizing=False)
        model.model.layers[0].mlp.down_proj.weight += 0.1
        model.model.embed_tokens.weight[5] += 1

    other = tuned(tmp_path / "base", tmp_path / "tuned", change)
    delta = difference(tmp_path / "base", other)
    changed = {"model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"}
    assert delta.updates.keys() == changed
    assert f"model.embed_tokens.weight[{rows}:{rows + 2}]" in delta.recipe["not_held"]
    opened = load(str(tmp_path / "base"))

    base = (*opened, describe(opened[0]))
    found = export(
        delta, to="merged", base=base, base_name=str(tmp_path / "base"), out=tmp_path / "out",
        source=other, unproven=True,
    )  # fmt: skip
    assert found.source["difference"] < CLOSE
    back = difference(other, tmp_path / "base")
    assert back.updates.keys() == changed


def test_a_float8_checkpoint_is_exported_as_transformers_loads_it(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    shutil.copytree(tmp_path / "base", tmp_path / "fp8")
    tensors = load_file(tmp_path / "base/model.safetensors")
    for name in [n for n in tensors if "_proj.weight" in n]:
        weight = tensors[name].float()
        scale = weight.abs().max() / 448
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(tensors, tmp_path / "fp8/model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "base/config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "fp8/config.json").write_text(json.dumps(config))

    opened = load(str(tmp_path / "base"))
    base = (*opened, describe(opened[0]))
    named = {"base": base, "base_name": str(tmp_path / "base"), "unproven": True}
    delta = difference(tmp_path / "base", tmp_path / "fp8", tolerance=0.0)
    export(delta, to="merged", **named, out=tmp_path / "out", source=tmp_path / "fp8")
    sides = [logits(AutoModelForCausalLM.from_pretrained(tmp_path / d)) for d in ("fp8", "out")]
    assert (sides[0] - sides[1]).abs().max() < CLOSE
    opened = load(str(tmp_path / "fp8"))
    base = (*opened, describe(opened[0]))
    back = difference(tmp_path / "fp8", tmp_path / "base")
    with pytest.raises(ExportError, match=r"merged cannot hold .*float8.*formats that can: delta"):
        export(back, to="merged", base=base, base_name=str(tmp_path / "fp8"), out=tmp_path / "no",
               unproven=True)  # fmt: skip


def test_an_adapter_beside_a_whole_model_is_ignored_with_a_warning(
    saved: Callable[..., Any], tmp_path: Path
) -> None:
    base = saved("llama")
    run = tmp_path / "run"
    expected = adapter(base.path, run, target_modules=["o_proj"])
    from peft import PeftModel

    PeftModel.from_pretrained(load(str(base.path))[0], str(run)).merge_and_unload().save_pretrained(
        run
    )
    with pytest.warns(InterpWarning, match="holds an adapter .* beside the weights"):
        model, _ = load(str(run))
    assert (logits(model) - expected).abs().max() < CLOSE
    with pytest.warns(InterpWarning):
        assert len(receipt(str(run)).writers) == len(base.anatomy.writers)
    with pytest.warns(InterpWarning):
        delta = read_edit(run, str(base.path))
    assert delta.recipe["method"] == "difference"
    with pytest.warns(InterpWarning):
        back = difference(run, base.path)

    export(back, to="merged", base=(model, None, describe(model)), base_name=str(run),
           out=tmp_path / "out", unproven=True)  # fmt: skip
    assert not list((tmp_path / "out").glob("adapter*"))
