"""Differences of checkpoints on disk: fingerprints, planted edits of every family, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import random_direction, relative
from torch import Tensor, nn

from interp.edits import ablation, applied, fingerprint, to_delta
from interp.errors import DeltaError, ModelNotFound
from interp.export import load_delta, save_delta
from interp.export.difference import checkpoint_fingerprint, difference
from interp.models import describe, tiny_model
from interp.models.anatomy import Anatomy
from interp.models.checkpoint import Checkpoint
from interp.models.loading import load
from interp.models.skeleton import skeleton
from interp.types import LowRank, Shift, WeightDelta

pytestmark = pytest.mark.slow
"""Several processes or many checkpoints a test: these run in the CI."""

EXACT = 1e-5
BF16_MATRIX = 0.01
BF16_LOGITS = 0.3
"""Share of the effect on the logits that the rounding of two bf16 checkpoints may cost."""

Change = Callable[[nn.Module], None]


@pytest.fixture(scope="module")
def on_disk(model_type: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model of every family, saved in fp32 and in bf16."""
    folder = tmp_path_factory.mktemp(model_type)
    for dtype in ("float32", "bfloat16"):
        model = tiny_model(model_type, dtype=getattr(torch, dtype))
        model.save_pretrained(folder / dtype)  # type: ignore[operator]
    return {dtype: folder / dtype for dtype in ("float32", "bfloat16")}


def opened(folder: Path) -> tuple[Any, Anatomy]:
    model, _ = load(str(folder))
    return model, describe(model)


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits.float()


def two(tmp_path: Path, change: Change, model_type: str = "llama", **overrides: Any) -> list[Path]:
    """A tiny model and the same after ``change``, on disk."""
    model = tiny_model(model_type, **overrides)
    paths = [tmp_path / "base", tmp_path / "other"]
    model.save_pretrained(paths[0])  # type: ignore[operator]
    with torch.no_grad():
        change(model)
    model.save_pretrained(paths[1])  # type: ignore[operator]
    return paths


def planted(rank: int, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(*shape[:-1], rank, generator=generator)
    a = torch.randn(*shape[:-2], rank, shape[-1], generator=generator)
    return 0.1 * b @ a


def plant(name: str, rank: int = 1) -> Change:
    return lambda model: model.get_parameter(name).add_(
        planted(rank, *model.get_parameter(name).shape)
    )


def assert_arrives(delta: WeightDelta, base: Path, other: Path, ids: Tensor) -> None:
    """base + delta gives the logits of other, which base does not."""
    (model, anatomy), (target, _) = opened(base), opened(other)
    wanted = logits(target, ids)
    assert relative(logits(model, ids), wanted) > 1e-3
    with applied(model, anatomy, delta):
        assert relative(logits(model, ids), wanted) < EXACT


# --- fingerprints ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_fingerprint_of_the_files_is_that_of_the_model(
    on_disk: dict[str, Path], dtype: str
) -> None:
    model, anatomy = opened(on_disk[dtype])
    checkpoint, found = Checkpoint.open(on_disk[dtype]), skeleton(str(on_disk[dtype]))[1]
    for samples in (50, 4096):
        expected = fingerprint(model, anatomy, samples=samples)
        assert checkpoint_fingerprint(checkpoint, found, samples=samples) == expected


def test_a_quantised_checkpoint_has_no_fingerprint(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base, _ = two(tmp_path, plant("model.layers.0.mlp.down_proj.weight"))
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] = torch.zeros(9, dtype=torch.uint8)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert checkpoint_fingerprint(Checkpoint.open(base), skeleton(str(base))[1]) == "unverified"
    with pytest.raises(DeltaError, match=r"are quantised .*; give the unquantised checkpoint"):
        difference(base, tmp_path / "other")


