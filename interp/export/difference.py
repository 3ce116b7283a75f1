"""What lies between two checkpoints of one architecture, as a weight delta, read tensor by tensor.

Neither model is built with its weights: names and shapes come from the config, values from the files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.edits import FINGERPRINT_SAMPLES
from interp.errors import DeltaError
from interp.export.factors import Cut, Factored, effective_rank, factor, rounding_floor
from interp.export.sides import Pair, Part, Target, targets, unclaimed
from interp.maths import frobenius
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.checkpoint import Checkpoint
from interp.models.layout import pieces
from interp.models.loading import resolve
from interp.models.skeleton import skeleton
from interp.types import Coverage, LowRank, Shift, Update, WeightDelta
from interp.watching import Watch, counted, unwatched


def difference(
    base_dir: str | Path,
    other_dir: str | Path,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    trust_remote_code: bool = False,
    watch: Watch = unwatched,
) -> WeightDelta:
    """``other − base`` as a delta of ``base``; both are directories with safetensors (or ``smollm2``).

    Each matrix keeps the singular values that rounding of the coarser dtype cannot explain; with
    ``tolerance`` instead as few as leave out that share of its norm; with ``rank`` at most so many.
    What was cut is measured and stands in ``recipe["tensors"]`` by runtime name: ``norm``,
    ``relative`` (to ‖W‖), ``rank``, ``effective_rank``, ``left_out`` (share of the norm), ``exact``.
    ``recipe["rounding"]`` lists what differs by rounding only, ``recipe["not_held"]`` by name in the
    files what a delta has no update for (norm gains, convolutions, gate and up projections of fused
    experts, the rows of tokens that only one of the two has …) with its norm.

    Experts that are fused at run time are stacked and share the largest rank among them. Where both
    files tie the unembedding, the update of the embedding edits both, as it does in ``other``;
    where only ``base`` does, the delta is ``untied`` and the unembedding has an update of its own
    (none if it still is the base's embedding).

    Raises ModelNotFound for files that cannot be read, DeltaError for two architectures, for
    weights quantised in another way than scaled float8, and for two models that do not differ beyond
    rounding.
    """
    names = str(base_dir), str(other_dir)
    found = _Found(Cut(rank, tolerance))
    pair, model, anatomy = _opened(names, trust_remote_code)
    wanted = targets(pair, model, anatomy)
    for target in counted(watch, "difference", wanted):
        found.add(pair, target)
    for key, why in unclaimed(pair, anatomy, wanted):
        found.leave(pair, key, why)
    found.leave_rows(pair, [part for target in wanted for part in target.parts])
    return _delta(found, pair, anatomy)


def _opened(names: tuple[str, str], trusted: bool) -> tuple[Pair, nn.Module, Anatomy]:
    """The files of both models, and what both are; see :func:`difference` for errors."""
    (model, anatomy), (_, other) = (skeleton(name, trust_remote_code=trusted) for name in names)
    _check_same(names, anatomy, other)
    pair = Pair(*(Checkpoint.open(_folder(name)) for name in names))
    for name, side in zip(names, (pair.base, pair.other), strict=True):
        if side.quantisation is not None and side.quantisation.opaque:
            raise DeltaError(side.quantisation.explain(name))
    return pair, model, anatomy


def _folder(name: str) -> str:
    """Where a model lies. Raises DeltaError for a hub id that was not downloaded to a directory."""
    folder = resolve(name)
    if not Path(folder).is_dir():
        raise DeltaError(
            f"{name} is no directory; download it with: hf download {name} --local-dir DIR"
        )
    return folder


def _check_same(names: tuple[str, str], base: Anatomy, other: Anatomy) -> None:
    mine, theirs = (_shapes(a) for a in (base, other))
    if base.model_type == other.model_type and mine == theirs:
        return
    what = f"{base.model_type} and {other.model_type}"
    if base.model_type == other.model_type:
        name = next(n for n in (*mine, *theirs) if mine.get(n) != theirs.get(n))
        shapes = ({w.weight: w.shape for w in a.writers}.get(name) for a in (base, other))
        what = "{} has shape {} and {}".format(name, *shapes)
    raise DeltaError(
        f"{names[0]} and {names[1]} are different architectures ({what}); a difference needs two "
        "checkpoints of one"
    )


def _shapes(anatomy: Anatomy) -> dict[str, tuple[int, ...]]:
    """Shapes of the writers by name, embeddings without their number of tokens."""
    return {w.weight: w.shape[w.kind == "embedding" :] for w in anatomy.writers}


@dataclass(frozen=True, slots=True)
class _Found:
    """What the comparison has met so far."""

    cut: Cut
    updates: dict[str, Update] = field(default_factory=dict)
    saved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tensors: dict[str, dict[str, Any]] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)
    not_held: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, pair: Pair, target: Target) -> None:
        if target.axes is None:
            self._add_shift(pair, target)
        else:
            self._add_weight(pair, target)

    def _add_shift(self, pair: Pair, target: Target) -> None:
        (part,) = target.parts
        before, change = _read(pair, part)
        if bool(change.any()):
            norm = frobenius(change)
            self.updates[target.name] = Shift(change)
            self.saved[target.name] = target.saved
            self.tensors[target.name] = {
                "norm": norm,
                "relative": _share(norm, before),
                "rank": 0,
                "effective_rank": 0.0,
                "left_out": 0.0,
                "exact": True,
            }

    def _add_weight(self, pair: Pair, target: Target) -> None:
        squares, made = 0.0, []
        for part in target.parts:
            before, change = _read(pair, part)
            weight = frobenius(before)
            squares += weight**2
            floor = 0.0
            if bool(change.any()):
                floor = rounding_floor(before + change, pair.eps(part))
            made.append(factor(change, self.cut, floor))
        norm = math.sqrt(sum(m.norm**2 for m in made))
        if norm == 0.0:
            return
        if not any(m.rank for m in made):
            self.rounding[target.name] = norm
            return
        self.updates[target.name] = _stacked(made, target)
        self.saved[target.name] = target.saved
        left = math.sqrt(sum(m.left_out**2 for m in made))
        self.tensors[target.name] = {
            "norm": norm,
            "relative": norm / math.sqrt(squares) if squares else None,
            "rank": max(m.rank for m in made),
            "effective_rank": max(effective_rank(m.values) for m in made),
            "left_out": left / norm,
            "exact": all(m.exact for m in made),
        }

    def leave_rows(self, pair: Pair, parts: Sequence[Part]) -> None:
        """Note tokens that only one of the two vocabularies has."""
        for part in parts:
            self._leave_rows(pair, part)

    def _leave_rows(self, pair: Pair, part: Part) -> None:
        mine, theirs = (
            side.tensors[key].shape if key is not None else ()
            for side, key in ((pair.base, part.base), (pair.other, part.other))
        )
        if part.expert is not None or mine == theirs or not (mine and theirs):
            return
        first, last = sorted((mine[0], theirs[0]))
        side, key = (pair.other, part.other) if theirs[0] == last else (pair.base, part.base)
        rows = side.rows(key, first, last)  # type: ignore[arg-type]
        which = "the other" if side is pair.other else "the base"
        self.not_held[f"{key}[{first}:{last}]"] = {
            "norm": frobenius(rows.float()),
            "relative": None,
            "why": f"rows {first} to {last - 1} are tokens that only {which} has",
        }

    def leave(self, pair: Pair, key: str, why: str) -> None:
        """Note a tensor that is not compared as an update, if it changed."""
        norm, before = pair.change(key)
        if norm is None or norm > 0.0:
            relative = norm / before if norm is not None and before else None
            self.not_held[key] = {"norm": norm, "relative": relative, "why": why}


def _onto(before: Tensor, other: Tensor) -> Tensor:
    """``other`` for the tokens of both, ``before`` for those that only the base has."""
    found = before.clone()
    shared = tuple(slice(0, min(sizes)) for sizes in zip(before.shape, other.shape, strict=True))
    found[shared] = other[shared]
    return found


def _read(pair: Pair, part: Part) -> tuple[Tensor, Tensor]:
    """A part of the base and its change, both fp32 and canonical; an absent side counts as zero."""
    base, other = pair.read(part)
    before = torch.zeros_like(other).float() if base is None else base.float()  # type: ignore[arg-type]
    after = other.float() if other is not None else torch.zeros_like(before)
    if after.shape != before.shape:
        after = _onto(before, after)
    change = after - before
    if not bool(change.isfinite().all()):
        side, key = (
            (pair.base, part.base) if not before.isfinite().all() else (pair.other, part.other)
        )
        raise DeltaError(
            f"{key} of {side.folder} holds NaN or infinity; download or train it again"
        )
    return before, change


def _share(norm: float, before: Tensor) -> float | None:
    whole = frobenius(before)
    return norm / whole if whole else None


def _stacked(made: list[Factored], target: Target) -> LowRank:
    """One update; experts that need fewer ranks than the largest get zeros, which add nothing."""
    assert target.axes is not None
    if not target.axes.startswith("expert"):
        return LowRank(made[0].b.float(), made[0].a.float(), target.axes)
    rank = max(m.rank for m in made)
    pad = torch.nn.functional.pad
    b = torch.stack([pad(m.b.float(), (0, rank - m.rank)) for m in made])
    a = torch.stack([pad(m.a.float(), (0, 0, 0, rank - m.rank)) for m in made])
    return LowRank(b, a, target.axes)


def _delta(found: _Found, pair: Pair, anatomy: Anatomy) -> WeightDelta:
    names = {"base": pair.base.folder.name, "other": pair.other.folder.name}
    if not found.updates:
        raise DeltaError(
            f"{names['other']} does not differ from {names['base']} beyond rounding in anything that "
            f"a delta holds{_rest(found)}"
        )
    left = max(entry["left_out"] for entry in found.tensors.values())
    edited = tuple(w.weight for w in anatomy.writers if w.weight in found.updates)
    skipped = {
        w.weight: "differs by rounding only" if w.weight in found.rounding else "unchanged"
        for w in anatomy.writers
        if w.weight not in found.updates
    }
    skipped |= anatomy.unreached
    return WeightDelta(
        updates=found.updates,
        base=checkpoint_fingerprint(pair.base, anatomy),
        recipe={
            "method": "difference",
            **names,
            **asdict(found.cut),
            "tensors": found.tensors,
            "rounding": found.rounding,
            "not_held": found.not_held,
        },
        exactness=(
            f"the difference of two checkpoints; at most {left:.2g} of a matrix's change is left out"
        ),
        coverage=Coverage(edited, skipped),
        provenance={"model": names["base"]},
        checkpoint=found.saved,
        untied=pair.unties(anatomy),
    )


def _rest(found: _Found) -> str:
    """What did differ, for an error, and what to do."""
    text = ""
    if found.not_held:
        name, entry = next(iter(found.not_held.items()))
        text += f"; {len(found.not_held)} changes have no update, first {name} ({entry['why']})"
    if found.rounding:
        text += f"; {len(found.rounding)} matrices are within rounding: give tolerance=0 to keep that too"
    return text or "; give two different checkpoints"


def checkpoint_fingerprint(
    checkpoint: Checkpoint, anatomy: Anatomy, *, samples: int = FINGERPRINT_SAMPLES
) -> str:
    """:func:`interp.edits.fingerprint` of the model that these files hold, without building it.

    ``"unverified"`` where a writer cannot be read (quantised, but not as scaled float8). Raises
    ModelNotFound for a writer that the files lack or hold in another shape.
    """
    digest = hashlib.sha256(f"{anatomy.model_type}:{anatomy.d_model}:{anatomy.n_blocks}".encode())
    for writer in anatomy.writers:
        if any(checkpoint.is_quantised(name) for name in writer.checkpoint):
            return "unverified"
        step = max(1, math.prod(writer.shape) // samples)
        parts = [part.to(torch.bfloat16) for part in _strided(checkpoint, writer, step)]
        sample = torch.cat(parts).contiguous().view(torch.int16)
        digest.update(writer.weight.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _strided(checkpoint: Checkpoint, writer: BoundWriter, step: int) -> Iterator[Tensor]:
    """Every ``step``-th value of the flattened runtime parameter, in pieces."""
    start = 0
    for piece in pieces(checkpoint, writer):
        first = -start % step
        if piece.expert is not None and writer.axes == "expert in out":
            # Saved as a linear layer and stacked transposed: rows of the file are no rows in memory.
            yield checkpoint.read(piece.key).T.reshape(-1)[first::step]
        else:
            yield checkpoint.strided(piece.key, first, step)
        start += math.prod(checkpoint.tensors[piece.key].shape)
