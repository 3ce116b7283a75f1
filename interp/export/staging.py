"""Exports are whole or absent: written beside the target, moved there by one rename at the end."""

from __future__ import annotations

import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.errors import ExportError
from interp.files import publish_directory

RECEIPT = "receipt.json"
MANIFEST = "manifest.json"
MEASUREMENT = "measurement.json"


def check_target(out: Path, *, overwrite: bool = False) -> Path:
    """The directory to write, links resolved. Raises ExportError when something else would be lost.

    An export of ours may be replaced as long as nothing was added to it; anything else needs
    ``overwrite``.
    """
    target = out.expanduser().resolve()
    if not target.exists():
        return target
    if not target.is_dir():
        raise ExportError(f"{target} is a file; give a directory that does not exist yet")
    present = {entry.name for entry in target.iterdir()}
    if not present or overwrite:
        return target
    ours = _own_files(target)
    if extra := sorted(present - ours):
        what = f"{extra[0]}, which no export of ours wrote" if ours else f"files, first {extra[0]}"
        raise ExportError(
            f"{target} holds {what}; give another directory, or replace it all: --overwrite"
        )
    return target


def check_not_the_base(target: Path, base: Path) -> None:
    """Raise ExportError when writing ``target`` would replace the base model; a hub id is no place."""
    folder = base.resolve()
    if folder.is_dir() and target in (folder, *folder.parents):
        raise ExportError(f"{target} is or holds the base model; give another directory")


def _own_files(target: Path) -> set[str]:
    """Names at the top of a directory that an export of ours put there; empty where none did."""
    try:
        receipt = json.loads((target / RECEIPT).read_text(encoding="utf-8"))
        return {Path(name).parts[0] for name in receipt["files"]} | {RECEIPT, MEASUREMENT}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        own = {MANIFEST, "delta.safetensors", MEASUREMENT}
        return own if manifest["format"] == "interp-delta" else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A new directory beside ``target`` to write into; gone afterwards unless it was published.

    Leftovers of killed runs are cleared first. Raises ExportError when the disk refuses.
    """
    mine = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    stage = target.with_name(f".{target.name}.export-{mine}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        stage.mkdir()
        yield stage
    except OSError as error:
        raise ExportError(f"cannot write {target}: {error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def publish(stage: Path, target: Path, *, overwrite: bool = False) -> None:
    """Move a finished export into place, unless somebody else's files appeared there meanwhile."""
    check_target(target, overwrite=overwrite)
    mode = stage.stat().st_mode & 0o666  # safetensors writes files that only their owner can read
    for path in filter(Path.is_file, stage.rglob("*")):
        path.chmod(mode)
    publish_directory(stage, target)


def sweep(target: Path) -> None:
    """Remove what killed runs left beside ``target``; give back an export they had moved aside."""
    for left in sorted(target.parent.glob(f".{_literal(target.name)}.*-*")):
        name = left.name.removeprefix(f".{target.name}.")
        if match := re.fullmatch(r"export-(.+)-(\d+)-[0-9a-f]{8}", name):
            if match[1] == _host() and not _alive(int(match[2])):
                shutil.rmtree(left, ignore_errors=True)
        elif match := re.fullmatch(r"old-(\d+)", name):
            if _alive(int(match[1])):
                continue
            if target.exists():
                shutil.rmtree(left, ignore_errors=True)
            else:  # killed between the two renames: the older export is still the valid one
                left.replace(target)


def _literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _host() -> str:
    # A process id says something on one machine only; folders may be shared.
    return re.sub(r"[^A-Za-z0-9_.]", "_", platform.node()) or "localhost"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
