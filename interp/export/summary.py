"""A weight delta in numbers: how large each change is, of what rank, and how much along a direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import DeltaError, ExportError
from interp.export.delta import TENSORS as DELTA_FILE
from interp.export.delta import load_delta
from interp.export.factors import Cut, effective_rank, factor
from interp.export.sides import Pair, saved_name, targets
from interp.export.tensors import read_tensors
from interp.maths import frobenius, through_gain, unit
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.checkpoint import Checkpoint
from interp.types import LowRank, Shift, Update, Vector, WeightDelta
from interp.watching import Progress, unheard

UNEMBEDDING = "unembedding"
READER = "reader"


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A unit vector ``[d_model]`` to look along, and what to call it."""

    name: str
    vector: Vector
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One changed parameter, or a writer that did not change (norm 0).

    kind: of the writer; ``unembedding`` and ``reader`` for what writes no stream. norm: ‖ΔW‖_F of
    the whole change; relative: to ‖W‖_F, None where W is not known or zero. rank: of the factors
    that are stored, 0 for a bias. left_out: share of the norm that they leave out. shares: name of
    a direction → ‖dᵀΔW‖/‖ΔW‖ of the stored factors, for writers.
    """

    name: str
    kind: str
    block: int | None
    norm: float
    weight: float | None
    rank: int
    effective_rank: float
    left_out: float
    shares: Mapping[str, float]
    bias: bool = False

    @property
    def relative(self) -> float | None:
        return self.norm / self.weight if self.weight else None

    @property
    def writes(self) -> bool:
        """Whether it is a matrix that writes the stream. Biases are no part of the totals: a length
        added to every token and a matrix have no norm in common."""
        return not self.bias and self.kind not in (UNEMBEDDING, READER)


@dataclass(frozen=True, slots=True)
class Total:
    """The matrices of a block, of a kind, or of both: norms as if they were one long vector."""

    norm: float
    weight: float | None
    shares: Mapping[str, float]

    @property
    def relative(self) -> float | None:
        return self.norm / self.weight if self.weight else None

    def as_json(self) -> dict[str, Any]:
        return {"norm": self.norm, "relative": self.relative, "shares": dict(self.shares)}


def summary(
    delta: WeightDelta,
    model: nn.Module,
    anatomy: Anatomy,
    checkpoint: Checkpoint | None,
    directions: Sequence[Named] = (),
    advance: Progress = unheard,
) -> list[Line]:
    """Every writer of the model and everything else that the delta changes, in the model's order.

    model: a skeleton will do. checkpoint: the base's files, read tensor by tensor for ‖W‖; without
    them nothing is relative. advance is called once for each writer.
    """
    weights: dict[str, float] = {}
    writers = {w.weight: w for w in anatomy.writers}
    if checkpoint is not None:
        pair = Pair(checkpoint, checkpoint)
        for target in targets(pair, model, anatomy):
            if target.name in writers or target.name in dict(delta):
                squares = 0.0
                for part in target.parts:
                    stored, _ = pair.read(part)
                    squares += 0.0 if stored is None else frobenius(stored) ** 2
                weights[target.name] = math.sqrt(squares)
                if target.name in writers:
                    advance(1)
    biases = {w.bias or f"{w.module}.bias": w for w in anatomy.block_writers}
    lines = []
    for name in dict.fromkeys((*writers, *dict(delta))):
        writer = writers.get(name) or biases.get(name)
        seen = _seen(directions, writer, checkpoint, anatomy)
        lines.append(_line(delta, name, writer, anatomy, weights.get(name), seen))
    return lines


def _line(
    delta: WeightDelta,
    name: str,
    writer: BoundWriter | None,
    anatomy: Anatomy,
    weight: float | None,
    seen: Mapping[str, Vector],
) -> Line:
    kind = READER if name != f"{anatomy.unembed}.weight" else UNEMBEDDING
    block = _block_of(anatomy, name)
    if writer is not None:
        kind, block = writer.kind, writer.block
    update = dict(delta).get(name)
    if update is None:
        return Line(name, kind, block, 0.0, weight, 0, 0.0, 0.0, {})
    norm, rank, effective = measured(update)
    known = delta.recipe.get("tensors") if delta.recipe.get("method") == "difference" else None
    entry = (known or {}).get(name, {})
    return Line(
        name=name,
        kind=kind,
        block=block,
        norm=entry.get("norm", norm),
        weight=weight,
        rank=rank,
        effective_rank=entry.get("effective_rank", effective),
        left_out=entry.get("left_out", 0.0),
        shares={label: share(update, vector) for label, vector in seen.items()},
        bias=isinstance(update, Shift),
    )


def _block_of(anatomy: Anatomy, name: str) -> int | None:
    return next((i for i, path in enumerate(anatomy.blocks) if name.startswith(f"{path}.")), None)


def measured(update: Update) -> tuple[float, int, float]:
    """``(Frobenius norm, stored rank, effective rank)``; of experts, the largest effective rank."""
    if isinstance(update, Shift):
        return update.value.double().norm().item(), 0, 0.0
    b, a = update.b.double(), update.a.double()
    # The singular values of b a are those of two small triangles.
    left, right = (torch.linalg.qr(x, mode="r").R for x in (b, a.mT))
    values = torch.linalg.svdvals(left @ right.mT)
    rows = values.reshape(-1, values.shape[-1])
    return values.norm().item(), update.rank, max(effective_rank(row) for row in rows)


def share(update: Update, vector: Vector) -> float:
    """``‖dᵀΔW‖ / ‖ΔW‖`` for a unit vector of the output side; 0 for an update of zeros."""
    d = vector.double()
    if isinstance(update, Shift):
        along, whole = update.value.double() @ d, update.value.double()
        return along.norm().item() / max(whole.norm().item(), 1e-300)
    b, a = update.b.double(), update.a.double()
    along = (d @ b).unsqueeze(-2) @ a
    return along.norm().item() / max(measured(update)[0], 1e-300)


def random_share(d_model: int) -> float:
    """What a random direction holds: the root mean square of its share, ``√(1/d_model)``."""
    return math.sqrt(1.0 / d_model)


def _seen(
    directions: Sequence[Named],
    writer: BoundWriter | None,
    checkpoint: Checkpoint | None,
    anatomy: Anatomy,
) -> dict[str, Vector]:
    """The directions as a writer has to write them: through its post-norm gain if it has one."""
    if writer is None:
        return {}
    gain = None
    if writer.gain is not None and directions:
        key = None if checkpoint is None else checkpoint.find(saved_name(anatomy, writer.gain))
        if key is None or checkpoint is None:
            raise DeltaError(
                f"{writer.name} writes through {writer.gain}, which is not on this machine; give a "
                "base with safetensors, or no direction"
            )
        gain = checkpoint.read(key).float()
    return {d.name: through_gain(d.vector, gain, writer.gain_offset) for d in directions}


def totals(lines: Sequence[Line], by: Callable[[Line], Any]) -> dict[Any, Total]:
    """Totals of the writers for each value of ``by``, in order; lines with None are left out."""
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        if line.writes and (key := by(line)) is not None:
            groups.setdefault(key, []).append(line)
    return {key: _total(group) for key, group in groups.items()}


def _total(group: Sequence[Line]) -> Total:
    weights = [line.weight for line in group if line.weight is not None]
    norm = math.sqrt(sum(line.norm**2 for line in group))
    labels = dict.fromkeys(label for line in group for label in line.shares)
    shares = {
        label: math.sqrt(sum((line.norm * line.shares.get(label, 0.0)) ** 2 for line in group))
        / norm
        for label in labels
        if norm
    }
    known = len(weights) == len(group)
    return Total(norm, math.sqrt(sum(w**2 for w in weights)) if known else None, shares)


def as_json(line: Line) -> dict[str, Any]:
    return {**asdict(line), "relative": line.relative}


# --- directions --------------------------------------------------------------------------------


def read_direction(text: str, anatomy: Anatomy) -> Named:
    """``FILE.safetensors``, ``FILE.safetensors#name``, or a delta directory.

    Of a file, the named tensor or its only vector; of a delta, the direction that all its writers
    together write most. Raises ExportError for another file or length.
    """
    path, _, name = text.partition("#")
    folder = Path(path).expanduser()
    if (folder / DELTA_FILE).is_file():
        return _common(folder, anatomy)
    tensors = read_tensors(folder, ExportError)
    vectors = {k: v for k, v in tensors.items() if v.ndim == 1 and k == (name or k)}
    if len(vectors) != 1:
        have = ", ".join(f"{k} {tuple(v.shape)}" for k, v in sorted(tensors.items())[:5])
        raise ExportError(
            f"{text} names no single vector; the file has {have or 'nothing'}: give FILE#name"
        )
    ((label, vector),) = vectors.items()
    if len(vector) != anatomy.d_model:
        raise ExportError(
            f"{text} has {len(vector)} entries, the residual stream has {anatomy.d_model}; give a "
            "direction of this model"
        )
    return Named(label, unit(vector.float()))


def _common(folder: Path, anatomy: Anatomy) -> Named:
    """The left singular vector of all updates of writers side by side."""
    writers = {w.weight for w in anatomy.writers}
    columns = []
    for key, update in load_delta(folder):
        if key in writers and isinstance(update, LowRank) and update.b.shape[-2] == anatomy.d_model:
            b, a = update.b.double(), update.a.double()
            root = torch.linalg.qr(a.mT, mode="r").R.mT
            columns.append((b @ root).movedim(-2, 0).flatten(1))
    if not columns:
        raise ExportError(f"{folder} changes no writer of this model; give a direction of it")
    made = factor(torch.cat(columns, 1), Cut(rank=1), 0.0)
    held = math.sqrt(max(0.0, 1.0 - (made.left_out / made.norm) ** 2))
    note = f"common output direction of {folder.name}: it holds {held:.4f} of that edit's norm"
    return Named(folder.name, unit(made.b[:, 0].float()), note)
