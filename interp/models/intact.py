"""Whether the files of a model directory are whole: no pointers to files elsewhere, no halves of JSON.

What is wrong is told by file name; libraries report it in many ways, or go on without the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interp.errors import ModelNotFound
from interp.models.checkpoint import INDEX, SINGLE

POINTER = b"version https://git-lfs"
BIN_INDEX = "pytorch_model.bin.index.json"
CONFIGS = ("config.json", "generation_config.json")
TOKENIZER_JSON = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                "sentencepiece.bpe.model", "tekken.json", "tokenizer.tiktoken")  # fmt: skip
TEMPLATE = "chat_template.jinja"
SHOWN = 30


def check_model_files(folder: Path) -> None:
    """Raise ModelNotFound naming a config, an index or a weight file that is damaged or missing."""
    for name in CONFIGS:
        if (folder / name).is_file():
            read_object(folder / name)
    for file in _weight_files(folder):
        if not file.is_file():
            raise ModelNotFound(
                f"{folder} lacks {file.name}, which its index names; {_again(folder)}"
            )
        check_fetched(file)


def check_tokenizer_files(folder: Path) -> None:
    """Raise ModelNotFound naming a tokenizer file that is empty or was never fetched."""
    names = ["tokenizer.json", "tokenizer_config.json", TEMPLATE]
    if not (folder / "tokenizer.json").is_file():
        names += VOCABULARIES
    for path in (folder / name for name in names):
        if path.is_file() and (path.name != TEMPLATE or path.stat().st_size):
            check_fetched(path)


def damaged_tokenizer(folder: Path, why: str) -> ModelNotFound:
    """The error for a tokenizer that does not open: which file is at fault, else what the library says."""
    try:
        for path in (folder / name for name in TOKENIZER_JSON):
            if path.is_file():
                read_object(path)
    except ModelNotFound as error:
        return error
    if not any((folder / name).is_file() for name in VOCABULARIES):
        why = f"none of {', '.join(VOCABULARIES[:4])} is there"
    return ModelNotFound(
        f"cannot read the tokenizer in {folder} ({why}); copy its files again from where the model is from"
    )


def check_fetched(path: Path) -> None:
    """Raise ModelNotFound for an empty file and for a pointer that git LFS left in its place."""
    with path.open("rb") as handle:
        start = handle.read(len(POINTER))
    if not start:
        raise ModelNotFound(f"{path} is empty; {_again(path.parent)}")
    if start == POINTER:
        raise ModelNotFound(
            f"{path} is a git LFS pointer and not the file itself; run: git lfs pull"
        )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelNotFound for anything else."""
    check_fetched(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # neither JSON nor UTF-8
        raise ModelNotFound(f"{path} is not JSON ({error}); {_again(path.parent)}") from None
    if not isinstance(found, dict):
        raise ModelNotFound(
            f"{path} holds {json.dumps(found)[:SHOWN]} where a JSON object belongs; "
            f"{_again(path.parent)}"
        )
    return found


def _weight_files(folder: Path) -> Iterable[Path]:
    """The files that transformers would read: safetensors before the older format, shards by index."""
    for index, single in ((INDEX, SINGLE), (BIN_INDEX, "pytorch_model.bin")):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            shards = read_object(folder / index).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
                raise ModelNotFound(f"{folder / index} has no weight_map; {_again(folder)}")
            return [folder / name for name in sorted(set(shards.values()))]
    return []


def _again(folder: Path) -> str:
    return f"copy the file into {folder} again"
