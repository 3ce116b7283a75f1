"""Write exports and verify them: reload in a fresh process, compare logits, then put in place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.opening import open_model
from interp.backends.protocol import Backend
from interp.edits import check_base, fingerprint
from interp.errors import DeltaError, ExportError, ModelNotFound, NotFinite
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
from interp.export.releasing import released
from interp.export.staging import check_not_the_base, check_target, publish, staged
from interp.models.anatomy import Anatomy
from interp.models.loading import resolve
from interp.records import FigureRecord
from interp.types import TokenBatch, WeightDelta

LOADING = ("dtype", "device_map", "quantize", "revision", "trust_remote_code")
"""Options of :func:`export` that say how a model is opened."""
ROOM = 1.2
"""Memory of an accelerator that a reload takes, as a multiple of the model's bytes."""
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
    keep_model: bool = True,
    **options: Any,
) -> Receipt:
    """Write ``delta`` in the format ``to`` and verify it before it appears at ``out``.

    base: the open model, as a backend or ``(model, tokenizer, anatomy)``; base_name: the name under which a
    fresh process opens it again, with ``options`` of :func:`interp.models.loading.load`, in the open model's
    dtype. cards, measured, unproven: see :func:`interp.export.gate.check`; a measurement is written beside a
    delta. source: the adapter or model that the delta was read from, whose logits the export must give as
    well, unless the delta is an approximation. keep_model: the open model's weights wait on disk while the
    fresh process loads the model; with False they are given up (:func:`interp.export.releasing.released`).
    Raises ExportError when the edit is not proven, the format cannot hold it, the reloaded export is not the
    edit, or ``out`` holds something else, DeltaError for another base; then nothing is left at ``out``.
    """
    started = time.perf_counter()
    job = _Job(delta, exporter_named(to), _opened(base, base_name, options), source)
    target = job.admitted(Path(out), overwrite=overwrite)
    passed = gate.check(delta, cards, measured, unproven=unproven)
    with staged(target) as stage:
        found = job.written(stage, passed, keep_model=keep_model)
        found = replace(found, files=hashes(stage), seconds=round(time.perf_counter() - started, 3))
        found.save(stage)
        publish(stage, target, overwrite=overwrite)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A delta, the format that it is written in, the open model, and what the delta was read from."""

    delta: WeightDelta
    exporter: Exporter
    base: Base
    source: Path | str | None

    def admitted(self, out: Path, *, overwrite: bool) -> Path:
        """Where the export goes. Raises what :func:`export` does, before anything is written."""
        target = check_target(out, overwrite=overwrite)
        check_not_the_base(target, Path(resolve(self.base.name)))
        check_base(self.base.model, self.base.anatomy, self.delta)
        check_holds(self.exporter, self.delta, self.base)
        return target

    def written(self, stage: Path, passed: gate.Passed, *, keep_model: bool) -> Receipt:
        """Write into ``stage`` and verify it there. Raises ExportError for files that are not the edit."""
        notes = self.exporter.write(self.delta, self.base, stage, passed) or {}
        known = self.reference()
        with staged(stage) as scratch, released(self.base.model, scratch, keep=keep_model):
            found = self.compare(known, stage)
        if found.why:
            raise ExportError(
                f"the {self.exporter.name} export did not verify: {found.why}; nothing was written"
            )
        Probe.of(known.batch, known.edited).save(stage)
        return replace(found, **passed.as_json(), notes=notes)

    def reference(self) -> _Reference:
        """Logits of the open model on the probe batch, without and with the delta."""
        backend, batch = self.base.backend, probe_batch(self.base.backend)
        plain = backend.logits(batch).float()
        try:
            edited = backend.logits(batch, self.delta).float()
        except NotFinite as cause:
            raise ExportError(
                f"the edited model overflows: {cause}; or make the edit weaker"
            ) from None
        return _Reference(batch, plain, edited, fingerprint(self.base.model, self.base.anatomy))

    def compare(self, known: _Reference, stage: Path) -> Receipt:
        """What the open model gave beside what the files, and the source, give in a fresh process."""
        request = Request(
            format=self.exporter.name,
            path=str(stage),
            base=self.base.name,
            options=self.base.options,
            fingerprint=known.fingerprint,
            batch=known.batch,
            threads=torch.get_num_threads(),
        )
        reply = exchange.ask(request)
        found = Receipt(
            format=self.exporter.name,
            base=self.base.name,
            fingerprint=known.fingerprint,
            dtype=reply.dtype,
            difference=distance(reply.logits["export"], known.edited),
            effect=distance(known.edited, known.plain),
            scale=known.edited.abs().max().item(),
            tolerance=_tolerance(self.base.dtype, reply.dtype, *_stored(self.exporter, stage)),
            **_from_delta(self.delta),
            versions=versions(),
        )
        if self.source is None or found.why:
            return found
        compared = compare_source(Path(self.source), self.delta, request, reply, found)
        return replace(found, source=compared)


@dataclass(frozen=True, slots=True, eq=False)
class _Reference:
    """What the open model gives on the probe batch: logits ``[batch, vocab]`` of base and edited model."""

    batch: TokenBatch
    plain: Tensor
    edited: Tensor
    fingerprint: str


def export_on(
    backend: Backend, delta: WeightDelta, out: Path | str, to: str, options: Mapping[str, Any]
) -> Receipt:
    """:func:`export` on the model behind a backend, as unproven where a proof is missing."""
    known = {"base_name": backend.source, **backend.loading}
    proof = {"cards": gate.shipped_cards(), "unproven": True}
    try:
        return export(delta, to=to, base=backend, out=out, **{**known, **proof, **options})
    except ModelNotFound as error:
        raise ModelNotFound(
            f"{error}; a fresh process opens the model by name: give base_name=DIRECTORY or a hub id"
        ) from None


def export_by_name(
    delta: WeightDelta, out: Path | str, to: str, options: Mapping[str, Any]
) -> Receipt:
    """:func:`export_on` the model whose name the delta carries, opened with the loading options given."""
    name = options.get("base_name") or delta.provenance.get("model")
    if not name:
        raise DeltaError("this delta names no model; give base_name=DIRECTORY or a hub id")
    loading = {key: value for key, value in options.items() if key in LOADING}
    backend = open_model(str(name), **loading)
    return export_on(backend, delta, out, to, {"keep_model": False, **options})


def _opened(base: Opened, name: str, options: Mapping[str, Any]) -> Base:
    if isinstance(base, tuple):
        model, tokenizer, anatomy = base
    else:
        model, tokenizer, anatomy = base.model, base.tokenizer, base.anatomy
    chosen = {"dtype": dtype_of(model)} | _same_device(model) | dict(options)
    return Base(model, tokenizer, anatomy, name, chosen)


def _same_device(model: nn.Module) -> dict[str, Any]:
    """Options that reload on the model's own accelerator, once its weights are out of it, if they fit."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return {}
    sizes = [(p.numel() * p.element_size(), p.device == device) for p in model.parameters()]
    there = sum(size for size, is_there in sizes if is_there)
    free, _ = torch.cuda.mem_get_info(device)
    fits = free + there > ROOM * sum(size for size, _ in sizes)
    return {"device_map": str(device)} if fits else {}


def _stored(exporter: Exporter, path: Path) -> tuple[str, ...]:
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
        tolerance=_tolerance(known.dtype, reply.dtype, *_stored(exporter, folder)),
        probe="stored" if stored else "no stored probe",
        files=stored.files if stored else {},
        versions=versions(),
    )
