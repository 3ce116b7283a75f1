"""Apply a delta to a safetensors checkpoint, file by file and rows by rows, without building a model.

Unedited bytes are copied by the kernel; of an edited tensor at most ``BLOCK`` bytes are in memory at
once. Each sum is formed in fp32 and rounded once to the stored dtype, as :func:`interp.edits.apply_`
does in memory, so that both give the same bits.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from interp.errors import ExportError
from interp.models.checkpoint import Checkpoint, Stored
from interp.types import LowRank, Shift, Update
from interp.watching import Progress, unheard

T = TypeVar("T")
CHUNK = 60 << 10
"""Bytes that are summed at once. So few numbers stay in a core's cache, also in fp32, and torch adds
them without waking other threads, of which one is busy copying."""
BLOCK = 64 << 20
"""Bytes of an edited tensor in memory at once: one read and one write of a file, which are the faster
the larger they are."""
COPY = 1 << 30
MEASURED = 256
"""Inputs of a wider matrix on which its leak is measured: the first so many, since rounding does not
know one from another. Measuring all would cost more than the sum."""
SUMMED = ("F64", "F32", "F16", "BF16")
"""Dtypes to whose tensors something can be added; the others are parts of a quantisation."""


class Leak:
    """How far rounding moved an edited matrix along the edit's own output directions U.

    ``‖Uᵀ(Ŵ − (W + ΔW))‖ / ‖UᵀW‖`` with Ŵ as stored: for an ablation, the share of the removed
    component that is back. About 0.006 in bf16 and 0 in fp32, in which the sum is formed. Of matrices
    with many inputs only some are measured (``MEASURED``).
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
    copies: Mapping[str, Stored],
    advance: Progress = unheard,
) -> Streamed:
    """Write every file of ``source`` into the directory ``out`` with ``patches`` added.

    patches: saved tensor → its update. copies: new tensor → where the bytes lie that it gets, in an unedited
    file; they go to the end of the last file. advance: called with the bytes written.
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
    copies: Mapping[str, Stored],
    advance: Progress,
) -> dict[str, float]:
    """Write one file: the kernel copies in one thread what stays, while another adds what changes."""
    stored = {n: s for n, s in source.tensors.items() if s.file == file}
    edited = sorted((n for n in stored if n in patches), key=lambda n: stored[n].offset)
    header, start = _header(file, copies)
    # The data follow each other as before; only where they start may have moved.
    moved = len(header) - start
    end = file.stat().st_size
    jobs = [Job(file, a, b - a, a + moved) for a, b in _between(start, end, stored, edited)]
    last = end + moved
    for there in copies.values():
        jobs.append(Job(there.file, there.offset, there.size, last))
        last += there.size
    with target.open("wb") as dst:
        dst.write(header)
        dst.truncate(last)

    def patch_all(advance: Progress) -> dict[str, float]:
        with FileIO(target, "r+") as dst:
            found = {}
            buffer = bytearray(min(BLOCK, max((stored[name].size for name in edited), default=0)))
            for name in edited:
                dst.seek(stored[name].offset + moved)
                found[name] = _patch(source, name, patches[name], buffer, dst, advance)
            return found

    return _beside(partial(_copy_all, target, jobs), patch_all, advance)


def _beside(
    copying: Callable[[Progress], None], adding: Callable[[Progress], T], advance: Progress
) -> T:
    """What ``adding`` returns, run beside ``copying`` in a thread each; one that fails stops the other."""
    stop = threading.Event()

    def tell(done: int) -> None:
        if stop.is_set():
            raise InterruptedError("the other half of the merge failed")
        advance(done)

    with ThreadPoolExecutor(2) as pool:
        copied, added = pool.submit(copying, tell), pool.submit(adding, tell)
        halves = (copied, added)
        try:
            wait(halves, return_when=FIRST_EXCEPTION)
        finally:  # also after a Ctrl-C, which only this thread sees
            if not all(half.done() and half.exception() is None for half in halves):
                stop.set()
    failed = [e for half in halves if (e := half.exception()) is not None]
    for error in sorted(failed, key=lambda e: isinstance(e, InterruptedError)):
        raise error
    return added.result()


def _header(file: Path, copies: Mapping[str, Stored]) -> tuple[bytes, int]:
    """The new file's bytes up to its data, and where the data of the old one start."""
    with FileIO(file, "r") as src:
        (length,) = struct.unpack("<Q", src.read(8))
        raw = src.read(length)
    size = file.stat().st_size - 8 - length
    if copies:
        raw = _extended(raw, size, copies)
    return struct.pack("<Q", len(raw)) + raw, 8 + length


def _between(
    start: int, end: int, stored: Mapping[str, Stored], edited: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """The stretches of a file's data that no edit touches."""
    for name in edited:
        yield start, stored[name].offset
        start = stored[name].offset + stored[name].size
    yield start, end


def _extended(raw: bytes, size: int, new: Mapping[str, Stored]) -> bytes:
    header: dict[str, Any] = json.loads(raw)
    for name, stored in new.items():
        offsets = [size, size + stored.size]
        header[name] = {"dtype": stored.code, "shape": list(stored.shape), "data_offsets": offsets}
        size = offsets[1]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)  # the format wants its data aligned to 8 bytes


