"""heretic as a program in an environment of its own, made once and kept in the user's cache.

heretic is AGPL and pins other versions than ours: it is never imported, only run. To use an
installation of your own, set ``INTERP_HERETIC`` to its ``heretic`` executable.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.errors import ExportError
from interp.files import write_json
from interp.models.embedded import cache_directory

PACKAGE, VERSION = "heretic-llm", "1.4.0"
VARIABLE = "INTERP_HERETIC"
STAMP = ".ready.json"
SECONDS = 600
"""Longest time that a step of an installation may take: it loads about 2 GB."""

Say = Callable[[str], None]

PACKAGES = """
import importlib.metadata as metadata, json, re, sys
todo, found, seen = sys.argv[1:], {}, set()
while todo:
    name = todo.pop(0).lower().replace("_", "-")
    if name in seen:
        continue
    seen.add(name)
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue
    found[name] = distribution.version
    for wanted in distribution.requires or ():
        if not (";" in wanted and "extra ==" in wanted):
            todo.append(re.match("[A-Za-z0-9_-]+", wanted).group())
print(json.dumps(found))
"""
"""What heretic needs, directly or not, with versions; run by that environment's own Python."""
ROOTS = (PACKAGE, "torch", "torchaudio", "torchvision")


@dataclass(frozen=True, slots=True)
class Program:
    """An installed heretic: the executable, and the Python beside it."""

    executable: Path

    @property
    def python(self) -> Path:
        return self.executable.with_name("python" + self.executable.suffix)

    def packages(self) -> dict[str, str]:
        """Package → version of everything that heretic needs here."""
        done = subprocess.run(
            [str(self.python), "-c", PACKAGES, *ROOTS],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ExportError(f"cannot list the packages beside {self.executable}: {_last(done)}")
        found = json.loads(done.stdout)
        if PACKAGE not in found:
            raise ExportError(
                f"{self.executable} is not heretic: {PACKAGE} is not installed beside it"
            )
        return found


def find() -> Program | None:
    """The heretic that is installed for us, None where there is none yet.

    Raises ExportError when ``INTERP_HERETIC`` names something that is not there.
    """
    if chosen := os.environ.get(VARIABLE):
        path = Path(chosen).expanduser()
        if not path.is_file():
            raise ExportError(f"{VARIABLE} names {chosen}, which is no file; unset it or mend it")
        return Program(path.absolute())
    folder = _folder()
    return _program(folder) if (folder / STAMP).is_file() else None


def install(say: Say = lambda text: None) -> Program:
    """The installed heretic, installed first where there is none; a killed attempt is begun anew.

    Raises ExportError with pip's last words, for instance without a network.
    """
    from filelock import FileLock

    if (found := find()) is not None:
        return found
    folder = _folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (found := find()) is None:
            shutil.rmtree(folder, ignore_errors=True)
            say(f"installing {PACKAGE}=={VERSION} into {folder} (once; about 2 GB)")
            _build(folder)
            found = _program(folder)
    return found


def _folder() -> Path:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache_directory() / f"heretic-{VERSION}-python-{python}"


def _program(folder: Path) -> Program:
    scripts = "Scripts" if os.name == "nt" else "bin"
    return Program(folder / scripts / ("heretic.exe" if os.name == "nt" else "heretic"))


def _build(folder: Path) -> None:
    import torch

    python = str(_program(folder).python)
    _run([sys.executable, "-m", "venv", str(folder)])
    # torch first and as here: what it pulls in by itself is gigabytes of CUDA, and equal numbers
    # want equal versions.
    install = [python, "-m", "pip", "install", "-q", "--no-compile"]
    _run([*install, f"torch=={torch.__version__.split('+')[0]}"])
    _run([*install, f"{PACKAGE}=={VERSION}"])
    write_json(folder / STAMP, {PACKAGE: VERSION})


def _run(words: Sequence[str]) -> None:
    # A PYTHONPATH or a user's site directory would mix our packages with heretic's.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    try:
        done = subprocess.run(
            words, env=kept, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ExportError(
            f"installing {PACKAGE} took more than {SECONDS} s; run it again where the network is faster"
        ) from None
    if done.returncode:
        raise ExportError(
            f"cannot install {PACKAGE}=={VERSION}: {_last(done)}; it needs a network, or set "
            f"{VARIABLE} to the heretic executable of an environment that has it"
        )


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [x for x in (done.stderr or done.stdout).splitlines() if x.strip()]
    wrong = [x for x in lines if x.startswith("ERROR")]
    return (wrong or lines or [f"status {done.returncode}"])[-1].strip()


if __name__ == "__main__":
    try:
        print(install(print).executable)
    except ExportError as problem:
        sys.exit(str(problem))
