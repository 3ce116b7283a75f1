"""The PEFT format: PEFT's own reading of our files, and our reading of PEFT's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.edits import steering, to_delta
from interp.errors import ExportError
from interp.export import export, verify_export
from interp.export.adapters import read_adapter
from interp.models.loading import load
from interp.sites import Site

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]
"""Slow: many checkpoints a test; these run in the CI."""
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def config_of(folder: Path) -> dict:
    return json.loads((folder / CONFIG).read_text())


def test_the_convention(saved, tmp_path) -> None:
    base = saved("llama")
    edit = base.ablated()
    export(edit, to="peft", **base.base, out=tmp_path / "peft")
    config = config_of(tmp_path / "peft")
    assert config["task_type"] == "CAUSAL_LM"
    assert (config["bias"], config["lora_dropout"]) == ("none", 0)
    assert config["r"] == config["lora_alpha"] == 1
    assert config["base_model_name_or_path"] == str(base.path)
    modules = [name.removesuffix(".weight") for name in edit.updates]
    assert config["target_modules"] == modules
    tensors = load_file(tmp_path / "peft" / TENSORS)
    assert tensors.keys() == {
        f"base_model.model.{m}.lora_{x}.weight" for m in modules for x in "AB"
    }
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    from safetensors import safe_open

    with safe_open(tmp_path / "peft" / TENSORS, "pt") as handle:
        assert handle.metadata() == {"format": "pt"}


def test_conv1d_is_declared(saved, tmp_path) -> None:
    for model_type, declared in (("gpt2", True), ("llama", False)):
        base = saved(model_type)
        out = tmp_path / model_type
        receipt = export(base.ablated(weights=True), to="peft", **base.base, out=out)
        assert receipt.verdict == "verified"
        assert config_of(out)["fan_in_fan_out"] is declared
        assert verify_export(out, str(base.path)).verdict == "verified"


def test_ranks_that_differ_are_padded_and_come_back(saved, tmp_path) -> None:
    base = saved("qwen3_moe")
    edit = base.disturbed()
    wide = edit.compose(base.ablated(seed=3, blocks=[0])).compose(base.ablated(seed=4, blocks=[0]))
    assert {u.rank for _, u in wide} == {1, 3}
    receipt = export(wide, to="peft", **base.base, out=tmp_path / "peft")
    assert receipt.difference < 1e-5 * receipt.scale
    assert config_of(tmp_path / "peft")["r"] == 3
    back = read_adapter(tmp_path / "peft", base.model, "base")
    for name, update in wide:
        assert back[name].rank == update.rank
        assert torch.equal(back[name].b, update.b)
        assert torch.equal(back[name].a, update.a)


def test_experts_alone_need_no_target_module(saved, tmp_path) -> None:
    from dataclasses import replace

    base = saved("mixtral")
    edit = base.disturbed()
    only = replace(edit, updates={k: u for k, u in edit if u.b.ndim == 3})
    assert export(only, to="peft", **base.base, out=tmp_path / "p").verdict == "verified"
    assert config_of(tmp_path / "p")["target_modules"] == []


def test_merging_with_peft_gives_the_edited_weights(saved, tmp_path) -> None:
    from peft import PeftModel

    base = saved("qwen3_moe")
    edit = base.disturbed()
    export(edit, to="peft", **base.base, out=tmp_path / "peft")
    fresh, _ = load(str(base.path))
    merged = PeftModel.from_pretrained(fresh, str(tmp_path / "peft")).merge_and_unload()
    params = dict(merged.named_parameters())
    for name, update in edit:
        wanted = base.model.get_parameter(name) + update.stored()
        assert torch.allclose(params[name], wanted, atol=1e-6), name


def test_a_new_bias_is_for_the_delta_alone_where_the_class_has_none(saved, tmp_path) -> None:
    base = saved("qwen3")
    edit = steering(Site.resid_post(1), torch.ones(base.anatomy.d_model))
    delta = to_delta(base.model, base.anatomy, edit)
    for to, says in (("peft", "LoRA has no bias updates"), ("merged", "no setting that gives")):
        with pytest.raises(ExportError, match=f"{says}.*formats that can: delta, gguf-vector$"):
            export(delta, to=to, **base.base, out=tmp_path / to)
    assert export(delta, to="delta", **base.base, out=tmp_path / "delta").verdict == "verified"


def test_an_unknown_format_names_the_known(saved, tmp_path) -> None:
    base = saved("llama")
    with pytest.raises(ExportError, match=r"no export format 'gguff'; known: delta.*merged.*peft"):
        export(base.ablated(), to="gguff", **base.base, out=tmp_path / "x")


# --- foreign adapters


def foreign(base, out: Path, **options) -> Path:
    """An adapter that PEFT itself made, with weights that do something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    model, _ = load(str(base.path))
    known = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", "init_lora_weights": False}
    get_peft_model(model, LoraConfig(**known | options)).save_pretrained(out)
    return out


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama", {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
        ("llama", {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"q_proj": 2}}),
        (
            "llama",
            {"target_modules": ["q_proj"], "alpha_pattern": {"layers.1.self_attn.q_proj": 9}},
        ),
        ("llama", {"target_modules": ["embed_tokens", "o_proj"]}),
        ("llama", {"target_modules": ["lm_head"]}),
        ("qwen2", {"target_modules": "all-linear"}),
        ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        ("gpt2", {"target_modules": ["c_attn"]}),
        (
            "qwen3_moe",
            {"target_modules": ["o_proj"], "target_parameters": ["mlp.experts.down_proj"]},
        ),
        ("qwen3_moe", {"target_modules": [], "target_parameters": EXPERTS}),
        ("gpt_oss", {"target_modules": [], "target_parameters": EXPERTS}),
        (
            "qwen3_moe",
            {
                "target_modules": ["o_proj"],
                "target_parameters": EXPERTS,
                "alpha_pattern": {"mlp.experts.down_proj": 64, r"layers\.0\..*gate_up_proj": 3},
                "rank_pattern": {r".*\.gate_up_proj": 2},
            },
        ),
        ("llama", {"target_modules": r".*layers\.[02]\.self_attn\.(q|o)_proj"}),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
        ("llama", {"target_modules": ["q_proj", "o_proj"], "exclude_modules": r".*\.0\..*"}),
        (
            "llama",
            {
                "target_modules": ["q_proj", "up_proj"],
                "use_rslora": True,
                "rank_pattern": {r"layers\.1\..*": 2},
                "alpha_pattern": {"up_proj": 5},
            },
        ),
        ("gpt_oss", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"]}),
        ("jamba", {"target_modules": ["mamba.out_proj", "q_proj"]}),
    ],
)
def test_a_foreign_adapter_verifies(model_type, options, saved, tmp_path) -> None:
    base = saved(model_type)
    receipt = verify_export(foreign(base, tmp_path / "adapter", **options), str(base.path))
    assert (receipt.verdict, receipt.probe) == ("verified", "no stored probe")
    assert receipt.difference < 2e-5 * receipt.scale
    assert receipt.effect > 1e-3 * receipt.scale


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "eva", "mica", "lora_ga"])
def test_a_start_that_leaves_the_base_alone_is_read(init, saved, tmp_path) -> None:
    """PEFT loads such an adapter as W + BA, whatever it was trained from."""
    base = saved("llama")
    out = foreign(base, tmp_path / "adapter", target_modules=["q_proj"])
    set_config(out, init_lora_weights=init)
    assert verify_export(out, str(base.path)).verdict == "verified"


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq"])
def test_a_start_that_changes_the_base_is_refused(init, saved, tmp_path) -> None:
    base = saved("llama")
    out = foreign(base, tmp_path / "adapter", target_modules=["q_proj"])
    set_config(out, init_lora_weights=init)
    with pytest.raises(ExportError, match=f"init_lora_weights={init}.*merge it with PEFT"):
        verify_export(out, str(base.path))


