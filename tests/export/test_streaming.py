"""The streamed merge: the same bits as an edit in memory, from files that are never loaded whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from toolbox import random_direction

from interp.edits import ablation, applied, to_delta
from interp.errors import DeltaError, ExportError, ModelNotFound
from interp.export import verify_export
from interp.export.merged import merge
from interp.export.streaming import BLOCK, Leak, stream
from interp.models import describe
from interp.models.checkpoint import Checkpoint
from interp.types import LowRank, Shift


def tensors(folder) -> dict[str, torch.Tensor]:
    """All tensors of a model directory, by an independent reader."""
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def assert_same(left, right) -> None:
    assert left.keys() == right.keys()
    assert [k for k in left if not torch.equal(left[k], right[k])] == []


def sharded(base, folder, size="20KB"):
    """The base saved in several files with an index."""
    base.model.save_pretrained(folder, max_shard_size=size)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_files_and_memory_give_the_same_bits(model_type, dtype, saved, tmp_path) -> None:
    base = saved(model_type, dtype=dtype)
    edit = base.ablated(embeddings=True)
    with applied(base.model, base.anatomy, edit) as model:
        model.save_pretrained(tmp_path / "memory")
    report = merge(edit, str(base.path), tmp_path / "files", unproven=True)
    found, base_files = tensors(tmp_path / "files"), tensors(base.path)
    assert_same(found, tensors(tmp_path / "memory"))
    # transformers loads, and so saves, a few parameters in fp32 whatever the files hold.
    assert all(found[k].dtype == value.dtype for k, value in base_files.items())
    assert report["tensors"]["edited"] == sum(len(names) for names in edit.checkpoint.values())
    assert report["dtype"] == dtype


def test_shards_stay_as_they_are_and_the_index_is_right(saved, tmp_path) -> None:
    base = saved("qwen3_moe")
    folder = sharded(base, tmp_path / "base")
    edit = base.ablated()
    merge(edit, str(folder), tmp_path / "out", unproven=True)
    assert {p.name for p in (tmp_path / "out").glob("*.safetensors")} == {
        p.name for p in folder.glob("*.safetensors")
    }
    index = "model.safetensors.index.json"
    assert json.loads((tmp_path / "out" / index).read_text()) == json.loads(
        (folder / index).read_text()
    )
    edited = {name for names in edit.checkpoint.values() for name in names}
    before, after = tensors(folder), tensors(tmp_path / "out")
    assert {k for k in before if not torch.equal(before[k], after[k])} == edited


@pytest.mark.usefixtures("in_process")
def test_an_untied_unembedding_is_added_to_shards_and_index(saved, tmp_path) -> None:
    base = saved("llama")
    folder = sharded(base, tmp_path / "base")
    report = merge(base.ablated(embeddings=True), str(folder), tmp_path / "out", unproven=True)
    assert report["tensors"]["added"] == ["lm_head.weight"]
    old, new = (
        json.loads((p / "model.safetensors.index.json").read_text())
        for p in (folder, tmp_path / "out")
    )
    assert new["weight_map"].keys() - old["weight_map"].keys() == {"lm_head.weight"}
    head = tensors(tmp_path / "out")["lm_head.weight"]
    assert torch.equal(head, tensors(folder)["model.embed_tokens.weight"])
    grown = new["metadata"]["total_size"] - old["metadata"]["total_size"]
    assert grown == head.numel() * head.element_size()
    assert verify_export(tmp_path / "out", str(folder)).verdict == "verified"


def test_all_but_weights_travels_along(saved, tmp_path) -> None:
    base = saved("llama", tokenizer=True)
    folder = sharded(base, tmp_path / "base")
    base.tokenizer.save_pretrained(folder)
    (folder / "LICENSE").write_text("MIT")
    (folder / "pytorch_model.bin").write_text("old weights")
    (folder / "receipt.json").write_text("of an earlier export")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    merge(base.ablated(), str(folder), tmp_path / "out", unproven=True)
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")}
    assert {"LICENSE", "tokenizer.json", "config.json", "generation_config.json"} <= names
    assert "additional_chat_templates/tool.jinja" in names
    assert not names & {"pytorch_model.bin", "receipt.json"}


def test_the_leak_is_that_of_the_stored_weights(saved, tmp_path) -> None:
    """Measured again from the files: what is left of the direction, over what there was."""
    base = saved("llama", dtype="bfloat16")
    edit = base.ablated()
    report = merge(edit, str(base.path), tmp_path / "out", unproven=True)
    before, after = tensors(base.path), tensors(tmp_path / "out")
    shares = {}
    for name, update in edit:
        unit = update.b[:, 0].double() / update.b[:, 0].double().norm()
        left = (unit @ after[name].double()).norm() / (unit @ before[name].double()).norm()
        shares[name] = left.item()
    assert report["leak"]["largest"] == pytest.approx(max(shares.values()), rel=1e-3)
    assert report["leak"]["at"] == max(shares, key=shares.__getitem__)
    assert 1e-4 < report["leak"]["largest"] < 0.05
    exact = merge(
        saved("llama").ablated(), str(saved("llama").path), tmp_path / "fp32", unproven=True
    )
    assert exact["leak"]["largest"] < 1e-6


@pytest.mark.usefixtures("in_process")
def test_a_merge_is_verified_later_from_its_files(saved, tmp_path) -> None:
    base = saved("jamba")
    merge(base.ablated(), str(base.path), tmp_path / "out", unproven=True)
    assert verify_export(tmp_path / "out", str(base.path)).verdict == "verified"
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["written"] == "streamed"


def test_another_base_and_missing_files_leave_nothing(saved, tmp_path) -> None:
    base, other = saved("llama"), saved("llama", seed=9)
    with pytest.raises(DeltaError, match="made for another base"):
        merge(base.ablated(), str(other.path), tmp_path / "out", unproven=True)
    with pytest.raises(ExportError, match="is or holds the base model"):
        merge(base.ablated(), str(base.path), base.path, overwrite=True, unproven=True)
    folder = sharded(base, tmp_path / "base")
    sorted(folder.glob("*.safetensors"))[0].unlink()
    with pytest.raises(ModelNotFound, match=r"lacks model-0.*which its index names"):
        merge(base.ablated(), str(folder), tmp_path / "out", unproven=True)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_quantised_tensors_are_refused(tmp_path) -> None:
    save_file({"w": torch.zeros(4, 3, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    update = LowRank(torch.ones(4, 1), torch.ones(1, 3))
    with pytest.raises(ExportError, match=r"quantised \(U8\); merge into the unquantised"):
        stream(Checkpoint.open(tmp_path), tmp_path / "out", {"w": update}, {})


SIDES = st.sampled_from([1, 2, 3, 7, 64, 150, 257])
"""Up to four and a half times what is summed at once."""


@given(data=st.data())
def test_any_shape_axes_and_rank(data, tmp_path_factory) -> None:
    """Streamed rows add up to the whole update, wherever the pieces end."""
    experts = data.draw(st.sampled_from([0, 1, 3]))
    update, weight = drawn(
        (experts,) if experts else (),
        (data.draw(SIDES), data.draw(SIDES)),
        rank=data.draw(st.integers(1, 3)),
        axes=data.draw(st.sampled_from(["in out", "out in"])),
        dtype=data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        seed=data.draw(st.integers(0, 99)),
    )
    assert_streamed(update, weight, tmp_path_factory.mktemp("any"))


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["in out", "out in"])
def test_a_tensor_larger_than_a_block_is_the_sum_as_well(axes, tmp_path) -> None:
    update, weight = drawn((), (BLOCK // 4096, 1030), rank=2, axes=axes, dtype=torch.float32)
    assert weight.nbytes > BLOCK
    assert_streamed(update, weight, tmp_path)


def drawn(lead, sides, *, rank, axes, dtype, seed=0) -> tuple[LowRank, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    update = LowRank(
        torch.randn(*lead, sides[0], rank, generator=generator),
        torch.randn(*lead, rank, sides[1], generator=generator),
        f"expert {axes}" if lead else axes,
    )
    return update, torch.randn(update.stored_shape, generator=generator).to(dtype)


def assert_streamed(update: LowRank, weight: torch.Tensor, folder: Path) -> None:
    """The update, a bias and a copy, between tensors that stay as they are."""
    dtype = weight.dtype
    other, bias = torch.arange(5, dtype=torch.int32), torch.linspace(-1, 1, 6).to(dtype)
    save_file(
        {"a": other, "m.bias": bias, "w": weight, "z": other.clone()}, folder / "model.safetensors"
    )
    out = folder / "out"
    out.mkdir()
    patches = {"w": update, "m.bias": Shift(torch.ones(6))}
    source = Checkpoint.open(folder)
    done = stream(source, out, patches, {"new": source.tensors["w"]})
    got = load_file(out / "model.safetensors")
    expected = (weight.float() + update.stored()).to(dtype)
    # A matrix product of fewer rows may be summed in another order.
    assert torch.allclose(got["w"].float(), expected.float(), rtol=1e-2, atol=1e-2)
    assert (got["w"].float() - expected.float()).abs().max() <= 2 * torch.finfo(dtype).eps * 16
    assert torch.equal(got["m.bias"], (bias.float() + 1).to(dtype))
    assert torch.equal(got["new"], weight)
    assert torch.equal(got["a"], other)
    assert torch.equal(got["z"], other)
    assert done.size == (out / "model.safetensors").stat().st_size


def test_rows_and_columns_leak_alike() -> None:
    """A sum over rows is squared when it is complete, not before."""
    error, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 8.0]])
    parts, whole = Leak(), Leak()
    parts.add(error, weight, whole=False)
    parts.add(-error, 0 * weight, whole=True)
    whole.add(error, weight, whole=True)
    assert parts.share == 0.0
    assert whole.share == pytest.approx(0.25)


KILLED = """
import sys, time
from interp.export import load_delta, merged
from interp.export.merged import merge
def slow(done):
    print("writing", flush=True)
    time.sleep(60)
