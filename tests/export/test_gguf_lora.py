"""The gguf-lora format: write → read → same logits, what is refused and why, damaged files."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from interp.edits import steering, to_delta
from interp.errors import ExportError
from interp.export import export, verify_export
from interp.export.exporter import Base
from interp.export.gate import Passed
from interp.export.gguf_files import open_gguf, write_gguf
from interp.export.gguf_lora import FILE, read_gguf_lora
from interp.export.gguf_names import ADAPTED, ARCHITECTURES, READERS, architectures, places, why_not
from interp.export.peft import EXPORTER as PEFT
from interp.models import describe, tiny_model
from interp.sites import Site
from interp.types import Coverage, LowRank, WeightDelta

pytestmark = pytest.mark.usefixtures("in_process")

SOURCE = os.environ.get("INTERP_LLAMA_SOURCE")
TIGHT = 2e-5
LORA = {"general.type": "adapter", "adapter.type": "lora"}
LACKING = {
    "gptj": "llama.cpp has no gptj",
    "zamba2": "llama.cpp has no zamba2",
    "qwen2_moe": "has no tensor for model.layers.1.mlp.down_proj.weight",
    "qwen3_moe": "has no tensor for model.layers.1.mlp.down_proj.weight",
    "nemotron_h": "no dense block beside blocks of experts",
}
"""Tiny models that llama.cpp cannot run: the last three have dense blocks among those of experts."""
WITHOUT_DENSE = {
    "qwen2_moe": {"mlp_only_layers": None},
    "qwen3_moe": {"mlp_only_layers": None},
    "nemotron_h": {"hybrid_override_pattern": "M*E"},
}


def target(tensor: str = "blk.1.attn_output.weight") -> dict[str, Tensor]:
    """Random factors of rank 2 for the attention output of the tiny llama (``[32, 48]``)."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(s, generator=generator) for s in ((2, 48), (32, 2)))
    return {f"{tensor}.lora_a": a, f"{tensor}.lora_b": b}


def assert_same(back: dict[str, LowRank], edit: WeightDelta, base) -> None:
    assert back.keys() == edit.updates.keys()
    known = places(base.anatomy)
    for name, update in edit:
        assert back[name].axes == update.axes
        assert torch.equal(back[name].a, update.a), name
        # Multiplied and divided again, each rounded once, where the conversion folds a factor in.
        rtol = 0.0 if known[name].factor == 1.0 else 2.5e-7
        torch.testing.assert_close(back[name].b, update.b, rtol=rtol, atol=0.0)


def assert_held(base, edit: WeightDelta, out: Path) -> None:
    receipt = export(edit, to="gguf-lora", **base.base, out=out)
    assert receipt.verdict == "verified"
    assert receipt.difference <= TIGHT * receipt.scale
    assert receipt.effect > 1e-2 * receipt.scale
    assert_same(read_gguf_lora(out, base.anatomy), edit, base)


def test_every_weight_update_is_held_or_somebody_else_is_named(model_type, saved, tmp_path) -> None:
    base = saved(model_type)
    for edit in (base.disturbed(), base.ablated(weights=True)):
        if model_type not in LACKING:
            assert_held(base, edit, tmp_path / "lora")
            continue
        with pytest.raises(ExportError, match=rf"{LACKING[model_type]}.*that can: delta, merged"):
            export(edit, to="gguf-lora", **base.base, out=tmp_path / "lora")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model_type", sorted(WITHOUT_DENSE))
def test_the_same_models_without_dense_blocks_are_held(model_type, saved, tmp_path) -> None:
    base = saved(model_type, **WITHOUT_DENSE[model_type])
    assert_held(base, base.disturbed(), tmp_path / "lora")


def test_an_untied_embedding_is_held_as_llama_cpp_looks_it_up(saved, tmp_path) -> None:
    for model_type in ("qwen2", "falcon_h1", "mamba2"):
        base = saved(model_type)
        edit = base.ablated(embeddings=True, weights=True)
        assert_held(base, edit, tmp_path / model_type)
        file = open_gguf(tmp_path / model_type / FILE)
        assert file.stored["token_embd.weight.lora_a"].shape == (97, 1)
        assert file.stored["token_embd.weight.lora_b"].shape == (32, 1)


