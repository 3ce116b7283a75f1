"""Laws of the anatomy, for every described model type and the variants of ``conftest.CASES``."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from interp.errors import UndescribedWriter, UnknownFamily
from interp.models import auto_class, describe, families, family_of, known_model_types, tiny_model
from interp.models.anatomy import BoundComponent, BoundWriter, Family

TOLERANCE = 1e-6
EFFECT = 1e-3
DISTINCT_FAMILIES = list({id(f): f for f in families().values()}.values())
NEVER_TIED = ("nemotron_h",)
"""Transformers builds these with two matrices whatever ``tie_word_embeddings`` says."""
LATENT_EXPERTS = "mixer.experts.down_proj"
"""Nemotron-H: writes the stream, or with ``moe_latent_size`` only a latent space."""


def error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def addends(case, components: tuple[BoundComponent, ...]) -> Tensor:
    return sum(c.scale * case.trace.outputs[c.module] for c in components)


def writer_cases(case, *, fused: bool) -> list[tuple[BoundComponent, BoundWriter]]:
    return [(c, w) for c in case.anatomy.components for w in c.writers if w.fused == fused]


# The stream


def test_block_adds_its_components_and_nothing_else(case) -> None:
    for i, block in enumerate(case.anatomy.blocks):
        before, after = case.trace.inputs[block], case.trace.outputs[block]
        components = case.anatomy.in_block(i)
        assert error(before + addends(case, components), after) <= TOLERANCE
        for left_out in components:
            rest = tuple(c for c in components if c is not left_out)
            assert error(before + addends(case, rest), after) > EFFECT, left_out.name


def test_each_block_reads_what_the_last_one_wrote(case) -> None:
    blocks = case.anatomy.blocks
    for upper, lower in zip(blocks[1:], blocks, strict=False):
        assert torch.equal(case.trace.inputs[upper], case.trace.outputs[lower])


def test_resid_mid_is_the_stream_after_the_mixers(case) -> None:
    for i, mid in enumerate(case.anatomy.resid_mid):
        if mid is None:
            continue
        mixers = tuple(c for c in case.anatomy.in_block(i) if c.kind in ("attention", "ssm"))
        expected = case.trace.inputs[case.anatomy.blocks[i]] + addends(case, mixers)
        assert error(case.trace.inputs[mid], expected) <= TOLERANCE


def test_blocks_without_resid_mid_are_parallel_or_have_one_component(case) -> None:
    for i, mid in enumerate(case.anatomy.resid_mid):
        components = case.anatomy.in_block(i)
        parallel = case.model_type in ("cohere", "gptj", "phi") or getattr(
            case.model.config, "use_parallel_residual", False
        )
        assert (mid is None) == (parallel or len(components) == 1)


def test_embedding_enters_block_zero(case, ids: Tensor) -> None:
    anatomy = case.anatomy
    outputs = [case.trace.outputs[w.module] for w in anatomy.embeddings]
    entered = case.trace.inputs[anatomy.blocks[0]]
    assert error(anatomy.embed_scale * sum(outputs), entered) <= TOLERANCE
    table = case.model.get_parameter(anatomy.embeddings[0].weight)
    assert error(anatomy.embeddings[0].scale * table[ids], anatomy.embed_scale * outputs[0]) < 1e-6


def test_logits_come_from_the_last_block(case) -> None:
    anatomy, seen = case.anatomy, case.trace
    assert torch.equal(seen.inputs[anatomy.final_norm], seen.outputs[anatomy.blocks[-1]])
    assert torch.equal(seen.inputs[anatomy.unembed], seen.outputs[anatomy.final_norm])
    logits = anatomy.logit_scale * seen.outputs[anatomy.unembed]
    if anatomy.logit_cap is not None:
        logits = anatomy.logit_cap * torch.tanh(logits / anatomy.logit_cap)
    assert error(logits, seen.logits) <= TOLERANCE


def test_tiny_logits_are_tame(case) -> None:
    assert 0.1 < case.trace.logits.std().item() < 20


def is_normalised(values: Tensor, centred: bool) -> bool:
    spread = values.var(-1, correction=0) if centred else values.square().mean(-1)
    return torch.allclose(spread, torch.ones_like(spread), atol=1e-2)


def test_norm_gains_are_offset_plus_weight(case) -> None:
    norms = {case.anatomy.final_norm: case.anatomy.family.final_norm_offset}
    for component, writer in [(c, w) for c in case.anatomy.components for w in c.writers]:
        if writer.gain:
            assert writer.gain == f"{component.module}.weight"
            norms[component.module] = writer.gain_offset
    for name, offset in norms.items():
        module = case.model.get_submodule(name)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        out = case.trace.outputs[name] - (0 if bias is None else bias)
        centred = "LayerNorm" in type(module).__name__ and "RMS" not in type(module).__name__
        assert is_normalised(out if weight is None else out / (offset + weight), centred), name


# The writers


def test_writers_exist_and_write_d_model(case) -> None:
    params = dict(case.model.named_parameters(remove_duplicate=False))
    for writer in case.anatomy.writers:
        assert tuple(params[writer.weight].shape) == writer.shape
        assert writer.d_out == case.anatomy.d_model
        assert writer.fused == (len(writer.shape) == 3)
        assert (writer.bias in params) == (writer.bias is not None)


def test_writer_orientation(case) -> None:
    """``W a + b`` with the claimed axes is what the module returns (square matrices too)."""
    for _, writer in writer_cases(case, fused=False):
        weight = case.model.get_parameter(writer.weight)
        canonical = weight if writer.axes == "out in" else weight.T
        expected = case.trace.inputs[writer.module] @ canonical.T
        if writer.bias:
            expected = expected + case.model.get_parameter(writer.bias)
        assert error(case.trace.outputs[writer.module], expected) <= 1e-5


def zero(model: nn.Module, writer: BoundWriter) -> None:
    with torch.no_grad():
        for name in (writer.weight, writer.bias):
            if name:
                model.get_parameter(name).zero_()


def test_a_component_is_zero_without_its_writers(case, ids: Tensor, run_traced) -> None:
    """The first of each kind in each company: those of other blocks are described by the same lines."""
    found: dict[object, BoundComponent] = {}
    for component in case.anatomy.components:
        others = tuple(c.kind for c in case.anatomy.in_block(component.block))
        found.setdefault((component.kind, others), component)
    for component in found.values():
        model, before = case.fresh(), case.trace.outputs[component.module]
        for writer in component.writers:
            zero(model, writer)
            after = run_traced(model, {component.module}, ids).outputs[component.module]
            assert (after - before).norm() > EFFECT * before.norm(), writer.name
            before = after
        assert not after.any(), component.name


def test_writer_scale_is_the_response_of_the_stream(case, ids: Tensor, with_hooks, run_traced):
    vector = torch.linspace(-1, 1, case.anatomy.d_model)
    for component, writer in writer_cases(case, fused=False):
        add = {writer.module: lambda module, args, kwargs, out: out + vector}
        with with_hooks(case.model, add):
            after = run_traced(case.model, {component.module}, ids).outputs[component.module]
        response = component.scale * (after - case.trace.outputs[component.module])
        if writer.scale is None:
            assert (response - response[:1, :1]).norm() > EFFECT * response.norm()
        else:
            assert error(response, (writer.scale * vector).expand_as(response)) < 1e-5


def test_expert_scale_is_the_sum_of_routing_weights(case, ids: Tensor, with_hooks) -> None:
    for component, writer in writer_cases(case, fused=True):
        sums: list[Tensor] = []
        spy = {writer.module: lambda m, args, kw, out, kept=sums: kept.append(args[2].sum(-1))}
        with torch.no_grad(), with_hooks(case.model, spy):
            case.model(ids)
        reached = component.scale * sums[0]
        if writer.scale is None:
            assert reached.std() > EFFECT
        else:
            assert torch.allclose(reached, torch.full_like(reached, writer.scale), atol=1e-5)


# Refusals


@pytest.mark.parametrize("where", ["block", "outside"])
def test_undescribed_parameter_is_refused(case, where: str) -> None:
    model = case.fresh()
    parent = case.anatomy.blocks[1] if where == "block" else case.anatomy.blocks[0].split(".")[0]
    model.get_submodule(parent).add_module("surprise", nn.Linear(4, 4))
    with pytest.raises(UndescribedWriter, match=r"surprise.*interp/models/"):
        describe(model)


def test_unknown_model_type_names_the_file_to_add() -> None:
    with pytest.raises(UnknownFamily, match=r"interp/models/no_such_model\.py"):
        family_of("no_such_model")


# Names


def matches(name: str, family: Family, glob: str) -> bool:
    prefix = f"{family.blocks}."
    if name.startswith(prefix):
        return fnmatchcase(name[len(prefix) :].split(".", 1)[1], glob)
    return fnmatchcase(name, glob)


@pytest.mark.parametrize("family", DISTINCT_FAMILIES, ids=lambda f: f.model_types[0])
def test_every_glob_matches_a_parameter_and_no_writer(family: Family, variants_of) -> None:
    unused = {*family.readers, *family.outside}
    for model in variants_of(family.model_types):
        writers = {name for w in describe(model).writers for name in (w.weight, w.bias)}
        for name, _ in model.named_parameters(remove_duplicate=False):
            hits = {g for g in (*family.readers, *family.outside) if matches(name, family, g)}
            assert name not in writers or hits <= {LATENT_EXPERTS}, name
            unused -= hits if name not in writers else set()
    assert not unused


def test_tiny_configs_cover_their_model_types() -> None:
    for family in DISTINCT_FAMILIES:
        assert set(family.tiny) == set(family.model_types)
    assert known_model_types() == sorted(families())


def saved(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def check_saved(tensors: dict[str, Tensor], names: tuple[str, ...], value: Tensor) -> None:
    pieces = value if len(names) > 1 else (value,)
    assert len(names) == len(pieces)
    for name, piece in zip(names, pieces, strict=True):
        assert torch.equal(tensors[name], piece), name


@pytest.mark.parametrize("tied", [True, False])
def test_checkpoint_names_and_ties(case, tied: bool, tmp_path: Path) -> None:
    model = case.fresh(tie_word_embeddings=tied)
    anatomy, tensors = describe(model), saved(model, tmp_path)
    for writer in anatomy.writers:
        check_saved(tensors, writer.checkpoint, model.get_parameter(writer.weight))
        assert bool(writer.bias) == bool(writer.bias_checkpoint)
        if writer.bias:
            check_saved(tensors, writer.bias_checkpoint, model.get_parameter(writer.bias))
    expected = tied and case.model_type not in NEVER_TIED
    assert anatomy.tied == anatomy.embeddings[0].tied == expected
    assert (anatomy.unembed_checkpoint in tensors) == (not expected)
    assert not any(w.tied for w in anatomy.writers[1:])


def test_meta_device_gives_the_same_anatomy(case) -> None:
    with torch.device("meta"):
        model = auto_class(case.model.config).from_config(case.model.config)
    assert describe(model) == case.anatomy


def test_tiny_models_are_seeded(model_type: str) -> None:
    one, same, other = (tiny_model(model_type, seed=s) for s in (0, 0, 1))
    weight = describe(one).block_writers[0].weight
    assert torch.equal(one.get_parameter(weight), same.get_parameter(weight))
    assert not torch.equal(one.get_parameter(weight), other.get_parameter(weight))
