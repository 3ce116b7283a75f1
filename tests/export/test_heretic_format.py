"""The heretic format: PEFT's own file under heretic's seed, and a reproduce.json that fits it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from toolbox import assert_untouched, state

from interp.backends import open_model
from interp.data import load_class
from interp.errors import ExportError
from interp.export import export, heretic_program, verify_export
from interp.export.reading import read_edit
from interp.files import sha256_file
from interp.lm import LM
from interp.methods.heretic import Kernel, components, heretic_delta
from interp.models.loading import load

pytestmark = pytest.mark.usefixtures("in_process", "no_heretic")

SEED = 11


@pytest.fixture
def no_heretic(monkeypatch, tmp_path) -> None:
    """Whatever is installed on this machine, nothing is found."""
    monkeypatch.delenv(heretic_program.VARIABLE, raising=False)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def chatty(chat_dir):
    return open_model(str(chat_dir))


def named(side: str, split: str, **more):
    found = load_class("capability", side, split=split, limit=6)
    entry = {"name": "capability", "side": side, "split": split, "limit": 6}
    return {**entry, "sha256": found.sha256, **more}


def made(backend, *, row_normalization="none", rank=3, **changes):
    """An edit of one block, so that the other block's modules keep their random A."""
    anatomy = backend.anatomy
    reached = components(anatomy)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(anatomy.n_blocks + 1, anatomy.d_model, generator=generator)
    recipe = {
        "settings": {"batch_size": 8, "system_prompt": "Be brief."},
        "prompts": {
            "good_prompts": named("comply", "fit"),
            "bad_prompts": named("refuse", "fit"),
            "good_evaluation_prompts": named("comply", "report"),
            "bad_evaluation_prompts": named("refuse", "report"),
        },
        "metrics": {"kl_divergence": 0.1, "refusals": 1, "base_refusals": 2, "n_bad_prompts": 6},
        "target_modules": sorted(w.module for ws in reached.values() for w in ws),
        **changes,
    }
    made = heretic_delta(
        LM(backend),
        torch.nn.functional.normalize(rows, dim=1),
        dict.fromkeys(reached, Kernel(1.0, 0.0, 1.0, 0.5)),
        row_normalization=row_normalization,
        rank=rank,
        seed=SEED,
    )
    return replace(made, recipe={**made.recipe, **recipe})


def written(backend, chat_dir, out, **options):
    delta = options.pop("delta", None) or made(backend, **options)
    export(delta, to="heretic", base=backend, base_name=str(chat_dir), out=out, unproven=True)
    return delta


@pytest.mark.parametrize("row_normalization", ["none", "pre", "full"])
def test_every_byte_is_that_of_peft_after_the_seed(
    row_normalization, chatty, chat_dir, tmp_path
) -> None:
    """What heretic does, done here by hand: seed, wrap, fill, save."""
    before = state(chatty.model)
    trained = [p.requires_grad for p in chatty.model.parameters()]
    out = tmp_path / "out"
    delta = written(chatty, chat_dir, out, row_normalization=row_normalization)
    assert_untouched(chatty.model, before)
    assert [p.requires_grad for p in chatty.model.parameters()] == trained
    model, _ = load(str(chat_dir))
    torch.manual_seed(SEED)
    rank = 3 if row_normalization == "full" else 1
    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=rank,
            target_modules=delta.recipe["target_modules"],
            lora_alpha=rank,
            lora_dropout=0,
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )
    for name, update in delta:
        layer = wrapped.base_model.model.get_submodule(name.removesuffix(".weight"))
        layer.lora_A["default"].weight.data = update.a
        layer.lora_B["default"].weight.data = update.b
    wrapped.save_pretrained(tmp_path / "theirs")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert sha256_file(out / name) == sha256_file(tmp_path / "theirs" / name), name


