"""Damaged GGUF files give one clear error, and what is not damaged comes back bit for bit."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import ExportError
from interp.export import export, verify_export
from interp.export.gguf_files import open_gguf, write_gguf
from interp.export.gguf_lora import FILE, read_gguf_lora
from interp.export.gguf_names import places
from interp.models import describe, tiny_model
from interp.types import LowRank

pytestmark = pytest.mark.usefixtures("in_process")

LORA = {"general.type": "adapter", "adapter.type": "lora"}


def target() -> dict[str, Tensor]:
    """Random factors of rank 2 for the attention output of the tiny llama (``[32, 48]``)."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(s, generator=generator) for s in ((2, 48), (32, 2)))
    tensor = "blk.1.attn_output.weight"
    return {f"{tensor}.lora_a": a, f"{tensor}.lora_b": b}


@pytest.fixture(scope="module")
def bytes_of_one(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("one") / FILE
    write_gguf(path, "llama", LORA | {"adapter.lora.alpha": 2.0}, target())
    return path.read_bytes()


def test_a_file_cut_anywhere_gives_one_clear_error(bytes_of_one, saved, tmp_path) -> None:
    anatomy, path = saved("llama").anatomy, tmp_path / FILE
    whole = len(bytes_of_one)
    for length in [*range(0, 420, 3), whole // 2, whole - 1]:
        path.write_bytes(bytes_of_one[:length])
        with pytest.raises(ExportError, match=r"copy it again, or export again$"):
            read_gguf_lora(path, anatomy)
    path.write_bytes(bytes_of_one)
    assert len(read_gguf_lora(path, anatomy)) == 1


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_header_gives_an_export_error_or_a_whole_adapter(bytes_of_one, data) -> None:
    """Any bytes, anywhere: no other exception, and no length in the file is believed."""
    at = data.draw(st.integers(0, 420))
    put = data.draw(st.binary(min_size=1, max_size=9))
    anatomy = describe(tiny_model("llama"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_bytes(bytes_of_one[:at] + put + bytes_of_one[at + len(put) :])
        # An ExportError or an adapter; any other exception fails the test by itself.
        with contextlib.suppress(ExportError):
            updates = read_gguf_lora(path, anatomy)
            assert all(bool(u.b.isfinite().all()) for u in updates.values())


def test_lengths_that_cannot_be_are_not_believed(bytes_of_one, saved, tmp_path) -> None:
    """A list of 2⁶² numbers keeps the reader of the gguf package busy for ever."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    key = struct.pack("<Q", 1) + b"x"
    for inner in (4, 6, 8, 9):
        body = key + struct.pack("<IIQ", 9, inner, 2**62)
        (tmp_path / "x.gguf").write_bytes(header + body)
        with pytest.raises(ExportError, match="truncated or damaged"):
            open_gguf(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(header + key + struct.pack("<IQ", 8, 40) + b"short")
    with pytest.raises(ExportError, match="40 bytes are announced"):
        open_gguf(tmp_path / "x.gguf")
    for number in (2**63, 2**40):
        (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, number, number))
        with pytest.raises(ExportError, match="truncated or damaged"):
            open_gguf(tmp_path / "x.gguf")
    deep = key + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    (tmp_path / "x.gguf").write_bytes(header + deep)
    with pytest.raises(ExportError, match="truncated or damaged"):
        open_gguf(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"ggml" + bytes_of_one[4:])
    with pytest.raises(ExportError, match="it does not begin with GGUF"):
        open_gguf(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(bytes_of_one.replace(struct.pack("<I", 3), b"\0\0\0\3", 1))
    with pytest.raises(ExportError, match="version 50331648; 2 and 3 are read"):
        open_gguf(tmp_path / "x.gguf")


def test_a_tensor_without_values_or_with_too_many_axes_is_refused(bytes_of_one, tmp_path) -> None:
    shape = struct.pack("<IQQ", 2, 48, 2)
    assert bytes_of_one.count(shape) == 1
    for wrong, why in (
        (struct.pack("<IQQ", 2, 48, 0), "lora_a is empty"),
        (struct.pack("<IQQ", 9, 48, 2), "lora_a has 9 dimensions"),
        (struct.pack("<IQQ", 0, 48, 2), "lora_a has 0 dimensions"),
    ):
        (tmp_path / "x.gguf").write_bytes(bytes_of_one.replace(shape, wrong))
        with pytest.raises(ExportError, match=f"truncated or damaged .*{why}"):
            open_gguf(tmp_path / "x.gguf")


def test_values_that_are_not_finite_are_refused(bytes_of_one, saved, tmp_path) -> None:
    bad = bytes_of_one[:-4] + struct.pack("<f", float("nan"))
    (tmp_path / FILE).write_bytes(bad)
    with pytest.raises(ExportError, match=r"lora_b is not finite"):
        read_gguf_lora(tmp_path, saved("llama").anatomy)


def test_a_damaged_export_does_not_verify(saved, tmp_path) -> None:
    base = saved("llama")
    export(base.ablated(), to="gguf-lora", **base.base, out=tmp_path / "lora")
    path = tmp_path / "lora" / FILE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ExportError, match=r"adapter.gguf"):
        verify_export(tmp_path / "lora", str(base.path))


# --- round trip --------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_factors_of_any_rank_come_back_bit_for_bit(data) -> None:
    """Ranks from 1 to 5 in one file, zero columns inside a factor and zeros at its end."""
    anatomy = describe(tiny_model("jamba"))
    chosen = data.draw(st.sets(st.sampled_from(anatomy.writers), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    ranks = {w.weight: data.draw(st.integers(1, 5)) for w in chosen}
    top = max(ranks.values())
    known, tensors, made = places(anatomy), {}, {}
    for writer in chosen:
        k, experts = ranks[writer.weight], writer.shape[:-2]
        b = torch.randn(*experts, writer.d_out, k, generator=generator)
        a = torch.randn(*experts, k, writer.d_in, generator=generator)
        if k > 2:
            b[..., 1], a[..., 1, :] = 0.0, 0.0
        made[writer.weight] = LowRank(b, a, writer.axes)
        place = known[writer.weight]
        b = torch.nn.functional.pad(b, (0, top - k))
        a = torch.nn.functional.pad(a, (0, 0, 0, top - k))
        tensors[f"{place.tensor}.lora_a"] = a.mT if place.embedding else a
        tensors[f"{place.tensor}.lora_b"] = b
    with tempfile.TemporaryDirectory() as folder:
        fields = LORA | {"adapter.lora.alpha": float(top)}
        write_gguf(Path(folder) / FILE, "jamba", fields, tensors)
        back = read_gguf_lora(folder, anatomy)
    assert back.keys() == made.keys()
    for name, update in made.items():
        assert back[name].axes == update.axes
        assert torch.equal(back[name].b, update.b)
        assert torch.equal(back[name].a, update.a)