def test_experts_saved_one_by_one_may_be_stacked_transposed(tmp_path: Path) -> None:
    from dataclasses import replace

    from safetensors.torch import save_file

    saved = {f"e.{e}": torch.randn(5, 7) for e in range(3)}
    save_file(saved, tmp_path / "model.safetensors")
    model = nn.Module()
    model.stacked = nn.Parameter(torch.stack([value.T for value in saved.values()]))
    anatomy = describe(tiny_model("gpt_oss"))
    writer = replace(
        anatomy.block_writers[1], weight="stacked",
        axes="expert in out", shape=(3, 7, 5), checkpoint=tuple(saved),
    )  # fmt: skip
    component = replace(anatomy.components[1], writers=(writer,))
    anatomy = replace(anatomy, embeddings=(), components=(component,))
    for samples in (4096, 25):
        found = checkpoint_fingerprint(Checkpoint.open(tmp_path), anatomy, samples=samples)
        assert found == fingerprint(model, anatomy, samples=samples)


# --- planted edits, every family ---------------------------------------------------------------


def edited(folder: Path, out: Path) -> WeightDelta:
    """Save the ablated model beside its base; the delta that made it."""
    model, anatomy = opened(folder)
    edit = ablation(
        model, anatomy, random_direction(anatomy.d_model, 1), strength=0.9, embeddings=True
    )
    delta = to_delta(model, anatomy, edit)
    with applied(model, anatomy, delta):
        model.save_pretrained(out)
    return delta


def test_the_difference_is_the_planted_edit(
    on_disk: dict[str, Path], tmp_path: Path, ids: Tensor
) -> None:
    base, other = on_disk["float32"], tmp_path / "other"
    wanted = dict(edited(base, other))
    found = difference(base, other)
    assert dict(found).keys() == wanted.keys()
    for name, update in found:
        expected = wanted[name]
        if isinstance(update, Shift):
            assert relative(update.value, expected.value) < EXACT  # type: ignore[union-attr]
        else:
            assert isinstance(expected, LowRank)
            assert (update.rank, update.axes) == (expected.rank, expected.axes)
            assert relative(update.dense(), expected.dense()) < EXACT
    assert found.recipe["not_held"] == found.recipe["rounding"] == {}
    assert set(found.coverage.edited) == {
        w.weight for w in describe(load(str(base))[0]).writers if w.weight in wanted
    }
    assert_arrives(found, base, other, ids)


def test_the_difference_of_bf16_files_leaves_their_rounding_out(
    on_disk: dict[str, Path], tmp_path: Path, ids: Tensor
) -> None:
    base, other = on_disk["bfloat16"], tmp_path / "other"
    wanted = dict(edited(base, other))
    found = difference(base, other)
    assert dict(found).keys() == wanted.keys()
    for name, update in found:
        if isinstance(update, LowRank):
            assert update.rank == wanted[name].rank, "rounding makes the difference full rank"  # type: ignore[union-attr]
            assert relative(update.dense(), wanted[name].dense()) < BF16_MATRIX  # type: ignore[union-attr]
            assert 0.001 < found.recipe["tensors"][name]["left_out"] < 0.03
    (model, anatomy), (target, _) = opened(base), opened(other)
    after, before = logits(target, ids), logits(model, ids)
    with applied(model, anatomy, found):
        assert relative(logits(model, ids), after) < BF16_LOGITS * relative(before, after)


def test_a_difference_is_a_delta_like_any_other(tmp_path: Path, ids: Tensor) -> None:
    base, other = two(tmp_path, plant("model.layers.1.self_attn.o_proj.weight", 3))
    found = difference(base, other)
    back = load_delta(save_delta(found, tmp_path / "delta"))
    assert back.recipe["tensors"].keys() == {"model.layers.1.self_attn.o_proj.weight"}
    assert str(tmp_path) not in (tmp_path / "delta" / "manifest.json").read_text()
    assert_arrives(back, base, other, ids)


# --- other tensors than writers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "name", "saved", "axes"),
    [
        ("llama", "model.layers.1.self_attn.q_proj.weight", None, "out in"),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", None, "in out"),
        ("qwen2", "lm_head.weight", None, "out in"),
        ("mamba", "backbone.layers.0.mixer.x_proj.weight", None, "out in"),
        ("nemotron_h", "model.layers.0.mixer.in_proj.weight",
         "backbone.layers.0.mixer.in_proj.weight", "out in"),
    ],
)  # fmt: skip
def test_readers_and_unembedding_are_held_too(
    model_type: str, name: str, saved: str | None, axes: str, tmp_path: Path, ids: Tensor
) -> None:
    overrides = {"tie_word_embeddings": False} if "lm_head" in name else {}
    base, other = two(tmp_path, plant(name, 2), model_type, **overrides)
    found = difference(base, other)
    (held,) = dict(found).items()
    assert held[0] == name
    assert (held[1].rank, held[1].axes) == (2, axes)  # type: ignore[union-attr]
    assert found.checkpoint[name] == (saved or name,)
    assert found.coverage.edited == ()
    assert_arrives(found, base, other, ids)


