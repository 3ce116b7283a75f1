"""Any edit of a base, whoever wrote it, as a weight delta: read from its files, no model loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.edits import check_made_for
from interp.errors import ExportError, ModelNotFound
from interp.export import gguf_lora
from interp.export.adapters import read_adapter
from interp.export.delta import load_delta
from interp.export.difference import checkpoint_fingerprint, difference
from interp.export.exporter import Base, recognise
from interp.export.merged import checkpoint_of
from interp.export.peft import unties
from interp.export.sides import saved_name
from interp.models.anatomy import Anatomy
from interp.models.checkpoint import Checkpoint
from interp.models.skeleton import skeleton
from interp.types import Coverage, LowRank, WeightDelta
from interp.watching import Watch, unwatched

GGUF = ".gguf"
LORA = "gguf-lora"
SKELETON_OPTIONS = ("trust_remote_code", "revision")


def read_edit(
    path: Path | str,
    base_name: str,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    watch: Watch = unwatched,
    **loading: Any,
) -> WeightDelta:
    """What ``path`` does to the weights of ``base_name``.

    path: a delta directory, a LoRA adapter of PEFT or heretic, a LoRA GGUF (file or directory), or
    a merged or finetuned model directory, whose difference is taken (rank, tolerance and watch as
    in :func:`interp.export.difference.difference`). loading: options of
    :func:`interp.models.loading.load`; only ``revision`` and ``trust_remote_code`` matter here.

    The delta carries the fingerprint of the base's files; ``"unverified"`` where the base has no
    safetensors on this machine. Raises DeltaError for another base, ExportError for a damaged file
    and for what is no weight edit, ModelNotFound.
    """
    source = Path(path).expanduser()
    options = {k: loading[k] for k in SKELETON_OPTIONS if loading.get(k)}
    kind = _kind(source)
    model, anatomy = skeleton(base_name, **options)
    checkpoint = stored_base(Base(model, None, anatomy, base_name, options))
    if kind == "merged":
        return _difference(source, base_name, checkpoint, rank, tolerance, options, watch)
    if kind == "delta":
        return _own(source, anatomy, checkpoint)
    if kind == "peft":
        updates = read_adapter(source, model, base_name, _weights(base_name, checkpoint, anatomy))
    else:
        updates = gguf_lora.on_base(source, model, anatomy, base_name)
    return _adapter(kind, source, updates, anatomy, checkpoint, base_name)


def _kind(source: Path) -> str:
    if source.is_file() and source.suffix == GGUF:
        return LORA
    kind = recognise(source).name
    kind = "peft" if kind == "heretic" else kind  # an adapter with a reproduce.json beside it
    if kind not in ("delta", "peft", "merged", LORA):
        raise ExportError(
            f"{source} is a {kind}, which is no edit of weights; give a delta, a LoRA adapter or a model"
        )
    return kind


def stored_base(base: Base) -> Checkpoint | None:
    """The base's files, None where it is in another format or was never downloaded."""
    try:
        return checkpoint_of(base)
    except ModelNotFound:
        return None


def _difference(
    source: Path,
    base_name: str,
    checkpoint: Checkpoint | None,
    rank: int | None,
    tolerance: float | None,
    options: Mapping[str, Any],
    watch: Watch,
) -> WeightDelta:
    if checkpoint is None:
        raise ModelNotFound(
            f"{base_name} has no safetensors on this machine, so that {source} cannot be compared "
            "with it; save it with save_pretrained first"
        )
    trust = bool(options.get("trust_remote_code"))
    found = difference(
        checkpoint.folder, source, rank=rank, tolerance=tolerance, trust_remote_code=trust,
        watch=watch,
    )  # fmt: skip
    return replace(found, provenance={**found.provenance, "model": Path(base_name).name})


def _own(source: Path, anatomy: Anatomy, checkpoint: Checkpoint | None) -> WeightDelta:
    delta = load_delta(source)
    if checkpoint is not None:
        check_made_for(delta, checkpoint_fingerprint(checkpoint, anatomy))
    return delta


def _weights(base_name: str, checkpoint: Checkpoint | None, anatomy: Anatomy) -> Any:
    """The base's own values, for an adapter that carries one of them."""

    def weight(name: str) -> Tensor | None:
        if checkpoint is None:
            raise ModelNotFound(
                f"the adapter carries {name}, and {base_name} has no safetensors on this machine to "
                "compare it with; save it with save_pretrained first"
            )
        saved = {w.weight: w.checkpoint[0] for w in anatomy.embeddings}
        saved[f"{anatomy.unembed}.weight"] = anatomy.unembed_checkpoint
        key = checkpoint.find(saved.get(name) or saved_name(anatomy, name))
        if key is None and anatomy.tied and name == f"{anatomy.unembed}.weight":
            key = checkpoint.find(anatomy.embeddings[0].checkpoint[0])
        return None if key is None else checkpoint.read(key)

    return weight


def _adapter(
    kind: str,
    source: Path,
    updates: Mapping[str, LowRank],
    anatomy: Anatomy,
    checkpoint: Checkpoint | None,
    base_name: str,
) -> WeightDelta:
    writers = {w.weight: w.checkpoint for w in anatomy.writers}
    return WeightDelta(
        updates=updates,
        base="unverified" if checkpoint is None else checkpoint_fingerprint(checkpoint, anatomy),
        recipe={"method": kind, "other": source.name},
        exactness="W + BA",
        coverage=Coverage(
            tuple(name for name in writers if name in updates),
            {name: "not adapted" for name in writers if name not in updates},
        ),
        provenance={"model": Path(base_name).name},
        checkpoint={name: writers.get(name, (saved_name(anatomy, name),)) for name in updates},
        untied=unties(anatomy, updates),
    )
