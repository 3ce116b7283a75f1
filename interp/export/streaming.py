"""Apply a delta to a safetensors checkpoint, file by file and rows by rows, without building a model.

Unedited bytes are copied by the kernel; of an edited tensor at most ``CHUNK`` bytes are in memory at
once. Each sum is formed in fp32 and rounded once to the stored dtype, as :func:`interp.edits.apply_`
does in memory, so that both give the same bits.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import ExportError
from interp.models.checkpoint import Checkpoint, Stored
from interp.types import LowRank, Shift, Update

CHUNK = 1 << 20
"""Bytes of an edited tensor in memory at once; in fp32 they still fit a core's cache, which makes the
sums several times faster than larger pieces."""
COPY = 8 << 20
SUMMED = ("F64", "F32", "F16", "BF16")
"""Dtypes to whose tensors something can be added; the others are parts of a quantisation."""

Advance = Callable[[int], None]


class Leak:
    """How far rounding moved an edited matrix along the edit's own output directions U.

    ``‖Uᵀ(Ŵ − (W + ΔW))‖ / ‖UᵀW‖`` with Ŵ as stored: for an ablation, the share of the removed
    component that is back. About 0.006 in bf16 and 1e-8 in fp32.
    """

    def __init__(self) -> None:
        self._left = self._whole = 0.0
        self._parts: list[Tensor] = []

    def add(self, error: Tensor, weight: Tensor, *, whole: bool) -> None:
        """``Uᵀ error`` and ``Uᵀ W`` of some rows; ``whole`` when their sum over rows is complete."""
        parts = self._parts or [torch.zeros_like(error), torch.zeros_like(weight)]
        self._parts = [part + new for part, new in zip(parts, (error, weight), strict=True)]
        if whole:
            self._left += self._parts[0].double().square().sum().item()
            self._whole += self._parts[1].double().square().sum().item()
            self._parts = []

    @property
    def share(self) -> float:
        return (self._left / self._whole) ** 0.5 if self._whole else 0.0


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a streamed merge did: bytes written, and the leak of each edited tensor."""

    size: int
    leaks: Mapping[str, float] = field(default_factory=dict)


def stream(
    source: Checkpoint,
    out: Path,
    patches: Mapping[str, Update],
    copies: Mapping[str, str],
    advance: Advance = lambda done: None,
) -> Streamed:
    """Write every file of ``source`` into the directory ``out`` with ``patches`` added.

    patches: saved tensor → its update. copies: new tensor → the saved one whose unedited bytes it
    gets; they go to the end of the last file. advance: called with the bytes written.
    Raises ExportError for a quantised tensor or a shape that does not fit, before it writes.
    """
    for name, update in patches.items():
        _check(source, name, update)
    leaks: dict[str, float] = {}
    size = 0
    for file in source.files:
        extra = copies if file == source.files[-1] else {}
        target = out / file.name
        leaks |= _stream_file(source, file, target, patches, extra, advance)
        size += target.stat().st_size
    return Streamed(size, leaks)


def _check(source: Checkpoint, name: str, update: Update) -> None:
    stored = source.tensors[name]
    if stored.code not in SUMMED:
        raise ExportError(
            f"{name} in {source.folder} is quantised ({stored.code}); merge into the unquantised model"
        )
    shape = update.value.shape if isinstance(update, Shift) else update.stored_shape
    if tuple(shape) != stored.shape:
        raise ExportError(
            f"{name}: the delta is for shape {tuple(shape)}, {source.folder} has {stored.shape}; give "
            "the base it was made for"
        )


def _stream_file(
    source: Checkpoint,
    file: Path,
    target: Path,
    patches: Mapping[str, Update],
    copies: Mapping[str, str],
    advance: Advance,
) -> dict[str, float]:
    mine = [(s.offset, n) for n, s in source.tensors.items() if s.file == file and n in patches]
    leaks = {}
    with FileIO(file, "r") as src, FileIO(target, "w") as dst:
        start, end = _copy_header(src, dst, source, copies)
        for offset, name in sorted(mine):
            _copy(src, dst, start, offset - start, advance)
            stored = source.tensors[name]
            leaks[name] = _patch(source, name, patches[name], dst, advance)
            start = offset + stored.size
        _copy(src, dst, start, end - start, advance)
    with target.open("r+b", buffering=0) as dst:
        dst.seek(0, os.SEEK_END)
        for original in copies.values():
            stored = source.tensors[original]
            with FileIO(stored.file, "r") as src:
                _copy(src, dst, stored.offset, stored.size, advance)
    return leaks


def _copy_header(
    src: FileIO, dst: FileIO, source: Checkpoint, copies: Mapping[str, str]
) -> tuple[int, int]:
    """Write the header, with the new tensors after the old ones; where the data start and end."""
    (length,) = struct.unpack("<Q", src.read(8))
    raw = src.read(length)
    start, end = 8 + length, os.fstat(src.fileno()).st_size
    if copies:
        raw = _extended(raw, end - start, {n: source.tensors[o] for n, o in copies.items()})
    _write(dst, struct.pack("<Q", len(raw)) + raw)
    return start, end