def test_biases_of_readers_are_shifts(tmp_path: Path, ids: Tensor) -> None:
    name = "model.layers.0.self_attn.k_proj.bias"
    base, other = two(tmp_path, lambda m: m.get_parameter(name).mul_(3.0), "qwen2")
    (held,) = dict(difference(base, other)).items()
    assert held[0] == name
    assert isinstance(held[1], Shift)


def test_a_bias_that_only_the_other_has_is_a_shift(tmp_path: Path, ids: Tensor) -> None:
    plain, biased = tiny_model("llama"), tiny_model("llama", mlp_bias=True)
    plain.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    missing = biased.load_state_dict(plain.state_dict(), strict=False).missing_keys
    with torch.no_grad():
        for name in missing:
            biased.get_parameter(name).mul_("layers.1.mlp.down_proj" in name)
    biased.save_pretrained(tmp_path / "other")  # type: ignore[operator]
    found = difference(tmp_path / "base", tmp_path / "other")
    assert list(dict(found)) == ["model.layers.1.mlp.down_proj.bias"]
    assert found.recipe["not_held"] == {}, "biases of zeros change nothing"
    assert_arrives(found, tmp_path / "base", tmp_path / "other", ids)


@pytest.mark.parametrize(
    ("model_type", "name", "saved"),
    [
        ("llama", "model.layers.1.input_layernorm.weight", "model.layers.1.input_layernorm.weight"),
        ("mamba", "backbone.layers.0.mixer.A_log", "backbone.layers.0.mixer.A_log"),
        ("mamba", "backbone.layers.0.mixer.conv1d.weight", "backbone.layers.0.mixer.conv1d.weight"),
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj",
         "model.layers.0.block_sparse_moe.experts.0.w1.weight"),
        ("llama", "model.norm.weight", "model.norm.weight"),
    ],
)  # fmt: skip
def test_what_a_delta_cannot_hold_is_listed(
    model_type: str, name: str, saved: str, tmp_path: Path
) -> None:
    writer = describe(tiny_model(model_type)).block_writers[0].weight

    def change(model: nn.Module) -> None:
        plant(writer)(model)
        model.get_parameter(name).mul_(1.5)

    base, other = two(tmp_path, change, model_type)
    found = difference(base, other)
    assert list(dict(found)) == [writer]
    held_not = found.recipe["not_held"]
    assert saved in held_not
    assert held_not[saved]["relative"] == pytest.approx(0.5)


# --- tied embeddings ---------------------------------------------------------------------------


def test_tied_on_both_sides_edits_both_ends(tmp_path: Path, ids: Tensor) -> None:
    name = "model.embed_tokens.weight"
    base, other = two(tmp_path, plant(name), tie_word_embeddings=True)
    found = difference(base, other)
    assert list(dict(found)) == [name]
    assert not found.untied
    assert_arrives(found, base, other, ids)


def test_an_unembedding_of_its_own_unties(tmp_path: Path, ids: Tensor) -> None:
    def change(model: Any) -> None:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        plant("model.embed_tokens.weight")(model)
        model.lm_head.weight.sub_(planted(2, *model.lm_head.weight.shape, seed=5))

    base, other = two(tmp_path, change, tie_word_embeddings=True)
    found = difference(base, other)
    ranks = {name: update.rank for name, update in found}  # type: ignore[union-attr]
    assert ranks == {"model.embed_tokens.weight": 1, "lm_head.weight": 2}
    assert found.untied
    assert_arrives(found, base, other, ids)


