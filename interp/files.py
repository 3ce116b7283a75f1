"""Files that are whole or absent: atomic writes, hashes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from interp.errors import NotFinite

BLOCK = 1 << 20
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(*parts: str) -> str:
    """SHA-256 of texts, length-prefixed so that moving a boundary changes it."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(str(len(data)).encode() + b":" + data)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    staged = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        staged.chmod(0o644)
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. Raises NotFinite for NaN and infinity, which are not JSON.

    Lone surrogates, which UTF-8 does not have, are written as JSON escapes and read back as they were.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError as error:
        raise NotFinite(f"{path} is not written: a result is NaN or infinite ({error})") from None
    write_text(path, _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def publish_directory(staged: Path, target: Path) -> None:
    """Move a finished directory into place; an older one there is replaced only after the move worked."""
    if not target.exists():
        try:
            staged.replace(target)
            return
        except OSError:
            if not target.exists():
                raise
    retired = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.replace(retired)
    try:
        staged.replace(target)
    except BaseException:
        retired.replace(target)
        raise
    shutil.rmtree(retired)
