"""The receipt of a verified export: what was compared, how far apart it was, and with what."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from interp.errors import ExportError
from interp.export.staging import MEASUREMENT
from interp.export.staging import RECEIPT as FILE
from interp.export.tensors import AGAIN, check_seal, first_line, plain, read_object, sealed
from interp.files import sha256_file, write_json

VERSION = 1
TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
"""Largest difference allowed, relative to the largest logit. The short dtypes keep 11 and 8 bits,
and an adapter rounds after each addition where a merge rounds the sum of weights."""
NOTHING = 1e-6
"""An effect below this share of the largest logit is rounding of fp32, not an edit."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a verification found.

    difference: largest absolute logit difference between the export, reloaded, and what it must
    give. effect: the same between the edited model and its base. scale: largest absolute logit.
    tolerance: largest allowed ``difference / scale``. probe: without a stored one, ``difference``
    compares an adapter with the weight edit made from its factors, and is 0 where there is nothing
    to compare with. cards, measured, unproven, missing: see :class:`interp.export.gate.Passed`. files:
    relative path → SHA-256. notes: what the format says about these files (the leak of a merge, the error
    of a truncation). source: what the delta was read from, the library that loaded it for comparison, and
    the ``difference`` of its logits from the export's; empty for an edit made here. seconds: wall time of
    writing and verifying.
    """

    format: str
    base: str
    fingerprint: str
    dtype: str
    difference: float
    effect: float
    scale: float
    tolerance: float
    probe: Literal["stored", "no stored probe"] = "stored"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    exactness: str = ""
    coverage: Mapping[str, int] = field(default_factory=dict)
    cards: tuple[Mapping[str, Any], ...] = ()
    measured: Mapping[str, Any] | None = None
    unproven: bool = False
    missing: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def verdict(self) -> Literal["verified", "failed"]:
        """Computed: the export gives the edited logits, and the effect is more than rounding."""
        close = self.difference <= self.tolerance * self.scale
        works = self.effect > NOTHING * self.scale and self.difference <= self.effect / 2
        return "verified" if close and works else "failed"

    @property
    def why(self) -> str:
        """The reason of a failed verdict with its mend, empty for a verified one."""
        if self.verdict == "verified":
            return ""
        if not self.effect > NOTHING * self.scale:
            return f"it loads but changes nothing (in {self.dtype}, on {self.base})"
        if not self.difference <= self.tolerance * self.scale:
            return (
                f"its logits differ by {self.difference:.3g} from those of the edit (allowed: "
                f"{self.tolerance * self.scale:.3g}; the edit moves them by {self.effect:.3g})"
                + ("" if self.dtype == "float32" else "; load the base in float32 and export again")
            )
        return (
            f"the edit moves the logits by {self.effect:.3g}, which rounding in {self.dtype} hides "
            f"({self.difference:.3g}); load the base in float32, or make the edit stronger"
        )

    def save(self, folder: Path) -> None:
        value = plain(asdict(self), "the receipt", ExportError)
        write_json(folder / FILE, sealed({"receipt": VERSION, "verdict": self.verdict} | value))

    @classmethod
    def load(cls, folder: Path) -> Receipt | None:
        """The receipt in a directory, None without one. Raises ExportError for a changed one."""
        path = folder / FILE
        if not path.is_file():
            return None
        value = read_object(path, ExportError)
        if value.get("receipt") != VERSION:
            raise ExportError(
                f"{path} has version {value.get('receipt')!r}, this interp reads {VERSION}; "
                "install the interp that wrote it"
            )
        check_seal(value, path, ExportError)
        known = {f.name for f in fields(cls)}
        try:
            receipt = cls(**{k: _tuple(v) for k, v in value.items() if k in known})
            consistent = receipt.verdict == value["verdict"]
        except (KeyError, TypeError) as cause:
            raise ExportError(f"{path} is no receipt ({first_line(cause)}); {AGAIN}") from None
        if not consistent:
            claim = value["verdict"]
            raise ExportError(f"{path} claims {claim!r}, which its numbers deny; {AGAIN}")
        return receipt


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def hashes(folder: Path) -> dict[str, str]:
    """Relative path → SHA-256 of every file of an export but the receipt and the measurement."""
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    names = {p.relative_to(folder).as_posix(): p for p in found}
    # A delta may be measured again, which changes nothing of the export.
    return {name: sha256_file(p) for name, p in names.items() if name not in (FILE, MEASUREMENT)}


def check_files(folder: Path, receipt: Receipt) -> None:
    """Raise ExportError for a file that is missing or not the one the receipt was written for."""
    for name, expected in receipt.files.items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise ExportError(f"the receipt in {folder} names {name!r} outside it; {AGAIN}")
        path = folder / name
        if not path.is_file():
            raise ExportError(f"{path} is missing; {AGAIN}")
        if sha256_file(path) != expected:
            raise ExportError(f"{path} is not the file that was verified; {AGAIN}")


def versions() -> dict[str, str]:
    """Installed versions of what an export depends on."""
    found = {}
    for name in ("interp-toolkit", "torch", "transformers", "peft", "safetensors"):
        try:
            found[name.removesuffix("-toolkit")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name.removesuffix("-toolkit")] = "not installed"
    return found
