"""What is asked of the fresh process that reloads an export, and what it answers.

Both travel through a scratch directory, as JSON and safetensors.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import interp.errors as errors
from interp.errors import ExportError, InterpError
from interp.export.tensors import plain, read_object, read_tensors, write_tensors
from interp.files import write_json
from interp.types import TokenBatch

REQUEST, TENSORS = "request.json", "batch.safetensors"
REPLY, LOGITS = "reply.json", "logits.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Reload the export at ``path`` and give its logits.

    batch: what to run, None for the probe that the base itself defines. fingerprint: of the base it
    was made for, where known. compare: also the logits of the unedited base. direct: also those of
    the weight edit read from the files without the format's library. foreign: made elsewhere, so that
    its tokenizer and number of tokens need not be the base's.
    """

    format: str
    path: str
    base: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    batch: TokenBatch | None = None
    compare: bool = False
    direct: bool = False
    foreign: bool = False
    threads: int = 1

    def save(self, folder: Path) -> None:
        if self.batch is not None:
            write_tensors(folder / TENSORS, {"ids": self.batch.ids, "mask": self.batch.mask})
        named = {name: getattr(self, name) for name in self.__slots__ if name != "batch"}
        write_json(folder / REQUEST, plain(named, "a load option", ExportError))

    @classmethod
    def load(cls, folder: Path) -> Request:
        value = read_object(folder / REQUEST, ExportError)
        batch = None
        if (folder / TENSORS).is_file():
            batch = TokenBatch(**read_tensors(folder / TENSORS, ExportError))
        return cls(**value, batch=batch)


@dataclass(frozen=True, slots=True, eq=False)
class Reply:
    """fp32 logits ``[batch, vocab]`` at the last position of ``export``, ``base`` and ``direct``.

    fingerprint: of the base, empty when it was not opened. dtype: of the reloaded model.
    """

    logits: Mapping[str, Tensor]
    dtype: str
    fingerprint: str = ""

    def save(self, folder: Path) -> None:
        write_tensors(folder / LOGITS, self.logits)
        write_json(folder / REPLY, {"dtype": self.dtype, "fingerprint": self.fingerprint})

    @classmethod
    def load(cls, folder: Path) -> Reply:
        """Raises the InterpError that the fresh process met."""
        value = read_object(folder / REPLY, ExportError)
        if "error" in value:
            raise _error(value["error"])(value["message"])
        return cls(read_tensors(folder / LOGITS, ExportError), value["dtype"], value["fingerprint"])


def _error(name: str) -> type[InterpError]:
    found = getattr(errors, name, ExportError)
    return found if isinstance(found, type) and issubclass(found, InterpError) else ExportError


def ask(request: Request) -> Reply:
    """Answer a request in a fresh process, which knows the files and the base's name alone."""
    with tempfile.TemporaryDirectory(prefix="interp-reload-") as scratch:
        folder = Path(scratch)
        request.save(folder)
        # -X utf8, the safe path: neither the locale nor a module in the working directory matters.
        done = subprocess.run(
            [sys.executable, "-X", "utf8", "-m", "interp.export.reload", scratch],
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if not (folder / REPLY).is_file():
            raise ExportError(f"the export did not reload in a fresh process: {_death(done)}")
        return Reply.load(folder)


def _environment() -> dict[str, str]:
    package = str(Path(str(errors.__file__)).parents[1])
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, (package, inherited)))
    return os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _death(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"it was killed by signal {-done.returncode} (9: usually out of memory)"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"it ended with status {done.returncode} and no message"
