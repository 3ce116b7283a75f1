"""The ``delta`` format: fp32 factors by checkpoint tensor name, and a manifest that explains them.

``delta.safetensors`` holds, for a checkpoint tensor ``K``: ``K.b [*expert, d_model, k]`` and ``K.a
[*expert, k, d_in]`` (``ΔW = b @ a`` in canonical orientation), or ``K.shift [*expert, d_model]``
for a bias. Fused experts that a checkpoint saves one by one have one pair per saved tensor.
``manifest.json`` maps runtime names to checkpoint names, so reading needs no model; nothing in it
is ever used as a path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from interp.errors import DeltaError
from interp.export import gate
from interp.export.exporter import Attached, Base, Exporter
from interp.export.gate import Passed
from interp.export.measurement import Measurement
from interp.export.staging import check_target, publish, staged
from interp.export.tensors import (
    AGAIN,
    check_seal,
    first_line,
    plain,
    read_object,
    read_tensors,
    sealed,
    write_tensors,
)
from interp.files import sha256_file, write_json
from interp.records import FigureRecord
from interp.types import Axes, Coverage, LowRank, Shift, Update, WeightDelta

FORMAT = "interp-delta"
VERSION = 1
TENSORS = "delta.safetensors"
MANIFEST = "manifest.json"
FIELDS = {
    "base": str,
    "recipe": dict,
    "exactness": str,
    "coverage": dict,
    "provenance": dict,
    "untied": bool,
    "updates": list,
    "cards": list,
    "unproven": bool,
    "sha256": str,
}


def save_delta(
    delta: WeightDelta,
    out: Path | str,
    *,
    cards: Sequence[FigureRecord] = (),
    measured: Measurement | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a delta without verifying it against its base (that is :func:`interp.export.export`).

    Without the proof that :func:`interp.export.gate.check` asks for, its manifest calls it unproven.

    Raises DeltaError for factors or a recipe that cannot be written, ExportError when ``out`` holds
    something that is no export.
    """
    target = check_target(Path(out), overwrite=overwrite)
    with staged(target) as stage:
        write(delta, stage, gate.check(delta, cards, measured, unproven=True))
        publish(stage, target, overwrite=overwrite)
    return target


def write(delta: WeightDelta, out: Path, passed: Passed) -> None:
    """The files of a delta, and of its measurement if it has one, into a directory that exists."""
    tensors: dict[str, Tensor] = {}
    updates = []
    for name, update in delta:
        saved = tuple(delta.checkpoint.get(name, (name,)))
        parts = _parts(name, update, saved)
        if taken := tensors.keys() & parts.keys():
            raise DeltaError(
                f"two updates are saved as {min(taken)}; give them different checkpoint names"
            )
        tensors |= parts
        updates.append(_entry(name, update, saved))
    if bad := [k for k, v in tensors.items() if not bool(v.isfinite().all())]:
        raise DeltaError(f"{bad[0]} is not finite; fit the edit again in float32")
    write_tensors(out / TENSORS, tensors)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "base": delta.base,
        "recipe": plain(delta.recipe, "the recipe", DeltaError),
        "exactness": delta.exactness,
        "coverage": {
            "edited": list(delta.coverage.edited),
            "skipped": dict(delta.coverage.skipped),
        },
        "provenance": plain(delta.provenance, "the provenance", DeltaError),
        "untied": delta.untied,
        "updates": updates,
        **plain(passed.as_json(), "the proof", DeltaError),
        "sha256": sha256_file(out / TENSORS),
    }
    write_json(out / MANIFEST, sealed(manifest))
    if passed.measured is not None:
        passed.measured.save(out)


def _entry(name: str, update: Update, saved: tuple[str, ...]) -> dict[str, Any]:
    if isinstance(update, Shift):
        return {"name": name, "saved": list(saved), "shift": list(update.value.shape)}
    return {
        "name": name,
        "saved": list(saved),
        "axes": update.axes,
        "b": list(update.b.shape),
        "a": list(update.a.shape),
    }


def _factors(update: Update) -> dict[str, Tensor]:
    found = {"shift": update.value} if isinstance(update, Shift) else {"b": update.b, "a": update.a}
    return {k: v.detach().to("cpu", torch.float32) for k, v in found.items()}


def _parts(name: str, update: Update, saved: tuple[str, ...]) -> dict[str, Tensor]:
    """An update's tensors by key in the file, one set per checkpoint tensor."""
    factors = _factors(update)
    if len(saved) == 1:
        return {f"{saved[0]}.{part}": value for part, value in factors.items()}
    experts = next(iter(factors.values())).shape[0]
    if len(saved) != experts or len(set(saved)) != experts:
        raise DeltaError(f"{name} has {experts} experts but {len(saved)} checkpoint names")
    return {
        f"{key}.{part}": value[e] for e, key in enumerate(saved) for part, value in factors.items()
    }


