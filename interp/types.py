"""Frozen records with checked shapes: directions, low-rank updates, weight deltas.

Orientation is canonical everywhere in memory: a writer is a matrix ``W [d_model, d_in]`` acting as
``y = W a + b``. ``axes`` says how the parameter is stored, and only :meth:`LowRank.stored` uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import DeltaError

Axes = Literal["out in", "in out", "expert out in", "expert in out"]
"""How a parameter is stored: Linear, Conv1D or Embedding, fused experts (two orientations)."""

Vector = Float[Tensor, "d_model"]
Acts = Float[Tensor, "n d"]
Residual = Float[Tensor, "*batch d_model"]
Weight = Float[Tensor, "*expert d_model d_in"]
Ids = Int[Tensor, "batch seq"]
Mask = Int[Tensor, "batch seq"]
Logits = Float[Tensor, "*batch vocab"]

UNIT_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """A unit vector of the residual stream and where it was read.

    vector: ``[d_model]``, norm 1 (ValueError otherwise); scale belongs to the edit, not to the direction.
    block: 0-based block whose output it was read from. norm: length of the raw class difference.
    """

    vector: Vector
    block: int
    source: str
    norm: float = 1.0

    def __post_init__(self) -> None:
        length = self.vector.double().norm().item()
        if not abs(length - 1.0) < UNIT_TOLERANCE:
            raise ValueError(
                f"a Direction needs norm 1, got {length:.4g}; use interp.maths.unit(vector)"
            )


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """``ΔW = b @ a`` in canonical orientation.

    b: ``[*expert, d_model, k]``, a: ``[*expert, k, d_in]``; the expert axis is there for fused experts only.
    """

    b: Float[Tensor, "*expert d_model k"]
    a: Float[Tensor, "*expert k d_in"]
    axes: Axes = "out in"

    def __post_init__(self) -> None:
        if self.b.shape[-1] != self.a.shape[-2] or self.b.shape[:-2] != self.a.shape[:-2]:
            raise ValueError(
                f"factors do not fit: b {tuple(self.b.shape)} and a {tuple(self.a.shape)}"
            )
        if self.axes.startswith("expert") != (self.b.ndim == 3):
            raise ValueError(f"axes {self.axes!r} but factors have {self.b.ndim} dimensions")

    @property
    def rank(self) -> int:
        return self.b.shape[-1]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the parameter that this updates."""
        lead, d_out, d_in = self.b.shape[:-2], self.b.shape[-2], self.a.shape[-1]
        return (*lead, d_out, d_in) if self.axes.endswith("out in") else (*lead, d_in, d_out)

    def dense(self) -> Tensor:
        """``b @ a`` in canonical orientation ``[*expert, d_model, d_in]``."""
        return self.b @ self.a

    def stored(self) -> Tensor:
        """``b @ a`` in the orientation in which the parameter is stored."""
        return self.dense() if self.axes.endswith("out in") else self.dense().transpose(-1, -2)

    def act(self, inputs: Tensor) -> Tensor:
        """``ΔW a`` for inputs ``[..., d_in]`` without forming ΔW (two-dimensional factors only)."""
        return (inputs @ self.a.T) @ self.b.T

    def trimmed(self) -> LowRank:
        """Without the zero ranks at the end, which some formats pad with; own memory."""
        in_b = (self.b != 0).flatten(0, -2).any(0)
        in_a = (self.a != 0).transpose(0, -2).flatten(1).any(1)
        used = (in_b | in_a).nonzero()
        rank = int(used.max()) + 1 if len(used) else 1
        return replace(self, b=self.b[..., :rank].clone(), a=self.a[..., :rank, :].clone())

    def scaled(self, factor: float) -> LowRank:
        return replace(self, b=self.b * factor)

    def plus(self, other: LowRank) -> LowRank:
        """The sum of two updates of one parameter; ranks add."""
        if self.axes != other.axes:
            raise DeltaError(f"cannot add updates with axes {self.axes!r} and {other.axes!r}")
        return LowRank(
            torch.cat([self.b, other.b], -1), torch.cat([self.a, other.a], -2), self.axes
        )


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """An additive update of a bias: ``value [*expert, d_model]``; a missing bias counts as zero."""

    value: Float[Tensor, "*expert d_model"]

    def scaled(self, factor: float) -> Shift:
        return Shift(self.value * factor)

    def plus(self, other: Shift) -> Shift:
        return Shift(self.value + other.value)


