"""The delta format: exactly what was written, or one DeltaError."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toolbox import card

import interp
from interp import ablate
from interp.errors import DeltaError, ExportError, InterpError, ModelNotFound
from interp.export import load_delta, save_delta
from interp.export.tensors import sealed
from interp.files import sha256_file
from interp.models import tiny_model
from interp.types import LowRank, Shift, WeightDelta


@pytest.fixture(scope="module")
def written(saved, tmp_path_factory) -> Path:
    """A delta of qwen3_moe: plain and expert updates, split over checkpoint names."""
    out = tmp_path_factory.mktemp("written") / "delta"
    return save_delta(saved("qwen3_moe").ablated(embeddings=True), out, cards=[card()])


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def reseal(folder: Path, **changes) -> None:
    """Write a changed manifest whose seal fits, as somebody would who means to change it."""
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest_of(folder) | changes)))


def test_experts_that_are_saved_apart_have_factors_apart(written, saved) -> None:
    from safetensors.torch import load_file

    factors = load_file(written / "delta.safetensors")
    update = (
        saved("qwen3_moe").ablated(embeddings=True).updates["model.layers.0.mlp.experts.down_proj"]
    )
    for expert in range(4):
        key = f"model.layers.0.mlp.experts.{expert}.down_proj.weight"
        assert torch.equal(factors[f"{key}.b"], update.b[expert])
        assert torch.equal(factors[f"{key}.a"], update.a[expert])


def test_the_manifest_says_what_it_is(written, saved) -> None:
    manifest = manifest_of(written)
    assert (manifest["format"], manifest["version"]) == ("interp-delta", 1)
    assert [c["key"] for c in manifest["cards"]] == ["paper/figure"]
    assert manifest["unproven"] is True, "it was not measured"
    assert manifest["recipe"]["method"] == "ablation"
    assert manifest["sha256"] == sha256_file(written / "delta.safetensors")
    assert manifest["base"] == saved("qwen3_moe").ablated().base


def test_only_two_files_are_written(written) -> None:
    assert {p.name for p in written.iterdir()} == {"manifest.json", "delta.safetensors"}
    assert [p.name for p in written.parent.iterdir()] == [written.name]


def test_half_precision_factors_are_written_as_fp32(tmp_path, saved) -> None:
    edit = saved("llama").ablated()
    half = {k: LowRank(u.b.bfloat16(), u.a.bfloat16(), u.axes) for k, u in edit}
    back = load_delta(save_delta(replace(edit, updates=half), tmp_path / "delta"))
    for name, update in back:
        assert update.b.dtype == torch.float32
        assert torch.equal(update.b, half[name].b.float())


# --- what cannot be written


def one(update=None, **changes) -> WeightDelta:
    from interp.types import Coverage

    update = update or LowRank(torch.ones(4, 1), torch.ones(1, 3))
    known = {"base": "b", "recipe": {}, "exactness": "", "coverage": Coverage(("w",), {})}
    return WeightDelta(updates={"w": update}, **known | changes)


@pytest.mark.parametrize(
    ("delta", "says"),
    [
        (one(LowRank(torch.full((4, 1), float("nan")), torch.ones(1, 3))), "not finite"),
        (one(recipe={"strength": float("inf")}), "recipe is not plain JSON"),
        (one(recipe={"unit": torch.ones(2)}), "recipe is not plain JSON"),
        (one(provenance={"when": object()}), "provenance is not plain JSON"),
        (one(checkpoint={"w": ("a", "b")}), "4 experts but 2 checkpoint names"),
    ],
    ids=["nan", "inf", "tensor", "object", "names"],
)
def test_what_cannot_be_written_leaves_nothing(delta, says, tmp_path) -> None:
    with pytest.raises(DeltaError, match=says):
        save_delta(delta, tmp_path / "delta")
    assert list(tmp_path.iterdir()) == []


def test_two_updates_of_one_checkpoint_tensor_are_refused(tmp_path) -> None:
    bias = Shift(torch.ones(4))
    both = replace(one(), updates={"v": bias, "w": bias}, checkpoint={"v": ("k",), "w": ("k",)})
    with pytest.raises(DeltaError, match=r"two updates are saved as k\.shift"):
        save_delta(both, tmp_path / "delta")


def test_frozen_and_nested_recipes_are_written_as_plain_json(tmp_path) -> None:
    from types import MappingProxyType

    recipe = MappingProxyType({"of": MappingProxyType({1: (2, 3)})})
    assert load_delta(save_delta(one(recipe=recipe), tmp_path / "d")).recipe == {
        "of": {"1": [2, 3]}
    }


# --- what must not be read


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def foreign_version(path: Path) -> None:
    reseal(path.parent, version=99)


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("delta.safetensors", truncate, "truncated or damaged"),
        ("delta.safetensors", flip, "not the file its manifest was written for"),
        ("delta.safetensors", Path.unlink, "is missing"),
        ("delta.safetensors", link_to_nothing, "is missing"),
        ("delta.safetensors", lambda p: p.write_bytes(b""), "truncated or damaged"),
        ("manifest.json", truncate, "not readable JSON"),
        ("manifest.json", Path.unlink, "is missing"),
        ("manifest.json", foreign_version, "version 99"),
        ("manifest.json", lambda p: p.write_text("[]"), "no JSON object"),
        ("manifest.json", lambda p: p.write_text("{}"), "not a delta's manifest"),
        ("manifest.json", lambda p: p.write_text("[" * 100_000), "not readable JSON"),
        ("manifest.json", lambda p: p.write_bytes(b"\xff\xfe"), "not readable JSON"),
    ],
)
def test_damage_is_one_clear_error(copy, file, damage, says) -> None:
    damage(copy / file)
    with pytest.raises(DeltaError, match=says):
        load_delta(copy)


def test_no_directory_is_an_error(tmp_path) -> None:
    with pytest.raises(DeltaError, match="no delta directory"):
        load_delta(tmp_path / "nothing")


@pytest.mark.parametrize(
    "changes",
    [
        {"updates": []},
        {"updates": [{}]},
        {"updates": "abc"},
        {"coverage": {}},
        {"untied": "no"},
        {"base": None},
        {"sha256": "0" * 64},
        {"recipe": []},
    ],
)
def test_a_resealed_manifest_must_still_fit(copy, changes) -> None:
    reseal(copy, **changes)
    with pytest.raises(DeltaError):
        load_delta(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"saved": ["../../../etc/passwd"]},
        {"saved": []},
        {"saved": "model"},
        {"b": [1, 1]},
        {"a": [32, 1]},
        {"axes": "sideways"},
        {"axes": "expert out in"},
        {"name": 3},
        {"name": None},
        {"shift": [32]},
    ],
)
def test_a_resealed_update_must_still_fit(copy, change) -> None:
    updates = manifest_of(copy)["updates"]
    reseal(copy, updates=[updates[0] | change, *updates[1:]])
    with pytest.raises(DeltaError):
        load_delta(copy)


def test_an_update_left_out_of_the_manifest_is_noticed(copy) -> None:
    reseal(copy, updates=manifest_of(copy)["updates"][1:])
    with pytest.raises(DeltaError, match="belongs to no update"):
        load_delta(copy)


def paths(value, here=()):
    """Every place in a JSON value."""
    yield here
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*here, key))


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4) | st.just(1.5)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS)


@pytest.mark.slow
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_change_of_the_manifest_is_read(data, written, tmp_path) -> None:
    folder = tmp_path / "mutated"
    shutil.copytree(written, folder, dirs_exist_ok=True)
    manifest = manifest_of(folder)
    place = data.draw(st.sampled_from([p for p in paths(manifest) if p]))
    inner = manifest
    for key in place[:-1]:
        inner = inner[key]
    value = data.draw(VALUES)
    if json.dumps(inner[place[-1]]) == json.dumps(value):
        return
    if data.draw(st.booleans()) and isinstance(inner, dict):
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InterpError):
        load_delta(folder)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_changed_byte_of_the_tensors_is_read(data, written, tmp_path) -> None:
    folder = tmp_path / "mutated"
    shutil.copytree(written, folder, dirs_exist_ok=True)
    path = folder / "delta.safetensors"
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[where] ^= data.draw(st.integers(1, 255))
    else:
        del content[where:]
    path.write_bytes(bytes(content))
    with pytest.raises(DeltaError):
        load_delta(folder)


def test_save_does_not_replace_what_is_not_an_export(tmp_path, written) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear diary")
    edit = load_delta(written)
    with pytest.raises(ExportError, match=r"files, first notes\.txt"):
        save_delta(edit, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    save_delta(edit, tmp_path / "delta")
    save_delta(edit, tmp_path / "delta")
    assert load_delta(tmp_path / "delta").updates.keys() == edit.updates.keys()


# --- from the delta itself


@pytest.mark.usefixtures("in_process")
def test_a_delta_knows_its_model(saved, tmp_path) -> None:
    """Made by an LM, changed, and read from a directory; one that was made by hand says so."""
    base = saved("llama", tokenizer=True)
    lm = interp.open_model(str(base.path), dtype="float32")
    delta = lm.to_delta(ablate(lm.writers[0], torch.ones(lm.d_model)))
    receipt = delta.export(tmp_path / "adapter", to="peft")
    assert (receipt.verdict, receipt.base) == ("verified", str(base.path))
    assert "no figure card" in receipt.missing[0]
    twice = delta.scale(0.5).compose(delta)
    assert twice.export(tmp_path / "delta").verdict == "verified"
    assert load_delta(tmp_path / "delta").export(tmp_path / "merged", to="merged").unproven
    with pytest.raises(DeltaError, match="does not know its model; make it with"):
        base.ablated().export(tmp_path / "out")


@pytest.mark.usefixtures("in_process")
def test_a_model_that_was_not_opened_by_name_asks_for_one(saved, tmp_path) -> None:
    base = saved("llama", tokenizer=True)
    lm = interp.LM(interp.wrap(tiny_model("llama"), base.tokenizer))
    delta = lm.to_delta(ablate(lm.writers[0], torch.ones(lm.d_model)))
    with pytest.raises(ModelNotFound, match="give base_name=DIRECTORY"):
        delta.export(tmp_path / "out")
    assert delta.export(tmp_path / "out", base_name=str(base.path)).verdict == "verified"
    loaded = interp.LM(interp.wrap(base.model, base.tokenizer))
    assert loaded.backend.source == str(base.path)