def _extended(raw: bytes, size: int, new: Mapping[str, Stored]) -> bytes:
    header: dict[str, Any] = json.loads(raw)
    for name, stored in new.items():
        offsets = [size, size + stored.size]
        header[name] = {"dtype": stored.code, "shape": list(stored.shape), "data_offsets": offsets}
        size = offsets[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)  # the format wants its data aligned to 8 bytes


def _copy(src: FileIO, dst: Any, start: int, count: int, advance: Advance) -> None:
    """Bytes ``start … start + count`` of one file to the end of another, inside the kernel."""
    while count > 0:
        done = _copy_some(src, dst, start, min(count, COPY))
        if not done:
            raise OSError(f"{src.name!r} became shorter while it was read")
        start, count = start + done, count - done
        advance(done)


def _copy_some(src: FileIO, dst: Any, start: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(src.fileno(), dst.fileno(), count, start)
        except OSError:
            pass  # not on this file system: some cannot, some not between two of them
    src.seek(start)
    block = src.read(count) or b""
    _write(dst, block)
    return len(block)


def _write(dst: Any, data: Any) -> None:
    view = memoryview(data).cast("B")
    while len(view):  # an unbuffered write may take only a part
        view = view[dst.write(view) :]


def _patch(source: Checkpoint, name: str, update: Update, dst: FileIO, advance: Advance) -> float:
    """Write one edited tensor; its leak."""
    stored = source.tensors[name]
    if isinstance(update, Shift):
        moved = (source.read(name).float() + update.value).to(stored.dtype)
        _write(dst, _bytes(moved))
        advance(stored.size)
        return 0.0
    leak, within, factors = Leak(), stored.shape[-2], None
    for first, rows in source.lines(name, CHUNK, within=within):
        expert, start = divmod(first, within)
        stop = start + len(rows)
        if factors is None or start == 0:
            factors = Factors.of(update, expert)
        if start == first == 0:
            work, short = torch.empty(rows.shape), torch.empty_like(rows)
        exact, rounded = work[: len(rows)], short[: len(rows)]
        torch.mm(factors.left[start:stop], factors.right, out=exact)
        exact.add_(rows)
        rounded.copy_(exact)
        _write(dst, _bytes(rounded))
        advance(rounded.numel() * rounded.element_size())
        edited = factors.project(exact, start)
        weight = edited - factors.project_update(start, stop)
        error = factors.project(exact.sub_(rounded), start)
        leak.add(error, weight, whole=stop == within or not factors.rows_are_outputs)
    return leak.share


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """An update in the orientation in which its matrix is stored: ``left @ right``.

    basis: orthonormal ``[d_model, k]``, the output directions U; they run along the stored rows or
    along the columns.
    """

    left: Tensor
    right: Tensor
    basis: Tensor
    rows_are_outputs: bool

    @classmethod
    def of(cls, update: LowRank, expert: int) -> Factors:
        """The factors of one expert, or of a matrix that has none."""
        b = update.b[expert] if update.b.ndim == 3 else update.b
        a = update.a[expert] if update.a.ndim == 3 else update.a
        outputs = update.axes.endswith("out in")
        left, right = (b, a) if outputs else (a.T, b.T)
        return cls(left.contiguous(), right.contiguous(), _basis(b), outputs)

    def project(self, rows: Tensor, start: int) -> Tensor:
        """``Uᵀ`` of the stored rows from ``start``; to be summed over rows where those are outputs."""
        if self.rows_are_outputs:
            return self.basis[start : start + len(rows)].T @ rows
        return rows @ self.basis

    def project_update(self, start: int, stop: int) -> Tensor:
        """The same of the update's own rows."""
        left = self.left[start:stop]
        if self.rows_are_outputs:
            return (self.basis[start:stop].T @ left) @ self.right
        return left @ (self.right @ self.basis)


def _bytes(tensor: Tensor) -> Any:
    return tensor.view(torch.uint8).flatten().numpy()


def _basis(b: Tensor) -> Tensor:
    """Orthonormal columns that span those of ``b [d_model, k]``."""
    left, values, _ = torch.linalg.svd(b.double(), full_matrices=False)
    return left[:, values > 1e-6 * values.max()].float()


def weight_map(
    source: Checkpoint, copies: Mapping[str, str], index: Mapping[str, Any]
) -> dict[str, Any]:
    """The index file of the merged checkpoint: that of the base, and the new tensors."""
    sizes = [source.tensors[name].size for name in copies.values()]
    counts = [math.prod(source.tensors[name].shape) for name in copies.values()]
    metadata = dict(index.get("metadata", {}))
    for key, more in (("total_size", sum(sizes)), ("total_parameters", sum(counts))):
        if key in metadata:
            metadata[key] += more
    new = dict.fromkeys(copies, source.files[-1].name)
    return {**index, "metadata": metadata, "weight_map": {**index["weight_map"], **new}}