Update = LowRank | Shift


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which writers an edit reached. ``skipped`` maps a writer's weight name to the reason."""

    edited: tuple[str, ...]
    skipped: Mapping[str, str]

    @property
    def total(self) -> int:
        return len(self.edited) + len(self.skipped)

    def merged(self, other: Coverage) -> Coverage:
        edited = tuple(dict.fromkeys((*self.edited, *other.edited)))
        skipped = {k: v for k, v in {**self.skipped, **other.skipped}.items() if k not in edited}
        return Coverage(edited, skipped)


def _both(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance of a sum: prompts that either has seen, everything else from the first."""
    seen = {*mine.get("seen_prompts", ()), *theirs.get("seen_prompts", ())}
    hashes = {**theirs.get("prompts_sha256", {}), **mine.get("prompts_sha256", {})}
    extra = {"seen_prompts": sorted(seen), "prompts_sha256": hashes} if seen or hashes else {}
    return {**theirs, **mine, **extra}


@dataclass(frozen=True, slots=True, eq=False)
class WeightDelta:
    """An edit as a difference of weights; the base model is never part of it.

    updates: runtime parameter name → :class:`LowRank` (a weight) or :class:`Shift` (a bias).
    base: content fingerprint of the model it was made for (see ``interp.edits.fingerprint``).
    recipe: what was done, in plain JSON values. exactness: in one sentence, what the weight form equals.
    checkpoint: runtime name → names under which the tensor is saved (several for fused experts).
    untied: the edit reaches a tied embedding, so the unembedding is cloned before it is applied.
    exported_by: called by :meth:`export` with the delta, the directory, the format and the options; None for
    a delta that does not know its model.
    """

    updates: Mapping[str, Update]
    base: str
    recipe: Mapping[str, Any]
    exactness: str
    coverage: Coverage
    provenance: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    untied: bool = False
    exported_by: Callable[[WeightDelta, Path | str, str, dict[str, Any]], Any] | None = field(
        default=None, repr=False
    )

    def __post_init__(self) -> None:
        if not self.updates:
            raise DeltaError(
                "this edit matched no matrix; name blocks and writers that `interp inspect MODEL` lists"
            )
        object.__setattr__(self, "updates", MappingProxyType(dict(self.updates)))

    def __iter__(self) -> Iterator[tuple[str, Update]]:
        return iter(self.updates.items())

    def __len__(self) -> int:
        return len(self.updates)

    @property
    def rank(self) -> int:
        """Largest rank among the weight updates (0 when only biases change)."""
        return max((u.rank for u in self.updates.values() if isinstance(u, LowRank)), default=0)

    def norm(self) -> float:
        """Frobenius norm over all updates, from the factors (fp64)."""
        total = 0.0
        for update in self.updates.values():
            if isinstance(update, Shift):
                total += update.value.double().square().sum().item()
            else:
                b, a = update.b.double(), update.a.double()
                gram = (b.mT @ b) * (a @ a.mT)
                total += gram.sum().item()
        return max(total, 0.0) ** 0.5

    def scale(self, factor: float) -> WeightDelta:
        """The same edit times ``factor`` (exact: updates are linear)."""
        updates = {k: u.scaled(factor) for k, u in self.updates.items()}
        return replace(self, updates=updates, recipe={"scale": factor, "of": dict(self.recipe)})

    def export(self, out: Path | str, *, to: str = "delta", **options: Any) -> Any:
        """Receipt of the edit as files at ``out``, verified in a fresh process.

        to: a format of ``interp export``, such as ``peft`` or ``merged``. options: of
        :func:`interp.export.export`; ``base_name`` is a directory or hub id of the model, where it was opened
        under another name. An edit that is not proven is written as unproven, and ``receipt.missing`` says
        what is missing.

        Raises DeltaError for a delta that does not know its model, else as :func:`interp.export.export`.
        """
        if self.exported_by is None:
            raise DeltaError(
                "this delta does not know its model; make it with lm.to_delta, read it with "
                "interp.load_delta, or give the model to interp.export.export"
            )
        return self.exported_by(self, out, to, options)

    def compose(self, other: WeightDelta) -> WeightDelta:
        """The sum of two deltas of one base: ``W + Δ₁ + Δ₂`` (not one edit after the other)."""
        if self.base != other.base:
            raise DeltaError(
                f"these deltas were made for different bases ({self.base[:12]}, {other.base[:12]}); "
                "fit both on one model"
            )
        updates = dict(self.updates)
        for name, update in other.updates.items():
            mine = updates.get(name)
            updates[name] = update if mine is None else mine.plus(update)  # type: ignore[arg-type]
        return replace(
            self,
            updates=updates,
            recipe={"sum": [dict(self.recipe), dict(other.recipe)]},
            exactness="sum of updates: " + " + ".join((self.exactness, other.exactness)),
            coverage=self.coverage.merged(other.coverage),
            provenance=_both(self.provenance, other.provenance),
            checkpoint={**self.checkpoint, **other.checkpoint},
            untied=self.untied or other.untied,
            exported_by=self.exported_by or other.exported_by,
        )


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Left-padded token ids and their mask (1 on real tokens), both ``[batch, seq]``.

    response: for every row, how many of its last tokens are a response to the rest; None for none.
    """

    ids: Ids
    mask: Mask
    response: Int[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        if self.ids.shape != self.mask.shape:
            raise ValueError(
                f"ids {tuple(self.ids.shape)} and mask {tuple(self.mask.shape)} differ"
            )
        if not bool(self.mask[:, -1].all()):
            raise ValueError("batches are left-padded: the last position of every row must be real")

    @property
    def positions(self) -> Tensor:
        """Position ids that do not depend on padding, ``[batch, seq]``."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def rows(self, start: int, stop: int) -> TokenBatch:
        """Rows ``start:stop`` without the padding columns that none of them needs."""
        ids, mask = self.ids[start:stop], self.mask[start:stop]
        first = int(mask.any(0).int().argmax())
        response = None if self.response is None else self.response[start:stop]
        return TokenBatch(ids[:, first:], mask[:, first:], response)

    def chosen(self, rows: Tensor) -> TokenBatch:
        """The rows that a mask or an index names, without the padding columns that none of them needs."""
        response = None if self.response is None else self.response[rows]
        found = TokenBatch(self.ids[rows], self.mask[rows], response)
        return found.rows(0, len(found))

    def spread(self, most: int) -> Int[Tensor, " rows"]:
        """Places of at most so many rows, spread evenly over the batch, the shortest rows first: batches of
        like length hold little padding."""
        rows = torch.linspace(0, len(self) - 1, min(most, len(self)), dtype=torch.float64).long()
        return rows[self.lengths[rows].argsort(stable=True)]

    def by_length(self) -> TokenBatch:
        """The rows from the shortest to the longest, so that batches of them hold little padding."""
        return self.chosen(self.lengths.argsort(stable=True))

    @property
    def prompt_end(self) -> Int[Tensor, " batch"]:
        """Column after the last prompt token of every row."""
        width = torch.full((len(self),), self.ids.shape[1], device=self.ids.device)
        return width if self.response is None else width - self.response.to(width)

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Real tokens of every row."""
        return self.mask.sum(-1)

    def split(self, size: int) -> Iterator[TokenBatch]:
        for start in range(0, len(self), size):
            yield self.rows(start, start + size)

    def extended(self, ids: Ids) -> TokenBatch:
        """The batch followed by ``ids [batch, k]``, all of them real: tokens of the responses."""
        response = torch.full((len(self),), ids.shape[1])
        if self.response is not None:
            response = response + self.response.cpu()
        return TokenBatch(
            torch.cat([self.ids, ids], 1), torch.cat([self.mask, torch.ones_like(ids)], 1), response
        )

    def followed_by(self, other: TokenBatch) -> TokenBatch:
        """The rows of both batches as one, padded to the wider."""
        width = max(self.ids.shape[1], other.ids.shape[1])
        parts = [
            [torch.nn.functional.pad(t, (width - t.shape[1], 0)) for t in (b.ids, b.mask)]
            for b in (self, other)
        ]
        response = None
        if self.response is not None or other.response is not None:
            none = [torch.zeros(len(b), dtype=torch.long) for b in (self, other)]
            given = [b.response for b in (self, other)]
            response = torch.cat([n if r is None else r for n, r in zip(none, given, strict=True)])
        ids, mask = (torch.cat(pair) for pair in zip(*parts, strict=True))
        return TokenBatch(ids, mask, response)

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(self.ids.to(device), self.mask.to(device), self.response)