@dataclass(frozen=True, slots=True)
class Job:
    """``count`` bytes of ``file`` from ``start``, to be written at ``to``."""

    file: Path
    start: int
    count: int
    to: int


def _copy_all(target: Path, jobs: Sequence[Job], advance: Progress) -> None:
    with FileIO(target, "r+") as dst:
        for job in jobs:
            dst.seek(job.to)
            with FileIO(job.file, "r") as src:
                _copy(src, dst, job.start, job.count, advance)


def _copy(src: FileIO, dst: FileIO, start: int, count: int, advance: Progress) -> None:
    while count > 0:
        done = _copy_some(src, dst, start, min(count, COPY))
        if not done:
            raise OSError(f"{src.name!r} became shorter while it was read")
        start, count = start + done, count - done
        advance(done)


def _copy_some(src: FileIO, dst: FileIO, start: int, count: int) -> int:
    if hasattr(os, "sendfile"):
        try:
            return os.sendfile(dst.fileno(), src.fileno(), start, count)
        except OSError:
            pass  # only Linux sends to files
    src.seek(start)
    block = src.read(min(count, CHUNK)) or b""
    _write(dst, block)
    return len(block)


def _write(dst: Any, data: Any) -> None:
    view = memoryview(data).cast("B")
    while len(view):  # an unbuffered write may take only a part
        view = view[dst.write(view) :]


def _patch(
    source: Checkpoint,
    name: str,
    update: Update,
    buffer: bytearray,
    dst: FileIO,
    advance: Progress,
) -> float:
    """Write one edited tensor; its leak."""
    stored = source.tensors[name]
    if isinstance(update, Shift):
        moved = (source.read(name).float() + update.value).to(stored.dtype)
        _write(dst, _bytes(moved))
        advance(stored.size)
        return 0.0
    leak, within = Leak(), stored.shape[-2]
    for first, block in source.lines(name, buffer, within=within):
        expert, start = divmod(first, within)
        if start == 0:
            factors = Factors.of(update, expert)
        stop = start + len(block)
        before = factors.seen(block, start)
        _add(block, factors, start)
        left = before + factors.seen_update(start, stop) - factors.seen(block, start)
        whole = stop == within or not factors.rows_are_outputs
        leak.add(*(factors.project(x, start, stop) for x in (left, before)), whole=whole)
        _write(dst, _bytes(block))
        advance(block.numel() * block.element_size())
    return leak.share


def _add(block: Tensor, factors: Factors, start: int) -> None:
    """Add an update to stored rows from ``start`` on, in place and in pieces."""
    most = max(1, CHUNK // (block.shape[-1] * block.element_size()))
    work = torch.empty(min(most, len(block)), block.shape[-1])
    for rows in block.split(most):
        stop = start + len(rows)
        exact = work[: len(rows)]
        torch.mm(factors.left[start:stop], factors.right, out=exact)
        rows.copy_(exact.add_(rows))
        start = stop


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

    def seen(self, rows: Tensor, start: int) -> Tensor:
        """The part of stored rows from ``start`` on that belongs to the inputs that are measured."""
        part = rows[:, :MEASURED] if self.rows_are_outputs else rows[: max(0, MEASURED - start)]
        return part.to(torch.float32, copy=True)

    def project(self, seen: Tensor, start: int, stop: int) -> Tensor:
        """``Uᵀ`` of stored rows; to be summed over rows where those are outputs."""
        return self.basis[start:stop].T @ seen if self.rows_are_outputs else seen @ self.basis

    def seen_update(self, start: int, stop: int) -> Tensor:
        """The update itself, there."""
        if self.rows_are_outputs:
            return self.left[start:stop] @ self.right[:, :MEASURED]
        return self.left[start : max(start, min(stop, MEASURED))] @ self.right


def _bytes(tensor: Tensor) -> Any:
    return tensor.view(torch.uint8).flatten().numpy()


def _basis(b: Tensor) -> Tensor:
    """Orthonormal columns that span those of ``b [d_model, k]``."""
    left, values, _ = torch.linalg.svd(b.double(), full_matrices=False)
    return left[:, values > 1e-6 * values.max()].float()


def weight_map(
    source: Checkpoint, copies: Mapping[str, Stored], index: Mapping[str, Any]
) -> dict[str, Any]:
    """The index file of the merged checkpoint: that of the base, and the new tensors."""
    sizes = [stored.size for stored in copies.values()]
    counts = [math.prod(stored.shape) for stored in copies.values()]
    metadata = dict(index.get("metadata", {}))
    for key, more in (("total_size", sum(sizes)), ("total_parameters", sum(counts))):
        if key in metadata:
            metadata[key] += more
    new = dict.fromkeys(copies, source.files[-1].name)
    return {**index, "metadata": metadata, "weight_map": {**index["weight_map"], **new}}