def test_the_base_has_an_unembedding_that_the_other_ties(tmp_path: Path, ids: Tensor) -> None:
    model: Any = tiny_model("llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "base")
    model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = True
    model.save_pretrained(tmp_path / "other")
    found = difference(tmp_path / "base", tmp_path / "other")
    assert list(dict(found)) == ["lm_head.weight"]
    assert not found.untied
    assert_arrives(found, tmp_path / "base", tmp_path / "other", ids)


def test_a_saved_copy_of_a_tied_embedding_is_no_change(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base, other = two(
        tmp_path, plant("model.layers.0.mlp.down_proj.weight"), tie_word_embeddings=True
    )
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    found = difference(base, other)
    assert not found.untied
    assert list(dict(found)) == ["model.layers.0.mlp.down_proj.weight"]
    assert found.recipe["not_held"] == {}


# --- how much is kept --------------------------------------------------------------------------


def test_rank_and_tolerance_cut_and_say_what_was_cut(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    base, other = two(tmp_path, plant(name, 5))
    whole = difference(base, other)
    assert whole.rank == 5
    change = dict(whole)[name].dense()  # type: ignore[union-attr]
    values = torch.linalg.svdvals(change.double())
    for options, rank in (({"rank": 2}, 2), ({"tolerance": 0.5}, None), ({"rank": 9}, 5)):
        cut = difference(base, other, **options)
        entry = cut.recipe["tensors"][name]
        rank = rank or int(
            ((values**2).flip(0).cumsum(0).flip(0).sqrt() / values.norm() > 0.5).sum()
        )
        assert cut.rank == entry["rank"] == rank
        left = values[rank:].norm() / values.norm()
        assert entry["left_out"] == pytest.approx(left.item(), abs=1e-5)
        assert entry["norm"] == pytest.approx(change.norm().item(), rel=1e-5)
    shares = values[:5] ** 2 / values.norm() ** 2
    expected = torch.exp(-(shares * shares.log()).sum()).item()
    assert whole.recipe["tensors"][name]["effective_rank"] == pytest.approx(expected, rel=1e-4)


def test_tolerance_zero_keeps_the_rounding(tmp_path: Path) -> None:
    base, other = (tmp_path / n for n in ("base", "other"))
    tiny_model("llama").save_pretrained(base)  # type: ignore[operator]
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(other)  # type: ignore[operator]
    with pytest.raises(DeltaError, match=r"beyond rounding .*give tolerance=0 to keep"):
        difference(base, other)
    kept = difference(base, other, tolerance=0.0)
    assert max(e["left_out"] for e in kept.recipe["tensors"].values()) < 1e-5


def test_fused_experts_share_the_largest_rank(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.down_proj"

    def change(model: nn.Module) -> None:
        weight = model.get_parameter(name)
        weight[0].add_(planted(3, *weight.shape[1:]))
        weight[2].add_(planted(1, *weight.shape[1:], seed=1))

    base, other = two(tmp_path, change, "mixtral")
    update = dict(difference(base, other))[name]
    assert isinstance(update, LowRank)
    assert update.b.shape == (4, 32, 3)
    assert not update.b[1].any()
    assert not update.b[2, :, 1:].any()
    assert relative(update.dense()[2], planted(1, *update.dense().shape[1:], seed=1)) < EXACT


# --- errors ------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_an_error(tmp_path: Path) -> None:
    for name, options in (("base", {}), ("wide", {"hidden_size": 48})):
        tiny_model("llama", **options).save_pretrained(tmp_path / name)  # type: ignore[operator]
    tiny_model("mamba").save_pretrained(tmp_path / "mamba")  # type: ignore[operator]
    base = tmp_path / "base"
    with pytest.raises(
        DeltaError, match=r"embed_tokens.weight has shape \(97, 32\) and \(97, 48\)"
    ):
        difference(base, tmp_path / "wide")
    with pytest.raises(DeltaError, match="different architectures"):
        difference(base, tmp_path / "mamba")
    with pytest.raises(DeltaError, match="does not differ from base beyond rounding"):
        difference(base, base)
    with pytest.raises(DeltaError, match="rank 1 or more"):
        difference(base, base, rank=0)
    with pytest.raises(DeltaError, match="from 0 to below 1"):
        difference(base, base, tolerance=1.0)
    with pytest.raises(ModelNotFound):
        difference(base, tmp_path / "absent")
