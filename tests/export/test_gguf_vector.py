"""The gguf-vector format: steering at block outputs, what is refused and why, damaged files."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.edits import Edit, steering, to_delta
from interp.errors import ExportError, NotExpressible
from interp.export import export, verify_export
from interp.export.gguf_files import write_gguf
from interp.export.gguf_vector import FILE, read_gguf_vector
from interp.operators import Addition
from interp.sites import Site
from interp.types import Direction, WeightDelta

pytestmark = pytest.mark.usefixtures("in_process")

TIGHT = 2e-5
KIND = "controlvector"
WITHOUT_BIAS = {
    "gemma2", "gemma3_text", "gpt_oss", "granitemoe", "mixtral", "olmo2", "olmo3", "olmoe"
}  # fmt: skip
"""A norm or the router stands between the last writer of their blocks and the stream."""
LACKING = {
    "gptj": r"llama.cpp has no gptj",
    "zamba2": r"llama.cpp has no zamba2",
    "nemotron_h": "no dense block beside blocks of experts",
    "qwen2_moe": r"has no tensor for model.layers.1.mlp.down_proj.weight",
    "qwen3_moe": r"has no tensor for model.layers.1.mlp.down_proj.weight",
}
"""Tiny models whose blocks can be steered through a bias, but which llama.cpp cannot run."""


def vector(d_model: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(d_model, generator=torch.Generator().manual_seed(seed))


def steered(base, *blocks: int) -> WeightDelta:
    added = {Site.resid_post(k): Addition(vector(base.anatomy.d_model, k), 1.0 + k) for k in blocks}
    recipe = {"method": "addition"}
    return to_delta(base.model, base.anatomy, Edit(sites=added, recipe=recipe))


def test_steering_is_held_by_every_family_or_somebody_else_is_named(
    model_type, saved, tmp_path
) -> None:
    base = saved(model_type)
    if model_type in WITHOUT_BIAS:
        with pytest.raises(NotExpressible, match="has no exact weight form"):
            steered(base, 1)
        return
    edit = steered(base, 1)
    if model_type in LACKING:
        with pytest.raises(ExportError, match=rf"{LACKING[model_type]}.*that can: delta"):
            export(edit, to="gguf-vector", **base.base, out=tmp_path / "vector")
        assert list(tmp_path.iterdir()) == []
        return
    receipt = export(edit, to="gguf-vector", **base.base, out=tmp_path / "vector")
    assert receipt.verdict == "verified"
    assert receipt.difference <= TIGHT * receipt.scale
    assert receipt.effect > 1e-2 * receipt.scale
    back = read_gguf_vector(tmp_path / "vector")
    wanted = 2.0 * vector(base.anatomy.d_model, 1)
    assert list(back) == [1]
    # The bias is the vector over the writer's factor, so that a factor costs one rounding.
    torch.testing.assert_close(back[1], wanted, rtol=1.3e-7, atol=0.0)
    writer = base.anatomy.in_block(1)[-1].writers[-1]
    assert writer.scale != 1.0 or torch.equal(back[1], wanted)
    assert verify_export(tmp_path / "vector", str(base.path)).verdict == "verified"


def test_several_blocks_are_one_file(saved, tmp_path) -> None:
    base = saved("llama")
    receipt = export(steered(base, 2, 1), to="gguf-vector", **base.base, out=tmp_path / "v")
    assert receipt.verdict == "verified"
    reader = gguf.GGUFReader(tmp_path / "v" / FILE)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert fields == {
        "general.architecture": KIND,
        f"{KIND}.model_hint": "llama",
        f"{KIND}.layer_count": 2,
    }
    assert [(t.name, t.shape.tolist(), t.tensor_type.name) for t in reader.tensors] == [
        ("direction.1", [32], "F32"),
        ("direction.2", [32], "F32"),
    ]


def test_granites_multiplier_is_in_the_vector(saved, tmp_path) -> None:
    """Its blocks add 0.4 times what the MLP writes; llama.cpp adds the vector itself."""
    base = saved("granite")
    edit = steered(base, 1)
    (update,) = edit.updates.values()
    export(edit, to="gguf-vector", **base.base, out=tmp_path / "v")
    torch.testing.assert_close(read_gguf_vector(tmp_path / "v")[1], 0.4 * update.value)


def test_a_short_dtype_keeps_its_tolerance(saved, tmp_path) -> None:
    base = saved("llama", dtype="bfloat16")
    receipt = export(steered(base, 1), to="gguf-vector", **base.base, out=tmp_path / "v")
    assert (receipt.dtype, receipt.verdict) == ("bfloat16", "verified")


def test_what_a_control_vector_cannot_hold_is_refused(saved, tmp_path) -> None:
    llama, starcoder = saved("llama"), saved("starcoder2")
    attention = Direction(vector(32) / vector(32).norm(), 0, "random")
    inner = starcoder.anatomy.in_block(1)[0].writers[-1].weight
    early = to_delta(
        starcoder.model, starcoder.anatomy, Edit({inner: Addition(attention.vector)}, recipe={})
    )
    both = steered(llama, 1).compose(llama.ablated())
    for base, edit, why in (
        (llama, steered(llama, 0), "llama.cpp takes no control vector at block 0"),
        (llama, steered(llama, 0, 1), "llama.cpp takes no control vector at block 0"),
        (llama, llama.ablated(), "one addition for all inputs, and model.layers.0.*is a matrix"),
        (llama, both, "one addition for all inputs"),
        (starcoder, early, "a shift of model.layers.1.self_attn.o_proj.bias is no addition"),
    ):
        with pytest.raises(ExportError, match=rf"gguf-vector cannot hold this edit: .*{why}"):
            export(edit, to="gguf-vector", **base.base, out=tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_llama_cpp_passes_over_are_refused(saved, tmp_path) -> None:
    """Its Nemotron-H adds a control vector in feed-forward blocks only, without a word."""
    base = saved("nemotron_h", hybrid_override_pattern="M*M-")
    out = tmp_path / "v"
    for block in (1, 2):
        with pytest.raises(ExportError, match=rf"at block {block}, which is no feed-forward block"):
            export(steered(base, block), to="gguf-vector", **base.base, out=out)
    assert export(steered(base, 3), to="gguf-vector", **base.base, out=out).verdict == "verified"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    write_gguf(foreign / FILE, KIND, {}, {"direction.2": vector(32)})
    with pytest.raises(ExportError, match="at block 2, which is no feed-forward block"):
        verify_export(foreign, str(base.path))


def test_a_bias_of_every_expert_is_no_vector(saved, tmp_path) -> None:
    base = saved("gpt_oss")
    edit = base.ablated()
    experts = "model.layers.1.mlp.experts.down_proj_bias"
    only = {experts: edit.updates[experts]}
    shifted = WeightDelta(only, edit.base, edit.recipe, edit.exactness, edit.coverage)
    with pytest.raises(ExportError, match="no addition to the output of its block"):
        export(shifted, to="gguf-vector", **base.base, out=tmp_path / "v")


def test_a_file_of_repeng_is_attached(saved, tmp_path) -> None:
    """repeng writes its own count and hint, which llama.cpp does not read."""
    base = saved("llama")
    fields = {f"{KIND}.model_hint": "mistral", f"{KIND}.layer_count": 2}
    made = {f"direction.{k}": vector(32, k) for k in (2, 1)}
    write_gguf(tmp_path / FILE, KIND, fields, made)
    assert list(read_gguf_vector(tmp_path / FILE)) == [1, 2]
    receipt = verify_export(tmp_path, str(base.path))
    assert (receipt.verdict, receipt.probe) == ("verified", "no stored probe")
    assert receipt.effect > 1e-2


def test_files_that_llama_cpp_would_not_load_are_refused(saved, tmp_path) -> None:
    base, path = saved("llama"), tmp_path / FILE
    v = vector(32)
    for kind, tensors, why in (
        (KIND, {"direction.0": v}, r"direction.0, which llama.cpp rejects"),
        (KIND, {"direction.1": v.reshape(2, 16)}, r"direction.1 is F32 \(2, 16\)"),
        (KIND, {"direction.1": v, "direction.2": vector(16)}, "directions of several lengths"),
        (KIND, {"direction.-1": v}, "is no direction of a block"),
        (KIND, {"direction.01": v}, "is no direction of a block"),
        (KIND, {"blk.1.attn_q.weight": v}, "is no direction of a block"),
        (KIND, {}, "holds no direction"),
        ("llama", {"direction.1": v}, r"is no control vector \(llama\)"),
    ):
        write_gguf(path, kind, {}, tensors)
        with pytest.raises(ExportError, match=why):
            read_gguf_vector(tmp_path)
    for tensors, why in (
        ({"direction.1": vector(16)}, "vectors of 16 up to block 1, .* has 3 blocks of 32"),
        ({"direction.3": v}, "vectors of 32 up to block 3, .* has 3 blocks of 32"),
    ):
        write_gguf(path, KIND, {}, tensors)
        with pytest.raises(ExportError, match=rf"made for another base: {why}"):
            verify_export(tmp_path, str(base.path))
    with pytest.raises(ExportError, match=r"direction.1 is not finite"):
        write_gguf(path, KIND, {}, {"direction.1": v * torch.nan})


def test_a_half_precision_vector_is_refused_as_llama_cpp_does(tmp_path) -> None:
    writer = gguf.GGUFWriter(tmp_path / FILE, KIND)
    writer.add_tensor("direction.1", np.ones(32, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ExportError, match=r"direction.1 is F16 \(32,\)"):
        read_gguf_vector(tmp_path)


def test_a_damaged_file_gives_one_clear_error(saved, tmp_path) -> None:
    base = saved("llama")
    export(steered(base, 1), to="gguf-vector", **base.base, out=tmp_path / "v")
    path = tmp_path / "v" / FILE
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:60], b"", b"GGUF", bytes(400), whole[:-4] + b"\0\0\xc0\x7f"):
        path.write_bytes(damaged)
        with pytest.raises(ExportError, match=r"; copy it again, or export again$"):
            read_gguf_vector(path)
    path.write_bytes(whole[:-4] + struct.pack("<f", 3.0))
    with pytest.raises(ExportError, match=rf"{FILE} "):
        verify_export(tmp_path / "v", str(base.path))


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.integers(1, 200), st.integers(0, 99), min_size=1, max_size=6),
    st.integers(1, 70),
)
def test_vectors_come_back_bit_for_bit(seeds, d_model) -> None:
    made = {block: vector(d_model, seed) for block, seed in seeds.items()}
    with tempfile.TemporaryDirectory() as folder:
        tensors = {f"direction.{k}": v for k, v in made.items()}
        write_gguf(Path(folder) / FILE, KIND, {}, tensors)
        back = read_gguf_vector(folder)
    assert list(back) == sorted(made)
    assert all(torch.equal(back[k], v) for k, v in made.items())


def test_steering_itself_is_what_the_file_says(saved, tmp_path) -> None:
    """The vector of ``steering`` at a site comes back as the file's vector at that block."""
    base = saved("qwen2")
    added = vector(32)
    edit = to_delta(base.model, base.anatomy, steering(Site.resid_post(2), added, 0.5))
    export(edit, to="gguf-vector", **base.base, out=tmp_path / "v")
    assert torch.equal(read_gguf_vector(tmp_path / "v")[2], 0.5 * added)
