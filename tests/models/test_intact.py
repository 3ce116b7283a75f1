"""Model directories with damaged, empty or absent files: one error that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from interp.errors import InterpError, ModelNotFound
from interp.models.loading import load, load_tokenizer
from interp.models.receipt import receipt

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4096\n"


@pytest.fixture
def folder(chat_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chat_dir, tmp_path / "model"))


def half(text: str) -> str:
    return text[: len(text) // 2]


def edited(**entries: object) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | entries)


DAMAGE: dict[str, Callable[[str], str]] = {
    "half": half,
    "pointer": lambda _: POINTER,
    "empty": lambda _: "",
    "list": lambda _: "[]",
    "null": lambda _: "null",
    "prose": lambda _: "<html>404</html>",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json",
                                  "generation_config.json"])  # fmt: skip
def test_a_damaged_json_file_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    path.write_text(DAMAGE[damage](path.read_text()))
    with pytest.raises(ModelNotFound, match=rf"{name} (is|holds) ") as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer.json", lambda _: "{}"),
        ("tokenizer.json", lambda text: text.replace('"BPE"', '"Unheard"')),
        ("tokenizer.json", lambda text: json.dumps({**json.loads(text), "model": {
            "type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []})),
        ("tokenizer_config.json", edited(tokenizer_class=7)),
        ("tokenizer_config.json", edited(pad_token=7)),
        ("tokenizer_config.json", edited(tokenizer_class="Own", auto_map={"AutoTokenizer": "o.Own"})),
        ("special_tokens_map.json", lambda _: "[]"),
        ("chat_template.jinja", lambda _: POINTER),
    ],
)  # fmt: skip
def test_a_tokenizer_of_the_wrong_shape_is_one_error(
    folder: Path, name: str, change: Callable[[str], str]
) -> None:
    path = folder / name
    path.write_text(change(path.read_text() if path.is_file() else ""))
    with pytest.raises(ModelNotFound) as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)
    assert folder.name in str(caught.value)


def test_a_tokenizer_without_its_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFound, match=r"none of tokenizer\.json"):
        load_tokenizer(str(folder))
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(str(folder)) is None  # as model directories of ids have it


@pytest.mark.parametrize("opening", [load, receipt])
@pytest.mark.parametrize(
    "change",
    [
        edited(num_hidden_layers="three"),
        edited(num_attention_heads=5),
        edited(hidden_act="unheard"),
        edited(model_type="unheard"),
        edited(dtype="unheard"),
        edited(eos_token_id="x"),
        edited(rope_parameters={"rope_type": "unheard"}),
        edited(quantization_config="gptq"),
        lambda _: "{}",
    ],
)
def test_an_impossible_config_is_one_error(
    folder: Path, change: Callable[[str], str], opening: Callable[[str], object]
) -> None:
    path = folder / "config.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(InterpError) as caught:
        opening(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opening", [load, receipt])
@pytest.mark.parametrize("damage", [b"", POINTER.encode(), b"not found", b"\0" * 64, None])
def test_damaged_weights_are_one_error(
    folder: Path, damage: bytes | None, opening: Callable[[str], object]
) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(ModelNotFound) as caught:
        opening(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opening", [load, receipt])
@pytest.mark.parametrize(
    ("index", "named"),
    [
        (
            {"weight_map": {"model.norm.weight": "a.safetensors", "x": "b.safetensors"}},
            "lacks b.safet",
        ),
        ({}, "has no weight_map"),
        ([], "holds"),
    ],
)
def test_an_index_that_does_not_fit_is_named(
    folder: Path, index: object, named: str, opening: Callable[[str], object]
) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFound, match=named):
        opening(str(folder))