def test_what_lora_cannot_hold_is_refused(saved, tmp_path) -> None:
    llama, granite = saved("llama"), saved("granite")
    shifted = to_delta(llama.model, llama.anatomy, steering(Site.resid_post(1), torch.ones(32)))
    gpt2, twin = saved("gpt2"), saved("falcon_mamba", tie_word_embeddings=True)
    positions = gpt2.ablated(embeddings=True, weights=True)
    positions = replace(
        positions,
        updates={k: u for k, u in positions if "wte" not in k},
        untied=False,
    )
    twin = replace(twin, anatomy=replace(twin.anatomy, tied=False))
    same = replace(twin.ablated(embeddings=True, weights=True), untied=False)
    for base, edit, why in (
        (llama, shifted, "LoRA has no bias updates .1 here, first model.layers.1.mlp.down_proj.b"),
        (llama, llama.ablated(embeddings=True), "it edits a tied embedding"),
        (granite, granite.ablated(), "LoRA has no bias updates .6 here"),
        (gpt2, positions, "takes no adapter on transformer.wpe.weight"),
        (twin, same, "the conversion to GGUF keeps one"),
    ):
        with pytest.raises(ExportError, match=rf"gguf-lora cannot hold this edit: .*{why}.*that c"):
            export(edit, to="gguf-lora", **base.base, out=tmp_path / "lora")
    assert list(tmp_path.iterdir()) == []


def test_a_projection_that_llama_cpp_multiplies_without_adapters_is_refused() -> None:
    """Nemotron's latent experts write a latent space, and ``fc2_latent_proj`` the stream."""
    model = tiny_model("nemotron_h", hybrid_override_pattern="M*E", moe_latent_size=16)
    anatomy = describe(model)
    latent = "model.layers.2.mixer.fc2_latent_proj.weight"
    assert latent in {w.weight for w in anatomy.block_writers}
    held = {} if why_not(anatomy) else places(anatomy)
    assert latent not in held


def test_a_model_that_llama_cpp_would_unembed_otherwise_is_refused(saved, tmp_path) -> None:
    base = saved("cohere", tie_word_embeddings=False)
    with pytest.raises(ExportError, match="this model has an own lm_head; formats that can: delta"):
        export(base.ablated(), to="gguf-lora", **base.base, out=tmp_path / "lora")


def test_every_described_family_has_an_architecture_or_is_known_to_lack_one(model_type) -> None:
    assert (model_type in ARCHITECTURES) != (model_type in ("gptj", "zamba2"))


def test_the_table_agrees_with_gguf(tiny, model_type) -> None:
    """Every name is one that llama.cpp has for this architecture, and every reader exists."""
    anatomy = describe(tiny)
    if why_not(anatomy) is not None:
        return
    arch = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architectures(anatomy)[0]]
    stems = {gguf.TENSOR_NAMES[t].rpartition(".")[2] for t in gguf.MODEL_TENSORS[arch]}
    params = {name for name, _ in tiny.named_parameters(remove_duplicate=False)}
    found = places(anatomy)
    assert {p.tensor.split(".")[-2] for p in found.values()} <= stems
    assert {w.weight for w in anatomy.block_writers} <= found.keys()
    readers = set(READERS.get(model_type, {}).values())
    assert all(any(name.endswith(f".{path}.weight") for name in params) for path in readers)
    writers = {w.weight for w in anatomy.writers}
    assert {found[w].tensor.split(".")[-2] for w in writers & found.keys()} <= ADAPTED


def test_the_architecture_follows_what_the_model_has() -> None:
    for overrides, wanted in (
        ({}, ("granitehybrid",)),
        ({"layer_types": ["full_attention"] * 3}, ("granitemoe",)),
        (
            {"layer_types": ["full_attention"] * 3, "num_local_experts": 0},
            ("granite", "granitemoe"),
        ),
    ):
        anatomy = describe(tiny_model("granitemoehybrid", **overrides))
        assert architectures(anatomy) == wanted
        shared = places(anatomy)["model.layers.0.shared_mlp.output_linear.weight"].tensor
        experts = overrides.get("num_local_experts", 4)
        assert shared == f"blk.0.ffn_down{'_shexp' if experts else ''}.weight"
    dense = describe(tiny_model("nemotron_h", hybrid_override_pattern="M*-"))
    assert architectures(dense) == ("nemotron_h", "nemotron_h_moe")
    sparse = describe(tiny_model("nemotron_h", hybrid_override_pattern="M*E"))
    assert architectures(sparse) == ("nemotron_h_moe",)


def test_falcon_h1_gets_the_multipliers_that_the_conversion_folds_in(saved, tmp_path) -> None:
    base = saved("falcon_h1")
    edit = base.disturbed()
    export(edit, to="gguf-lora", **base.base, out=tmp_path / "lora")
    file = open_gguf(tmp_path / "lora" / FILE)
    for path, tensor, factor in (
        ("mamba.out_proj", "ssm_out", 0.7),
        ("self_attn.o_proj", "attn_output", 0.5),
        ("feed_forward.down_proj", "ffn_down", 0.6),
    ):
        b = edit.updates[f"model.layers.1.{path}.weight"].b
        torch.testing.assert_close(file.tensor(f"blk.1.{tensor}.weight.lora_b"), b * factor)