def test_modules_outside_the_kernel_keep_a_random_a_and_a_zero_b(
    chatty, chat_dir, tmp_path
) -> None:
    written(chatty, chat_dir, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    outside = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{outside}.lora_A.weight"].any()
    assert not tensors[f"{outside}.lora_B.weight"].any()


def test_reproduce_json_says_what_was_done(chatty, chat_dir, tmp_path) -> None:
    out = tmp_path / "out"
    delta = written(chatty, chat_dir, out)
    found = json.loads((out / "reproduce.json").read_text())
    assert found["version"] == "2"
    assert found["settings"]["model"] == str(chat_dir)
    assert found["settings"]["seed"] == SEED
    assert found["settings"]["dtypes"] == ["float32"]
    assert found["settings"]["system_prompt"] == "Be brief."
    assert found["parameters"]["abliteration_parameters"] == delta.recipe["kernels"]
    assert found["hashes"] == {
        "adapter_model.safetensors": sha256_file(out / "adapter_model.safetensors")
    }
    for role in ("good_prompts", "bad_evaluation_prompts"):
        entry = delta.recipe["prompts"][role]
        lines = (out / found["settings"][role]["dataset"]).read_text().splitlines()
        side, split = entry["side"], entry["split"]
        assert lines == list(load_class("capability", side, split=split, limit=6).prompts)
    assert found["environment"]["requirements"] == {}


def test_it_verifies_reads_back_and_loads_in_peft(chatty, chat_dir, tmp_path) -> None:
    out = tmp_path / "out"
    delta = written(chatty, chat_dir, out)
    assert verify_export(out, str(chat_dir)).verdict == "verified"
    back = read_edit(out, str(chat_dir))
    for name, update in delta:
        assert torch.equal(back.updates[name].b, update.b)
        assert torch.equal(back.updates[name].a, update.a)
    model, _ = load(str(chat_dir))
    assert PeftModel.from_pretrained(model, str(out)).peft_config["default"].r == 1


def test_other_edits_are_refused_by_name(chatty, chat_dir, tmp_path) -> None:
    delta = made(chatty)
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=r"not of heretic's family \(ablation.*interp heretic"):
        written(chatty, chat_dir, out, delta=replace(delta, recipe={"method": "ablation"}))
    bare = {k: v for k, v in delta.recipe.items() if k != "metrics"}
    with pytest.raises(ExportError, match="recipe lacks metrics"):
        written(chatty, chat_dir, out, delta=replace(delta, recipe=bare))
    assert not out.exists()


def test_changed_prompts_and_prompts_of_several_lines_are_refused(
    chatty, chat_dir, tmp_path
) -> None:
    wrong = made(chatty).recipe["prompts"] | {"bad_prompts": named("refuse", "fit", sha256="0")}
    with pytest.raises(ExportError, match="not what the edit was made from any more"):
        written(chatty, chat_dir, tmp_path / "out", prompts=wrong)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt": "one\\ntwo"}\n')
    found = load_class(str(lines), "refuse")
    entry = {"name": str(lines), "side": "refuse", "split": "fit", "sha256": found.sha256}
    with pytest.raises(ExportError, match="several lines"):
        written(
            chatty,
            chat_dir,
            tmp_path / "out",
            prompts=made(chatty).recipe["prompts"] | {"bad_prompts": entry},
        )
    assert not (tmp_path / "out").exists()


def test_part_of_a_set_is_found_again_by_its_rows(chatty, chat_dir, tmp_path) -> None:
    whole = load_class("capability", "refuse", split="fit", limit=6)
    part = type(whole)(whole.prompts[1:4:2], whole.source)
    entry = named("refuse", "fit", rows=[1, 3], sha256=part.sha256)
    written(
        chatty,
        chat_dir,
        tmp_path / "out",
        prompts=made(chatty).recipe["prompts"] | {"bad_prompts": entry},
    )
    lines = (tmp_path / "out" / "prompts" / "bad_prompts.txt").read_text().splitlines()
    assert lines == list(part.prompts)


@pytest.mark.parametrize("row", [6, -1])
def test_a_row_that_the_set_lacks_is_refused(row, chatty, chat_dir, tmp_path) -> None:
    entry = named("refuse", "fit", rows=[1, row])
    with pytest.raises(ExportError, match=rf"prompt {row} of capability, which has 6 .*edit again"):
        written(
            chatty,
            chat_dir,
            tmp_path / "out",
            prompts=made(chatty).recipe["prompts"] | {"bad_prompts": entry},
        )
    assert not (tmp_path / "out").exists()


def change(value):
    def spoil(path):
        content = json.loads((path / "reproduce.json").read_text())
        (path / "reproduce.json").write_text(json.dumps(content | value))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (change({"version": "3"}), "no reproduce.json of version 2"),
        (change({"hashes": {"adapter_model.safetensors": "0" * 64}}), "not the file in reproduce"),
        (change({"hashes": {"../elsewhere": "0" * 64}}), "not the file in reproduce.json"),
        (lambda p: (p / "reproduce.json").write_text("{"), "not readable JSON"),
        (lambda p: (p / "adapter_model.safetensors").unlink(), "is missing"),
        (
            lambda p: (p / "adapter_model.safetensors").write_bytes(
                (p / "adapter_model.safetensors").read_bytes()[:-8]
            ),
            "truncated or damaged",
        ),
    ],
)
def test_damage_without_a_receipt_is_one_clear_error(
    spoil, why, chatty, chat_dir, tmp_path
) -> None:
    written(chatty, chat_dir, tmp_path / "out")
    (tmp_path / "out" / "receipt.json").unlink()
    shutil.rmtree(tmp_path / "out" / "verification")
    assert verify_export(tmp_path / "out", str(chat_dir)).verdict == "verified"
    spoil(tmp_path / "out")
    with pytest.raises(ExportError, match=why):
        verify_export(tmp_path / "out", str(chat_dir))