def test_an_adapter_in_a_pickle_is_read_if_it_holds_only_tensors(saved, tmp_path) -> None:
    base = saved("llama")
    out = foreign(base, tmp_path / "adapter", target_modules=["q_proj"])
    torch.save(load_file(out / TENSORS), out / "adapter_model.bin")
    (out / TENSORS).unlink()
    assert verify_export(out, str(base.path)).verdict == "verified"
    torch.save({"x": Path("/")}, out / "adapter_model.bin")
    with pytest.raises(
        ExportError, match=r"adapter_model\.bin is damaged, or holds more than tensors"
    ):
        verify_export(out, str(base.path))


def test_factors_named_by_expert_are_those_of_the_fused_experts(saved, tmp_path) -> None:
    """Checkpoints name each expert's matrices; transformers fuses them, and PEFT follows."""
    base = saved("qwen3_moe")
    torch.manual_seed(0)
    keys, names = {}, set()
    for name, weight in load_file(base.path / "model.safetensors").items():
        if ".experts." in name:
            module = name.removesuffix(".weight")
            names.add(module.split(".")[-1])
            keys[f"base_model.model.{module}.lora_A.weight"] = torch.randn(2, weight.shape[1])
            keys[f"base_model.model.{module}.lora_B.weight"] = torch.randn(weight.shape[0], 2)
    (tmp_path / "adapter").mkdir()
    save_file(keys, tmp_path / "adapter" / TENSORS)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4}
    config["target_modules"] = sorted(names)
    (tmp_path / "adapter" / CONFIG).write_text(json.dumps(config))
    receipt = verify_export(tmp_path / "adapter", str(base.path))
    assert receipt.verdict == "verified"
    assert receipt.effect > 1e-2 * receipt.scale