def test_the_file_is_what_llama_cpp_reads(saved, tmp_path) -> None:
    """Metadata that its loader asks for, shapes as it tests them, and a scale of exactly 1."""
    base = saved("jamba")
    edit = base.ablated(weights=True).compose(base.disturbed())
    name = "model.layers.3.feed_forward.experts.down_proj"
    mixed = replace(edit, updates={**edit.updates, name: base.disturbed().updates[name]})
    assert {u.rank for _, u in mixed} == {1, 2}
    export(mixed, to="gguf-lora", **base.base, out=tmp_path / "lora")
    reader = gguf.GGUFReader(tmp_path / "lora" / FILE)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert fields == LORA | {"general.architecture": "jamba", "adapter.lora.alpha": 2.0}
    shapes = {t.name: tuple(t.shape.tolist()) for t in reader.tensors}
    assert {t.tensor_type for t in reader.tensors} == {gguf.GGMLQuantizationType.F32}
    assert {s[0] for n, s in shapes.items() if n.endswith("lora_b")} == {2}
    assert shapes["blk.3.ffn_down_exps.weight.lora_a"] == (56, 2, 4)
    assert shapes["blk.3.ffn_down_exps.weight.lora_b"] == (2, 32, 4)
    assert shapes["blk.0.ssm_out.weight.lora_a"] == (64, 2)
    assert_same(read_gguf_lora(tmp_path / "lora", base.anatomy), mixed, base)


def test_a_saved_adapter_verifies_and_a_foreign_one_is_read(saved, tmp_path) -> None:
    base = saved("llama")
    export(base.ablated(), to="gguf-lora", **base.base, out=tmp_path / "ours")
    assert verify_export(tmp_path / "ours", str(base.path)).verdict == "verified"
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_gguf(folder / FILE, "llama", LORA | {"adapter.lora.alpha": 4.0}, target())
    receipt = verify_export(folder, str(base.path))
    assert (receipt.verdict, receipt.probe) == ("verified", "no stored probe")
    assert receipt.effect > 1e-3


# --- foreign adapters --------------------------------------------------------------------------


