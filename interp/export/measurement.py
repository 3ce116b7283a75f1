"""The measurement of one delta on its own model: what it removes, what it costs, on which prompts.

``interp measure --delta DIR`` writes it into ``DIR``. It counts for the gate as long as the delta and the
model are the very ones that were measured and none of the prompts was fitted or chosen on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.data.prompts import PromptSet
from interp.errors import ExportError
from interp.export.staging import MEASUREMENT
from interp.export.tensors import check_seal, first_line, plain, read_object, sealed
from interp.files import write_json
from interp.records import Provenance
from interp.types import LowRank, WeightDelta

VERSION = 1
FEWEST = 8
"""Prompts of each class below which a measurement proves nothing."""
UNKNOWN = "unverified"
"""The fingerprint of a model whose weights cannot be read."""
AGAIN = "run `interp measure --delta DIR` again"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One delta measured on one model.

    delta: :func:`content_hash`. model: fingerprint of the base. rows: measures (a row's JSON) of
    ``original`` and ``edited``. prompts: ``refuse`` and ``comply``, each with ``source``, ``sha256`` and
    ``n``. seen: how many of these prompts the edit was fitted or chosen on; None where the delta does not
    say on which it was. asked: how prompts were put and how long a response was. provenance: versions,
    commit, hardware.
    """

    delta: str
    model: str
    rows: Mapping[str, Mapping[str, Any]]
    prompts: Mapping[str, Mapping[str, Any]]
    seen: int | None
    asked: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        delta: WeightDelta,
        rows: Sequence[Mapping[str, Any]],
        refuse: PromptSet,
        comply: PromptSet,
        provenance: Provenance,
        **asked: Any,
    ) -> Measurement:
        """rows: those of the unedited model and of the edited one. provenance: with the fingerprint of
        the model that was measured."""
        known = delta.provenance.get("seen_prompts")
        used = refuse.fingerprints | comply.fingerprints
        return cls(
            content_hash(delta),
            provenance.fingerprint or UNKNOWN,
            dict(zip(("original", "edited"), rows, strict=True)),
            {
                side: {"source": part.source, "sha256": part.sha256, "n": len(part)}
                for side, part in (("refuse", refuse), ("comply", comply))
            },
            None if known is None else len(used & set(known)),
            asked,
            asdict(provenance),
        )

    @property
    def flaw(self) -> str:
        """Why it proves nothing about any delta; empty where it does."""
        if self.model == UNKNOWN:
            return "was made on a model whose weights cannot be read: measure the unquantised model"
        if self.seen is None:
            return "is on prompts that may have been fitted on: the delta does not say which were"
        if self.seen:
            return (
                f"is on {self.seen} prompts that the edit was fitted or chosen on: measure it on others "
                "(--split report, or other files)"
            )
        if (n := min(part["n"] for part in self.prompts.values())) < FEWEST:
            return f"is on {n} prompts of a class: measure it on at least {FEWEST} of each"
        return ""

    def summary(self) -> dict[str, Any]:
        """What it removes and what it costs, and on which prompts, for manifests."""
        before, after = self.rows["original"], self.rows["edited"]
        both = ("refusals", "n_refuse", "over_refusals", "n_comply", "nll")
        return {
            "delta": self.delta,
            "original": {name: before[name] for name in both},
            "edited": {name: after[name] for name in (*both, "kl_first", "kl_continuation")},
            "prompts": {side: dict(part) for side, part in self.prompts.items()},
        }

    def save(self, folder: Path) -> Path:
        """Write it into a delta's directory, atomically; the path."""
        value = {"measurement": VERSION, **plain(asdict(self), "the measurement", ExportError)}
        write_json(folder / MEASUREMENT, sealed(value))
        return folder / MEASUREMENT

    @classmethod
    def load(cls, folder: Path) -> Measurement | None:
        """The measurement in a directory, None without one. Raises ExportError for a changed one."""
        path = folder / MEASUREMENT
        if not path.is_file():
            return None
        value = read_object(path, ExportError)
        if value.get("measurement") != VERSION:
            raise ExportError(f"{path} is no measurement that this interp reads; {AGAIN}")
        check_seal(value, path, ExportError)
        try:
            found = cls(**{f.name: value[f.name] for f in fields(cls)})
            _ = (found.flaw, found.summary())
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise ExportError(f"{path} is no measurement ({first_line(cause)}); {AGAIN}") from None
        return found


def why_not(measured: Measurement | None, delta: WeightDelta) -> str:
    """Why a measurement does not prove a delta, with the mend; empty where it does."""
    if measured is None:
        return (
            "the edit was not measured on held-out prompts: run `interp measure --delta DIR` on its "
            "delta, which `interp diff --out DIR` makes of an adapter or a model"
        )
    if measured.delta != content_hash(delta):
        return f"the measurement is of another delta: {AGAIN} on this one"
    if measured.model != delta.base:
        return f"the measurement was made on another model: {AGAIN} on the base"
    return f"the measurement {measured.flaw}" if measured.flaw else ""


def content_hash(delta: WeightDelta) -> str:
    """SHA-256 of what a delta does to the weights: its updates and its base, not how it was made."""
    digest = hashlib.sha256(f"{delta.base}:{delta.untied}".encode())
    for name, update in sorted(delta.updates.items()):
        low = isinstance(update, LowRank)
        parts = {"b": update.b, "a": update.a} if low else {"shift": update.value}
        axes = update.axes if low else ""
        for part, value in parts.items():
            digest.update(f"{name}.{part}:{axes}:{list(value.shape)}".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