def test_an_adapter_that_does_nothing_is_an_error(saved, tmp_path) -> None:
    base = saved("llama")
    out = foreign(base, tmp_path / "a", target_modules=["q_proj"], init_lora_weights=True)
    with pytest.raises(ExportError, match="loads but changes nothing"):
        verify_export(out, str(base.path))


def rename(folder: Path, old: str, new: str) -> None:
    tensors = load_file(folder / TENSORS)
    save_file({k.replace(old, new): v for k, v in tensors.items()}, folder / TENSORS)


def drop_one(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    tensors.pop(min(tensors))
    save_file(tensors, folder / TENSORS)


def set_config(folder: Path, **changes) -> None:
    (folder / CONFIG).write_text(json.dumps(config_of(folder) | changes))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: rename(f, "q_proj", "w_proj"), "6 of its 6 tensors have no place there"),
        (
            lambda f: rename(f, "lora_A.weight", "lora_A.bias"),
            "3 of its 6 tensors have no place there",
        ),
        (drop_one, "lacks 1 of the factors that its config names .*q_proj.lora_A"),
        (lambda f: save_file({}, f / TENSORS), "is empty"),
        (lambda f: set_config(f, peft_type="IA3"), "'IA3' adapter; only LORA"),
        (lambda f: set_config(f, use_dora=True), "uses use_dora"),
        (lambda f: set_config(f, bias="all"), "uses bias=all"),
        (lambda f: set_config(f, init_lora_weights="pissa"), "uses init_lora_weights=pissa"),
        (lambda f: set_config(f, r=3), "PEFT does not load .*size mismatch"),
        (lambda f: set_config(f, r="four"), "PEFT does not load"),
        (lambda f: (f / TENSORS).unlink(), "adapter_model.safetensors is missing"),
        (lambda f: (f / CONFIG).unlink(), "adapter_config.json is missing"),
        (lambda f: (f / CONFIG).write_text("{"), "not readable JSON"),
    ],
)
def test_a_damaged_adapter_is_one_clear_error(damage, says, saved, tmp_path) -> None:
    base = saved("llama")
    out = foreign(base, tmp_path / "adapter", target_modules=["q_proj"])
    damage(out)
    with pytest.raises(ExportError, match=says) as caught:
        verify_export(out, str(base.path))
    assert "\n" not in str(caught.value)


def test_an_adapter_for_another_shape_is_an_error(saved, tmp_path) -> None:
    base, other = saved("llama"), saved("llama", hidden_size=48)
    out = foreign(base, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(
        ExportError, match=r"size mismatch .*q_proj.*; .* give the base it was made for"
    ):
        verify_export(out, str(other.path))


def test_an_adapter_with_its_own_embedding_is_an_error(saved, tmp_path) -> None:
    base, other = saved("llama"), saved("llama", seed=9)
    out = foreign(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    assert verify_export(out, str(base.path)).verdict == "verified"
    with pytest.raises(ExportError, match=r"carries its own model\.embed_tokens"):
        verify_export(out, str(other.path))


def test_an_adapter_that_peft_refuses_says_so(saved, tmp_path) -> None:
    """PEFT has no LoRA on Mamba's out_proj, but the files can be written by hand."""
    base = saved("mamba")
    out = tmp_path / "adapter"
    out.mkdir()
    d_model, module = base.anatomy.d_model, "backbone.layers.0.mixer.out_proj"
    factors = {"A": torch.ones(1, 2 * d_model), "B": torch.ones(d_model, 1)}
    prefix = f"base_model.model.{module}.lora_"
    save_file({f"{prefix}{x}.weight": v for x, v in factors.items()}, out / TENSORS)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [module]}
    (out / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"PEFT does not load .*incompatible with Mamba"):
        verify_export(out, str(base.path))
