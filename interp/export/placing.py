"""Where the updates of a delta go in a checkpoint's files."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from interp.errors import DeltaError, ExportError
from interp.models.anatomy import Anatomy
from interp.models.checkpoint import Checkpoint, Stored
from interp.models.layout import pieces, readers_of_experts, saved_before_renaming
from interp.types import LowRank, Shift, Update, WeightDelta


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Saved tensor → its update, and new tensor → where its bytes lie."""

    patches: dict[str, Update] = field(default_factory=dict)
    copies: dict[str, Stored] = field(default_factory=dict)


def place(
    checkpoint: Checkpoint, anatomy: Anatomy, delta: WeightDelta, new: Collection[str] = ()
) -> Placed:
    """Resolve every update to tensors of the checkpoint, but for new parameters.

    An untied edit gives the unembedding its own copy of the unedited embedding, unless the files
    hold one. Raises ExportError for a tensor that the files lack, DeltaError for two updates of
    one tensor.
    """
    placed = Placed()
    for name, update in delta:
        if name in new:
            continue
        for key, part in _parts(checkpoint, anatomy, delta, name, update):
            if key in placed.patches:
                raise DeltaError(
                    f"two updates are saved as {key}; give them different checkpoint names"
                )
            placed.patches[key] = part
    if delta.untied and checkpoint.find(anatomy.unembed_checkpoint) is None:
        embedding = checkpoint.find(anatomy.embeddings[0].checkpoint[0])
        assert embedding is not None  # it is edited, hence placed
        placed.copies[anatomy.unembed_checkpoint] = checkpoint.tensors[embedding]
    return placed


def _parts(
    checkpoint: Checkpoint, anatomy: Anatomy, delta: WeightDelta, name: str, update: Update
) -> list[tuple[str, Update]]:
    writer = next((w for w in anatomy.writers if w.weight == name), None)
    if writer is not None and isinstance(update, LowRank):
        placed = pieces(checkpoint, writer)
        if placed[0].expert is None:
            return [(placed[0].key, update)]
        return [
            (p.key, LowRank(update.b[p.expert], update.a[p.expert], p.axes))  # type: ignore[index]
            for p in placed
        ]
    split = readers_of_experts(anatomy, name) if isinstance(update, LowRank) else ()
    if split and checkpoint.find(name) is None:
        return list(_expert_rows(checkpoint, update, split))  # type: ignore[arg-type]
    saved = delta.checkpoint.get(name, (name,))
    keys = [
        checkpoint.find(key) or checkpoint.find(saved_before_renaming(anatomy, key))
        for key in saved
    ]
    if None in keys:
        raise ExportError(
            f"{checkpoint.folder} has no {saved[keys.index(None)]}, so that a reload would drop that "
            "update; export it as a delta"
        )
    if len(keys) == 1:
        return [(keys[0], update)]  # type: ignore[list-item]
    return [(key, _expert(update, e)) for e, key in enumerate(keys)]  # type: ignore[misc]


def _expert_rows(
    checkpoint: Checkpoint, update: LowRank, split: tuple[tuple[str, ...], ...]
) -> Iterator[tuple[str, Update]]:
    """The update of each saved part of fused experts: so many rows of its expert."""
    for e, names in enumerate(split):
        for name, b in zip(names, update.b[e].chunk(len(names)), strict=True):
            if (key := checkpoint.find(name)) is None:
                raise ExportError(f"{checkpoint.folder} has no {name}; export it as a delta")
            yield key, LowRank(b.contiguous(), update.a[e], "out in")


def _expert(update: Update, e: int) -> Update:
    if isinstance(update, Shift):
        return Shift(update.value[e])
    return replace(update, b=update.b[e], a=update.a[e], axes="out in")
