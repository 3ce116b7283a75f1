"""What a format must offer, and the registry of the formats that exist."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from interp.backends.hooks import HooksBackend
from interp.backends.opening import open_model
from interp.backends.protocol import AnyEdit
from interp.errors import ExportError
from interp.export.gate import Passed
from interp.models.anatomy import Anatomy
from interp.models.checkpoint import INDEX, SINGLE
from interp.types import WeightDelta


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """An open base model, and the name and options with which a fresh process opens it again."""

    model: nn.Module
    tokenizer: Any
    anatomy: Anatomy
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def backend(self) -> HooksBackend:
        """The model behind plain hooks, whatever backend it came from."""
        return HooksBackend(self.model, self.tokenizer, self.anatomy, self.name)

    @property
    def dtype(self) -> str:
        """``float32``, ``bfloat16`` or ``float16``: the dtype of the weights."""
        return dtype_of(self.model)


def dtype_of(model: nn.Module) -> str:
    """The name of the dtype of a model's first floating-point parameter."""
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return str(next(floating)).removeprefix("torch.")


def open_base(name: str, options: Mapping[str, Any]) -> Base:
    """Open a base by name. Raises ModelNotFound, UnknownFamily or UndescribedWriter."""
    backend = open_model(name, **options)
    return Base(backend.model, backend.tokenizer, backend.anatomy, name, options)


@dataclass(frozen=True, slots=True)
class Attached:
    """A reloaded export: a backend, and the edit with which its logits are those of the export."""

    backend: HooksBackend
    edit: AnyEdit = None


@dataclass(frozen=True, slots=True)
class Exporter:
    """One export format.

    marks: files, any of which marks a directory as this format; priority decides between several.
    refusal: why the format cannot hold a delta, None when it can. write: puts the delta's files
    into a directory and returns what is worth noting about them. check: reads the files without a
    model and raises for damaged ones; returns the delta when the format keeps one. attach: opens
    the export from its files, on ``base`` unless standalone. direct: the weight edit that the files
    stand for, read without the format's own library. dtype: of the weights in a standalone export's
    files, which may be shorter than the dtype that they are loaded in. library: which opens such
    files for everyone, empty where only this package does.
    """

    name: str
    summary: str
    marks: tuple[str, ...]
    refusal: Callable[[WeightDelta, Base], str | None]
    write: Callable[[WeightDelta, Base, Path, Passed], Mapping[str, Any] | None]
    check: Callable[[Path], WeightDelta | None]
    attach: Callable[[Path, Base | None, Mapping[str, Any]], Attached]
    direct: Callable[[Path, Base], WeightDelta] | None = None
    dtype: Callable[[Path], str] | None = None
    standalone: bool = False
    library: str = ""
    priority: int = 0


@cache
def exporters() -> dict[str, Exporter]:
    """Format name → its exporter, those first that recognise a directory first."""
    found = []
    package = __name__.rpartition(".")[0]
    path = importlib.import_module(package).__path__
    for module_info in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{module_info.name}")
        if (exporter := getattr(module, "EXPORTER", None)) is not None:
            found.append(exporter)
    found.sort(key=lambda e: (-e.priority, e.name))
    return {exporter.name: exporter for exporter in found}


def exporter_named(name: str) -> Exporter:
    """The exporter of a format. Raises ExportError naming those that exist."""
    try:
        return exporters()[name]
    except KeyError:
        known = ", ".join(sorted(exporters()))
        raise ExportError(f"no export format {name!r}; known: {known}") from None


def recognise(path: Path) -> Exporter:
    """The format of a directory. Raises ExportError for a path that is no export at all."""
    if not path.is_dir():
        what = "is a file; give the directory it lies in" if path.exists() else "does not exist"
        raise ExportError(f"{path} {what}")
    marked = [e for e in exporters().values() if any((path / mark).is_file() for mark in e.marks)]
    if marked:
        # An adapter left beside the whole model that it was merged into is ignored, as on opening one.
        ignored = marked[0].library and marked[-1].standalone and _has_weights(path)
        return marked[-1] if ignored else marked[0]
    wanted = "; ".join(f"{e.name}: {' or '.join(e.marks)}" for e in exporters().values())
    raise ExportError(f"{path} holds no export that this version knows ({wanted})")


def _has_weights(path: Path) -> bool:
    return any((path / name).is_file() for name in (SINGLE, INDEX, "pytorch_model.bin"))


def check_holds(exporter: Exporter, delta: WeightDelta, base: Base) -> None:
    """Raise ExportError with the formats that can hold a delta when this one cannot."""
    if (reason := exporter.refusal(delta, base)) is None:
        return
    able = [e.name for e in exporters().values() if e.refusal(delta, base) is None]
    names = ", ".join(sorted(able))
    raise ExportError(f"{exporter.name} cannot hold this edit: {reason}; formats that can: {names}")