def test_alpha_is_folded_in_as_llama_cpp_does(saved, tmp_path) -> None:
    base, made = saved("llama"), target()
    name = "model.layers.1.self_attn.o_proj.weight"
    for alpha, scale in ((16.0, 8.0), (2.0, 1.0), (0.0, 1.0), (-1.0, -0.5)):
        write_gguf(tmp_path / "x.gguf", "llama", LORA | {"adapter.lora.alpha": alpha}, made)
        update = read_gguf_lora(tmp_path / "x.gguf", base.anatomy)[name]
        assert torch.equal(update.a, made["blk.1.attn_output.weight.lora_a"])
        assert torch.equal(update.b, scale * made["blk.1.attn_output.weight.lora_b"])
    write_gguf(tmp_path / "x.gguf", "llama", LORA, made)
    update = read_gguf_lora(tmp_path / "x.gguf", base.anatomy)[name]
    assert torch.equal(update.b, made["blk.1.attn_output.weight.lora_b"])


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_shorter_types_are_dequantised(kind, saved, tmp_path) -> None:
    base = saved("llama", intermediate_size=64)
    quantisation = gguf.GGMLQuantizationType[kind]
    generator = np.random.default_rng(0)
    a = generator.standard_normal((32, 64), dtype=np.float32)
    b = generator.standard_normal((32, 32), dtype=np.float32)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for key, value in LORA.items():
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", 32.0)
    for name, value in (("a", a), ("b", b)):
        short = gguf.quantize(value, quantisation)
        writer.add_tensor(f"blk.0.ffn_down.weight.lora_{name}", short, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    update = read_gguf_lora(tmp_path / "x.gguf", base.anatomy)[
        "model.layers.0.mlp.down_proj.weight"
    ]
    for mine, theirs in ((update.a, a), (update.b, b)):
        back = gguf.dequantize(gguf.quantize(theirs, quantisation), quantisation)
        assert np.array_equal(mine.numpy(), back)
        assert 0 < np.abs(back - theirs).max() < 0.05


def test_matrices_that_only_read_are_taken_where_they_are_the_same(saved, tmp_path) -> None:
    write_gguf(tmp_path / "q.gguf", "qwen2", LORA, target("blk.1.attn_q.weight"))
    assert list(read_gguf_lora(tmp_path / "q.gguf", saved("qwen2").anatomy)) == [
        "model.layers.1.self_attn.q_proj.weight"
    ]
    write_gguf(tmp_path / "l.gguf", "llama", LORA, target("blk.1.attn_q.weight"))
    with pytest.raises(
        ExportError, match=r"adapts blk.1.attn_q.weight, which llama in transformers"
    ):
        read_gguf_lora(tmp_path / "l.gguf", saved("llama").anatomy)


def test_other_files_and_other_bases_are_told_apart(saved, tmp_path) -> None:
    base, path = saved("llama"), tmp_path / "x.gguf"
    wrong = "blk.9.attn_output.weight"
    both, one = target(), dict(list(target().items())[:1])
    flat = {k: v[0] for k, v in target().items()}
    nan = {k: v * torch.nan for k, v in target().items()}
    norm = target() | {"blk.0.attn_norm.weight": torch.ones(32)}
    embedding = {"token_embd.weight.lora_a": torch.ones(97, 2)}
    embedding["token_embd.weight.lora_b"] = torch.ones(32, 2)
    wide = target() | {"blk.1.attn_output.weight.lora_a": torch.ones(2, 44)}
    ranks = target() | {"blk.1.attn_output.weight.lora_a": torch.ones(3, 48)}
    for architecture, fields, tensors, why in (
        ("qwen2", LORA, both, "is for qwen2, but llama.cpp calls llama llama"),
        ("llama", {}, both, r"is no LoRA adapter \(llama\)"),
        ("llama", {"general.type": "model"}, both, r"is no LoRA adapter \(model\)"),
        ("llama", LORA, target(wrong), f"adapts {wrong}"),
        ("llama", LORA, one, "has only one of its two factors"),
        ("llama", LORA, {}, "holds no factors"),
        ("llama", LORA, flat, "has no two factors"),
        ("llama", LORA, norm, "attn_norm.weight is no LoRA factor of a weight .llama.cpp skips"),
        ("llama", LORA, embedding, "shares with its unembedding"),
        (
            "llama",
            LORA,
            wide,
            r"made for another base: .* as \(32, 44\), this model has \(32, 48\)",
        ),
        ("llama", LORA, ranks, "the factors of blk.1.attn_output.weight do not fit"),
        ("llama", LORA | {"adapter.lora.alpha": float("inf")}, both, "not a finite number"),
        ("llama", LORA | {"adapter.alora.invocation_tokens": 3}, both, "aLoRA"),
    ):
        write_gguf(path, architecture, fields, tensors)
        with pytest.raises(ExportError, match=why):
            read_gguf_lora(path, base.anatomy)
    with pytest.raises(ExportError, match="is not finite; fit the edit again"):
        write_gguf(path, "llama", LORA, nan)
    with pytest.raises(ExportError, match="missing"):
        read_gguf_lora(tmp_path / "absent.gguf", base.anatomy)
    write_gguf(path, "llama", LORA, both)
    with pytest.raises(ExportError, match=r"llama.cpp has no gptj"):
        read_gguf_lora(path, saved("gptj").anatomy)


@pytest.mark.slow
@pytest.mark.skipif(SOURCE is None, reason="INTERP_LLAMA_SOURCE names no checkout of llama.cpp")
@pytest.mark.parametrize(
    "kind", ["falcon_h1", "jamba", "llama", "mamba", "phi3", "qwen2", "stablelm", "starcoder2"]
)
def test_what_llama_cpp_converts_from_peft_comes_back(kind, tmp_path) -> None:
    """A PEFT adapter on writers and readers, through ``convert_lora_to_gguf.py`` of llama.cpp."""
    model = tiny_model(kind)
    anatomy = describe(model)
    model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    writers = {w.weight: w for w in anatomy.writers}
    params, generator = dict(model.named_parameters()), torch.Generator().manual_seed(1)
    made: dict[str, LowRank] = {}
    for name in places(anatomy).keys() & params.keys():
        writer = writers.get(name)
        # Fused experts have no name in its script, a tied embedding none in its runtime.
        if writer is not None and (writer.fused or (writer.tied and writer.kind == "embedding")):
            continue
        axes = "out in" if writer is None else writer.axes
        d_out, d_in = params[name].shape if axes == "out in" else params[name].shape[::-1]
        b, a = (torch.randn(s, generator=generator) for s in ((d_out, 3), (3, d_in)))
        made[name] = LowRank(b, a, axes)
    assert len(made) > len(writers) / 2
    delta = WeightDelta(made, "unverified", {}, "W + BA", Coverage(tuple(made), {}))
    (tmp_path / "peft").mkdir()
    PEFT.write(delta, Base(model, None, anatomy, kind), tmp_path / "peft", Passed())
    script, out = str(Path(str(SOURCE)) / "convert_lora_to_gguf.py"), tmp_path / "x.gguf"
    command = [sys.executable, script, "--base", str(tmp_path / "base"), "--outfile", str(out)]
    done = subprocess.run([*command, str(tmp_path / "peft")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    back = read_gguf_lora(out, anatomy)
    assert back.keys() == made.keys()
    for name, update in made.items():
        torch.testing.assert_close(back[name].dense(), update.dense(), rtol=1e-5, atol=1e-6)
