"""Write exports and verify them: reload in a fresh process, compare logits, then put in place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.backends.protocol import Backend
from interp.edits import check_base, fingerprint
from interp.errors import ExportError, NotFinite
from interp.export import exchange, gate
from interp.export.exchange import Reply, Request
from interp.export.exporter import (
    Base,
    Exporter,
    check_holds,
    dtype_of,
    exporter_named,
    recognise,
)
from interp.export.measurement import Measurement
from interp.export.probe import Probe, distance, probe_batch
from interp.export.provenance import compare_source
from interp.export.receipt import TOLERANCES, Receipt, check_files, hashes, versions
from interp.export.staging import check_not_the_base, check_target, publish, staged
from interp.models.anatomy import Anatomy
from interp.models.loading import resolve
from interp.records import FigureRecord
from interp.types import WeightDelta

Opened = Backend | tuple[nn.Module, Any, Anatomy]


def export(
    delta: WeightDelta,
    *,
    to: str,
    base: Opened,
    base_name: str,
    out: Path | str,
    overwrite: bool = False,
    cards: Sequence[FigureRecord] = (),
    measured: Measurement | None = None,
    unproven: bool = False,
    source: Path | str | None = None,
    **options: Any,
) -> Receipt:
    """Write ``delta`` in the format ``to`` and verify it before it appears at ``out``.

    base: the open model, as a backend or ``(model, tokenizer, anatomy)``; base_name: the name under
    which a fresh process opens it again, with ``options`` of :func:`interp.models.loading.load`
    (the dtype is the open model's). cards: figure cards that the edit rests on; measured: this
    delta on this model. Without both (:func:`interp.export.gate.check`) the edit is exported only with
    ``unproven``, and the files say what is missing; a measurement is written beside a delta.
    source: the adapter or model that the delta was read from; the export must also give its logits, as
    PEFT or transformers loads it, unless the delta is an approximation by its own account.
    Raises ExportError when the edit is not proven, the format cannot hold the edit, the reloaded
    export is not the edit, or ``out`` holds something else; DeltaError for another base. Then
    nothing is left at ``out``.
    """
    started = time.perf_counter()
    exporter = exporter_named(to)
    opened = _opened(base, base_name, options)
    target = check_target(Path(out), overwrite=overwrite)
    check_not_the_base(target, Path(resolve(base_name)))
    check_base(opened.model, opened.anatomy, delta)
    check_holds(exporter, delta, opened)
    passed = gate.check(delta, cards, measured, unproven=unproven)
    with staged(target) as stage:
        notes = exporter.write(delta, opened, stage, passed) or {}
        found, probe = _compare(delta, exporter, opened, stage, source)
        if found.why:
            raise ExportError(f"the {to} export did not verify: {found.why}; nothing was written")
        probe.save(stage)
        seconds = round(time.perf_counter() - started, 3)
        found = replace(
            found,
            **passed.as_json(),
            notes=notes,
            files=hashes(stage),
            seconds=seconds,
        )
        found.save(stage)
        publish(stage, target, overwrite=overwrite)
    return found


def _opened(base: Opened, name: str, options: Mapping[str, Any]) -> Base:
    if isinstance(base, tuple):
        model, tokenizer, anatomy = base
    else:
        model, tokenizer, anatomy = base.model, base.tokenizer, base.anatomy
    chosen = {"dtype": dtype_of(model)} | _same_device(model) | dict(options)
    return Base(model, tokenizer, anatomy, name, chosen)


def _same_device(model: nn.Module) -> dict[str, Any]:
    """Reload on the model's own accelerator when a second copy fits there, on the CPU otherwise."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return {}
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    free, _ = torch.cuda.mem_get_info(device)
    return {"device_map": str(device)} if free > 1.2 * size else {}


def _compare(
    delta: WeightDelta, exporter: Exporter, base: Base, stage: Path, source: Path | str | None
) -> tuple[Receipt, Probe]:
    """What the delta gives here beside what its files, and its source, give in a fresh process."""
    batch = probe_batch(base.backend)
    plain = base.backend.logits(batch).float()
    try:
        expected = base.backend.logits(batch, delta).float()
    except NotFinite as cause:
        raise ExportError(f"the edited model overflows: {cause}; or make the edit weaker") from None
    made_for = fingerprint(base.model, base.anatomy)
    request = Request(
        format=exporter.name,
        path=str(stage),
        base=base.name,
        options=base.options,
        fingerprint=made_for,
        batch=batch,
        threads=torch.get_num_threads(),
    )
    reply = exchange.ask(request)
    found = Receipt(
        format=exporter.name,
        base=base.name,
        fingerprint=made_for,
        dtype=reply.dtype,
        difference=distance(reply.logits["export"], expected),
        effect=distance(expected, plain),
        scale=expected.abs().max().item(),
        tolerance=_tolerance(base.dtype, reply.dtype, *_stored_dtype(exporter, stage)),
        **_from_delta(delta),
        versions=versions(),
    )
    if source is not None and not found.why:
        compared = compare_source(Path(source), delta, request, reply, found)
        found = replace(found, source=compared)
    return found, Probe.of(batch, expected)


def _stored_dtype(exporter: Exporter, path: Path) -> tuple[str, ...]:
    return () if exporter.dtype is None else (exporter.dtype(path),)


def _tolerance(*dtypes: str) -> float:
    return max(TOLERANCES.get(dtype, TOLERANCES["float32"]) for dtype in dtypes)


def _from_delta(delta: WeightDelta) -> dict[str, Any]:
    return {
        "recipe": delta.recipe,
        "exactness": delta.exactness,
        "coverage": {
            "edited": len(delta.coverage.edited),
            "skipped": len(delta.coverage.skipped),
            "total": delta.coverage.total,
        },
    }


def verify_export(path: Path | str, base_name: str, **options: Any) -> Receipt:
    """Verify a delta, a PEFT adapter or a merged model from its files and the base's name alone.

    options go to :func:`interp.models.loading.load`; the dtype is the receipt's unless given. With
    a receipt the files must have its hashes and give its stored logits; without one (a foreign
    adapter) every key must match a module of the base, and PEFT's logits must equal a direct weight
    edit with the factors. Raises ExportError or DeltaError with the one thing that is wrong, so
    that a returned receipt is always "verified".
    """
    started = time.perf_counter()
    folder = Path(path).expanduser()
    stored = Receipt.load(folder)
    if stored is not None:
        check_files(folder, stored)
    exporter = recognise(folder) if stored is None else exporter_named(stored.format)
    delta = exporter.check(folder)
    probe = None if stored is None else Probe.load(folder)
    reply = exchange.ask(
        Request(
            format=exporter.name,
            path=str(folder),
            base=base_name,
            options=({"dtype": stored.dtype} if stored else {}) | options,
            fingerprint=_made_for(stored, delta),
            batch=None if probe is None else probe.batch,
            compare=True,
            direct=stored is None,
            threads=torch.get_num_threads(),
        )
    )
    found = _judged(exporter, folder, base_name, stored, probe, reply)
    if stored is None and delta is not None:
        found = replace(found, **_from_delta(delta))
    if found.why:
        raise ExportError(f"{folder} does not verify: {found.why}")
    return replace(found, seconds=round(time.perf_counter() - started, 3))


def _made_for(stored: Receipt | None, delta: WeightDelta | None) -> str:
    return stored.fingerprint if stored else delta.base if delta else ""


def _judged(
    exporter: Exporter,
    folder: Path,
    base_name: str,
    stored: Receipt | None,
    probe: Probe | None,
    reply: Reply,
) -> Receipt:
    got, plain = reply.logits["export"], reply.logits["base"]
    if probe is not None:
        difference, scale = probe.difference(got), probe.logits.abs().max().item()
    else:
        direct = reply.logits.get("direct", got)
        difference, scale = distance(got, direct), direct.abs().max().item()
    known = stored or Receipt(exporter.name, base_name, "", reply.dtype, 0.0, 0.0, 0.0, 0.0)
    return replace(
        known,
        base=base_name,
        fingerprint=reply.fingerprint,
        dtype=reply.dtype,
        difference=difference,
        effect=distance(got, plain),
        scale=scale,
        tolerance=_tolerance(known.dtype, reply.dtype, *_stored_dtype(exporter, folder)),
        probe="stored" if stored else "no stored probe",
        files=stored.files if stored else {},
        versions=versions(),
    )