def load_delta(path: Path | str) -> WeightDelta:
    """The delta in a directory; its ``export`` opens the model that the manifest names.

    Raises DeltaError unless the directory is exactly what was written.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DeltaError(f"{folder} is no delta directory; give the directory that `export` wrote")
    manifest = read_object(folder / MANIFEST, DeltaError)
    _check_manifest(manifest, folder / MANIFEST)
    tensors = read_tensors(folder / TENSORS, DeltaError)
    if sha256_file(folder / TENSORS) != manifest["sha256"]:
        raise DeltaError(
            f"{folder / TENSORS} is not the file its manifest was written for; {AGAIN}"
        )
    try:
        return _assemble(manifest, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as cause:
        raise DeltaError(
            f"{folder / MANIFEST} does not describe its tensors ({first_line(cause)}); {AGAIN}"
        ) from None


def _check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    if manifest.get("format") != FORMAT:
        raise DeltaError(f"{path} is not a delta's manifest; give a directory that `export` wrote")
    if manifest.get("version") != VERSION:
        raise DeltaError(
            f"{path} has format version {manifest.get('version')!r}, this interp reads {VERSION}; "
            "install the interp that wrote it"
        )
    check_seal(manifest, path, DeltaError)
    for field, kind in FIELDS.items():
        if not isinstance(manifest.get(field), kind):
            raise DeltaError(f"{path}: {field!r} is missing or not a {kind.__name__}; {AGAIN}")


def _assemble(manifest: Mapping[str, Any], tensors: dict[str, Tensor]) -> WeightDelta:
    updates: dict[str, Update] = {}
    checkpoint: dict[str, tuple[str, ...]] = {}
    for entry in manifest["updates"]:
        name, saved = entry["name"], tuple(entry["saved"])
        if name in updates or not saved or not all(isinstance(s, str) for s in (name, *saved)):
            raise ValueError(f"the names of {name!r}")
        updates[name] = _read_update(entry, saved, tensors)
        checkpoint[name] = saved
    if tensors:
        raise ValueError(f"{min(tensors)} belongs to no update")
    coverage = manifest["coverage"]
    return WeightDelta(
        updates=updates,
        base=manifest["base"],
        recipe=manifest["recipe"],
        exactness=manifest["exactness"],
        coverage=Coverage(tuple(coverage["edited"]), dict(coverage["skipped"])),
        provenance=manifest["provenance"],
        checkpoint=checkpoint,
        untied=manifest["untied"],
        exported_by=_export_by_name,
    )


def _export_by_name(delta: WeightDelta, out: Path | str, to: str, options: dict[str, Any]) -> Any:
    from interp.export.verify import export_by_name  # which imports the formats

    return export_by_name(delta, out, to, options)


def _read_update(
    entry: Mapping[str, Any], saved: tuple[str, ...], tensors: dict[str, Tensor]
) -> Update:
    """One update; its tensors leave ``tensors``, so that what stays belongs to none."""

    def take(part: str) -> Tensor:
        found = [tensors.pop(f"{key}.{part}") for key in saved]
        value = found[0] if len(found) == 1 else torch.stack(found)
        if list(value.shape) != entry[part] or value.dtype != torch.float32:
            raise ValueError(f"{entry['name']}.{part} is {value.dtype} {tuple(value.shape)}")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{entry['name']}.{part} is not finite")
        return value

    if "shift" in entry:
        return Shift(take("shift"))
    if entry["axes"] not in get_args(Axes):
        raise ValueError(f"axes {entry['axes']!r}")
    return LowRank(take("b"), take("a"), entry["axes"])


def _write(delta: WeightDelta, base: Base, out: Path, passed: Passed) -> None:
    # The base's name is what the error for another base shows.
    named = replace(delta, provenance={"model": base.name, **delta.provenance})
    write(named, out, passed)


def _attach(path: Path, base: Base | None, options: Mapping[str, Any]) -> Attached:
    assert base is not None
    return Attached(base.backend, load_delta(path))


EXPORTER = Exporter(
    name="delta",
    summary="fp32 factors by checkpoint tensor name and a manifest; holds every edit",
    marks=(TENSORS,),  # other tools have a manifest.json too
    refusal=lambda delta, base: None,
    write=_write,
    check=load_delta,
    attach=_attach,
    priority=20,
)
