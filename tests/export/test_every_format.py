"""One edit of each kind of model, out in every format that may hold it and back with equal logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toolbox import random_direction

from interp.backends import open_model
from interp.backends.hooks import HooksBackend
from interp.edits import Edit, ablation, steering, to_delta
from interp.errors import ExportError, NotExpressible
from interp.export import EXPORTERS, export, verify_export
from interp.export.exporter import Base
from interp.export.probe import probe_batch
from interp.export.reading import read_edit
from interp.operators import LeastDisturbance
from interp.sites import Site
from interp.types import LowRank

pytestmark = pytest.mark.usefixtures("in_process")

MODELS = ("smollm2", "jamba", "mamba", "qwen3_moe", "gemma3_text")
BACK = 1e-4
"""Allowed difference of logits relative to the largest: what a receipt in fp32 allows."""
HOLDS = {
    ("least-disturbance", "smollm2"): {"delta", "peft", "merged", "gguf-lora"},
    ("least-disturbance", "jamba"): {"delta", "peft", "merged", "gguf-lora"},
    ("least-disturbance", "mamba"): {"delta", "merged", "gguf-lora"},
    ("least-disturbance", "qwen3_moe"): {"delta", "peft", "merged"},
    ("least-disturbance", "gemma3_text"): {"delta", "peft", "merged", "gguf-lora"},
}
"""Written down, so that a format which quietly stops holding something is noticed. The tiny Qwen3-MoE
mixes dense and expert blocks, which llama.cpp does not run."""


@pytest.fixture(
    params=[*(pytest.param(m, marks=pytest.mark.slow) for m in MODELS[:2]), *MODELS[2:]]
)
def opened(request: pytest.FixtureRequest, saved: Any) -> tuple[str, str, HooksBackend]:
    if request.param == "smollm2":
        return "smollm2", "smollm2", open_model("smollm2", dtype="float32")  # type: ignore[return-value]
    base = saved(request.param)
    backend = HooksBackend(base.model, base.tokenizer, base.anatomy, str(base.path))
    return request.param, str(base.path), backend


def probing(backend: HooksBackend) -> Edit:
    """A least-disturbance update with a random probe at every writer, experts included."""
    generator = torch.Generator().manual_seed(0)
    operators = {}
    for writer in backend.anatomy.block_writers:
        unit = torch.randn(writer.d_out, generator=generator)
        shape = (writer.shape[0], writer.d_in) if writer.fused else (writer.d_in,)
        probe = torch.randn(shape, generator=generator) / writer.d_in**0.5
        operators[writer.weight] = LeastDisturbance(unit / unit.norm(), probe, 0.5)
    return Edit(operators, recipe={"method": "least-disturbance"})


def legal(delta: Any, name: str, backend: HooksBackend) -> set[str]:
    base = Base(backend.model, backend.tokenizer, backend.anatomy, name)
    return {e.name for e in EXPORTERS.values() if e.refusal(delta, base) is None}


def test_a_low_rank_edit_goes_out_and_comes_back(opened, tmp_path) -> None:
    model_type, name, backend = opened
    delta = to_delta(backend.model, backend.anatomy, probing(backend))
    batch = probe_batch(backend)
    edited, plain = backend.logits(batch, delta), backend.logits(batch)
    scale = edited.abs().max().item()
    assert (edited - plain).abs().max().item() > 20 * BACK * scale
    formats = legal(delta, name, backend)
    assert formats == HOLDS["least-disturbance", model_type]
    for to in sorted(EXPORTERS):
        out = tmp_path / to
        arguments: dict[str, Any] = {"base": backend, "base_name": name, "out": out}
        if to not in formats:
            with pytest.raises(ExportError, match="formats that can: "):
                export(delta, to=to, unproven=True, **arguments)
            assert not out.exists()
            continue
        assert export(delta, to=to, unproven=True, **arguments).verdict == "verified"
        assert verify_export(out, name).verdict == "verified"
        back = read_edit(out, name)
        assert (backend.logits(batch, back) - edited).abs().max().item() <= BACK * scale, to
        assert set(back.updates) == set(delta.updates)


@pytest.mark.parametrize("model_type", ["llama", "jamba", "mamba", "gemma3_text"])
def test_an_addition_goes_out_as_control_vector_and_comes_back(model_type, saved, tmp_path) -> None:
    base = saved(model_type)
    backend = HooksBackend(base.model, base.tokenizer, base.anatomy, str(base.path))
    vector = random_direction(base.anatomy.d_model).vector
    batch = probe_batch(backend)
    edit = steering(Site.resid_post(1), vector, 3.0)
    expected = backend.logits(batch, edit)
    if model_type == "gemma3_text":  # a norm stands between its writers and the stream
        with pytest.raises(NotExpressible, match="no exact weight form"):
            to_delta(base.model, base.anatomy, edit)
        return
    delta = to_delta(base.model, base.anatomy, edit)
    assert "gguf-vector" in legal(delta, str(base.path), backend)
    out = tmp_path / "vector"
    assert export(delta, to="gguf-vector", **base.base, out=out).verdict == "verified"
    found = EXPORTERS["gguf-vector"].attach(
        out, Base(base.model, None, base.anatomy, str(base.path)), {}
    )
    scale = expected.abs().max().item()
    assert (backend.logits(batch, found.edit) - expected).abs().max().item() <= BACK * scale
    if model_type == "jamba":  # block 0 ends in experts
        return
    first = to_delta(base.model, base.anatomy, steering(Site.resid_post(0), vector))
    with pytest.raises(ExportError, match=r"block 0"):
        export(first, to="gguf-vector", **base.base, out=tmp_path / "first")


def test_the_formats_of_the_command_line_are_those_of_the_registry() -> None:
    from interp.cli.export import FORMATS

    assert set(FORMATS) == set(EXPORTERS)


def test_a_foreign_adapter_is_exported_as_a_delta_of_its_base(saved, tmp_path) -> None:
    """Anyone's ablation, read back in, goes out in another format."""
    base = saved("jamba")
    edit = base.disturbed()
    export(edit, to="peft", **base.base, out=tmp_path / "peft")
    for name in ("receipt.json",):
        (tmp_path / "peft" / name).unlink()
    foreign = read_edit(tmp_path / "peft", str(base.path))
    export(foreign, to="merged", **base.base, out=tmp_path / "merged")
    back = read_edit(tmp_path / "merged", str(base.path))
    for name, update in edit:
        assert isinstance(update, LowRank)
        share = (back.updates[name].dense() - update.dense()).norm() / update.dense().norm()
        assert share.item() < 1e-4, name


def test_ablation_of_everything_is_held_where_a_tied_embedding_may_be(saved, tmp_path) -> None:
    base = saved("gemma3_text")
    backend = HooksBackend(base.model, base.tokenizer, base.anatomy, str(base.path))
    unit = random_direction(base.anatomy.d_model)
    delta = to_delta(
        base.model, base.anatomy, ablation(base.model, base.anatomy, unit, embeddings=True)
    )
    assert delta.untied
    assert legal(delta, str(base.path), backend) == {"delta", "merged"}
    assert legal(replace(delta, updates=dict(list(delta)[1:]), untied=False), "", backend) > {
        "peft"
    }