merge(load_delta(sys.argv[1]), sys.argv[2], sys.argv[3], advance=slow, unproven=True)
"""


@pytest.mark.slow
def test_a_kill_leaves_nothing_and_a_rerun_starts_clean(saved, tmp_path) -> None:
    from interp.export import save_delta

    base = saved("llama")
    save_delta(base.ablated(), tmp_path / "delta")
    out = tmp_path / "out"
    words = [sys.executable, "-c", KILLED, str(tmp_path / "delta"), str(base.path), str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "writing\n"
        os.kill(child.pid, signal.SIGKILL)
    left = [p for p in tmp_path.iterdir() if p.name.startswith(".out.export-")]
    assert len(left) == 1
    assert not out.exists()
    time.sleep(0.05)
    merge(base.ablated(), str(base.path), out, unproven=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["delta", "out"]


GROWN = """
import sys
from pathlib import Path
from interp.export import load_delta
from interp.export.merged import merge

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1])

delta = load_delta(sys.argv[1])
merge(delta, sys.argv[2], sys.argv[3] + "-warm", unproven=True)
before = peak()
merge(delta, sys.argv[2], sys.argv[3], unproven=True)
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_model(tmp_path) -> None:
    """A checkpoint of 270 MB is merged in one block of memory, which a first run leaves as it was."""
    from interp.export import save_delta
    from interp.models import tiny_model

    wide = {
        "hidden_size": 512,
        "intermediate_size": 8192,
        "vocab_size": 16384,
        "num_hidden_layers": 5,
    }
    model = tiny_model("llama", **wide)
    folder = tmp_path / "base"
    model.save_pretrained(folder)  # type: ignore[operator]
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert size > 250e6
    unit = random_direction(512)
    anatomy = describe(model)
    save_delta(to_delta(model, anatomy, ablation(model, anatomy, unit)), tmp_path / "delta")
    words = [str(tmp_path / "delta"), str(folder), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", GROWN, *words], capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after - before < 64 << 10  # kB


def test_where_the_kernel_does_not_copy_the_bits_are_the_same(saved, tmp_path, monkeypatch) -> None:
    base = saved("llama")
    edit = base.ablated(embeddings=True)
    merge(edit, str(base.path), tmp_path / "kernel", unproven=True)

    def refuse(*words: object) -> int:
        raise OSError("not to a file")

    monkeypatch.setattr(os, "sendfile", refuse, raising=False)
    merge(edit, str(base.path), tmp_path / "here", unproven=True)
    assert_same(tensors(tmp_path / "kernel"), tensors(tmp_path / "here"))


def test_a_full_disk_is_the_error_and_nothing_is_left(saved, tmp_path) -> None:
    """Files may not grow: the header is written, what follows it is not."""
    base = saved("llama")
    edit, before = base.ablated(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(ExportError, match="File too large"):
            merge(edit, str(base.path), tmp_path / "out", unproven=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_is_the_error_and_nothing_is_left(saved, tmp_path) -> None:
    """Whichever half of the merge it meets, the other one stops."""
    base = saved("llama")
    for after in range(3):
        told: list[int] = []

        def fail(done: int, told: list[int] = told, after: int = after) -> None:
            told.append(done)
            if len(told) > after:
                raise OSError("the disk is full")

        with pytest.raises(ExportError, match="the disk is full"):
            merge(base.ablated(), str(base.path), tmp_path / "out", advance=fail, unproven=True)
        assert list(tmp_path.iterdir()) == []


def test_an_update_that_the_files_lack_or_share_is_one_clear_error(saved, tmp_path) -> None:
    from dataclasses import replace

    base = saved("qwen3")
    edit = base.ablated()
    name, other = list(edit.updates)[:2]
    update = edit.updates[name]
    foreign = replace(edit, updates={"model.layers.0.mlp.down_proj.bias": Shift(torch.ones(32))})
    with pytest.raises(ExportError, match="no setting that gives"):
        merge(foreign, str(base.path), tmp_path / "out", unproven=True)
    extra = "model.layers.0.self_attn.q_proj.weight"
    shape = dict(base.model.named_parameters())[extra].shape
    query = LowRank(torch.ones(shape[0], 1), torch.ones(1, shape[1]))
    twice = replace(
        edit,
        updates={other: update, extra: query},
        checkpoint={other: (other,), extra: (other,)},
    )
    with pytest.raises(DeltaError, match="two updates are saved as"):
        merge(twice, str(base.path), tmp_path / "out", unproven=True)
    gone = replace(edit, updates={extra: query}, checkpoint={extra: ("not.there",)})
    with pytest.raises(ExportError, match=r"has no not.there"):
        merge(gone, str(base.path), tmp_path / "out", unproven=True)
    assert list(tmp_path.iterdir()) == []
