"""Reading and writing safetensors and JSON with one clear error for anything that is damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.errors import InterpError

AGAIN = "copy it again, or export again"


def first_line(error: BaseException) -> str:
    """What an error of another library says, as far as it fits on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_tensors(path: Path, error: type[InterpError]) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ``error`` for a missing or damaged one."""
    check_tensors(path, error)
    return load_file(path)


def check_tensors(path: Path, error: type[InterpError]) -> None:
    """Check a safetensors file's header and length without reading its tensors."""
    if not path.is_file():
        raise error(f"{path} is missing; {AGAIN}")
    try:
        with safe_open(path, "pt") as handle:
            handle.keys()
    except (SafetensorError, OSError, ValueError) as cause:
        raise error(f"{path} is truncated or damaged ({first_line(cause)}); {AGAIN}") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as they are (own storage each, as safetensors wants)."""
    own = {k: torch.empty_like(v, device="cpu").copy_(v).contiguous() for k, v in tensors.items()}
    save_file(own, path, metadata={"format": "pt"})


def read_object(path: Path, error: type[InterpError]) -> dict[str, Any]:
    """A JSON object. Raises ``error`` for a missing file and for anything else than an object."""
    if not path.is_file():
        raise error(f"{path} is missing; {AGAIN}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as cause:
        raise error(f"{path} is not readable JSON ({first_line(cause)}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds no JSON object; {AGAIN}")
    return value


def seal(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its own ``seal``: damage shows, whatever the layout."""
    bare = {k: v for k, v in value.items() if k != "seal"}
    text = json.dumps(bare, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    return {**value, "seal": seal(value)}


def check_seal(value: Mapping[str, Any], path: Path, error: type[InterpError]) -> None:
    if value.get("seal") != seal(value):
        raise error(f"{path} was changed after it was written (its seal does not fit); {AGAIN}")


def plain(value: Any, what: str, error: type[InterpError]) -> Any:
    """A value as JSON gives it back: tuples as lists, keys as text. Raises ``error`` if not."""
    try:
        return json.loads(json.dumps(_thawed(value), allow_nan=False))
    except (TypeError, ValueError) as cause:
        mend = "keep to text, finite numbers, lists and mappings"
        raise error(f"{what} is not plain JSON ({first_line(cause)}); {mend}") from None


def _thawed(value: Any) -> Any:
    """Mappings that are no dict (frozen ones) as dicts, at every depth."""
    if isinstance(value, Mapping):
        return {k: _thawed(v) for k, v in value.items()}
    return [_thawed(v) for v in value] if isinstance(value, list | tuple) else value
