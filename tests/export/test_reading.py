"""One edit, written in every format by its exporter, reads back as the same delta of the same base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import relative

from interp.edits import fingerprint
from interp.errors import DeltaError, ExportError, ModelNotFound
from interp.export.exporter import Base, exporter_named
from interp.export.gate import Passed
from interp.export.reading import read_edit
from interp.models import loading, tiny_model
from interp.types import LowRank, WeightDelta

FORMATS = ("delta", "peft", "merged", "gguf-lora")


def written(made: Any, delta: WeightDelta, kind: str, out: Path) -> Path:
    out.mkdir()
    base = Base(made.model, made.tokenizer, made.anatomy, str(made.path))
    exporter = exporter_named(kind)
    if (why := exporter.refusal(delta, base)) is not None:
        pytest.skip(why)
    exporter.write(delta, base, out, Passed())
    return out


def forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, fail whoever builds a model with its weights."""
    from transformers import AutoModelForCausalLM

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(loading, "load", refuse)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "jamba", "gemma2", "mamba"])
def test_every_format_reads_back_without_the_model(
    model_type: str, kind: str, saved: Callable[..., Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made = saved(model_type)
    delta = made.ablated(weights=True)
    path = written(made, delta, kind, tmp_path / "edit")
    forbid_loading(monkeypatch)
    found = read_edit(path, str(made.path))
    assert found.base == delta.base == fingerprint(made.model, made.anatomy)
    assert dict(found).keys() == dict(delta).keys()
    for name, update in found:
        expected = dict(delta)[name]
        assert isinstance(update, LowRank)
        assert isinstance(expected, LowRank)
        assert update.axes == expected.axes
        assert relative(update.dense(), expected.dense()) < 1e-5
    assert found.coverage.edited == delta.coverage.edited
    if kind != "delta":
        assert {k: found.checkpoint[k] for k, _ in delta} == {
            k: delta.checkpoint[k] for k, _ in delta
        }
        assert found.recipe["method"] == ("difference" if kind == "merged" else kind)


def test_a_gguf_file_is_named_itself(saved: Callable[..., Any], tmp_path: Path) -> None:
    made = saved("llama")
    delta = made.ablated(weights=True)
    folder = written(made, delta, "gguf-lora", tmp_path / "edit")
    (file,) = folder.glob("*.gguf")
    moved = file.rename(tmp_path / "someone-elses.gguf")
    assert dict(read_edit(moved, str(made.path))).keys() == dict(delta).keys()


def test_an_adapter_on_a_tied_embedding_unties(saved: Callable[..., Any], tmp_path: Path) -> None:
    """PEFT adapts what the embedding gives, never the unembedding that shares its matrix."""
    from peft import LoraConfig, get_peft_model

    made = saved("gemma2")
    assert made.anatomy.tied
    model = tiny_model("gemma2")
    config = LoraConfig(target_modules=["embed_tokens"], r=2, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")  # type: ignore[arg-type]
    found = read_edit(tmp_path / "adapter", str(made.path))
    assert list(dict(found)) == ["model.embed_tokens.weight"]
    assert found.untied
    other = saved("gemma2", seed=3)
    with pytest.raises(
        ExportError, match=r"carries its own model\.embed_tokens\.weight, which is not that"
    ):
        read_edit(tmp_path / "adapter", str(other.path))


def test_rank_and_tolerance_reach_the_difference(saved: Callable[..., Any], tmp_path: Path) -> None:
    made = saved("llama")
    delta = made.ablated(weights=True).compose(made.ablated(seed=5, weights=True))
    path = written(made, delta, "merged", tmp_path / "edit")
    assert read_edit(path, str(made.path)).rank == 2
    assert read_edit(path, str(made.path), rank=1).rank == 1
    assert read_edit(path, str(made.path), tolerance=0.9).rank == 1


@pytest.mark.parametrize("kind", ["delta", "peft", "gguf-lora"])
def test_another_base_is_an_error_where_the_files_tell(
    kind: str, saved: Callable[..., Any], tmp_path: Path
) -> None:
    made = saved("llama")
    path = written(made, made.ablated(weights=True), kind, tmp_path / "edit")
    with pytest.raises((DeltaError, ExportError), match=r"the base it (names|was made for)"):
        read_edit(path, str(saved("llama", intermediate_size=40, seed=9).path))


def test_what_is_no_edit_is_an_error(saved: Callable[..., Any], tmp_path: Path) -> None:
    base = str(saved("llama").path)
    with pytest.raises(ExportError, match="does not exist"):
        read_edit(tmp_path / "absent", base)
    with pytest.raises(ExportError, match="holds no export"):
        read_edit(tmp_path, base)
    vector = tmp_path / "vector"
    vector.mkdir()
    (mark,) = exporter_named("gguf-vector").marks
    (vector / mark).write_bytes(b"GGUF")
    with pytest.raises(ExportError, match="is a gguf-vector, which is no edit of weights"):
        read_edit(vector, base)


def test_a_base_without_safetensors_is_unverified(
    saved: Callable[..., Any], tmp_path: Path
) -> None:
    made = saved("llama")
    path = written(made, made.ablated(weights=True), "peft", tmp_path / "edit")
    merged = written(made, made.ablated(weights=True), "merged", tmp_path / "merged")
    old = tmp_path / "old"
    old.mkdir()
    made.model.config.save_pretrained(old)
    torch.save(made.model.state_dict(), old / "pytorch_model.bin")
    found = read_edit(path, str(old))
    assert found.base == "unverified"
    with pytest.raises(ModelNotFound, match="has no safetensors on this machine"):
        read_edit(merged, str(old))
