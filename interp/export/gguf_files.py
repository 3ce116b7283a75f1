"""GGUF files: a strict reader, one clear error for anything damaged, and a writer of fp32 tensors.

Layout as in ggml's ``docs/gguf.md``, versions 2 and 3, little-endian. The reader of the ``gguf``
package trusts the lengths that a file states (a damaged one may keep it busy for ever); here
every length is held against the file before it is used.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import ExportError
from interp.export.tensors import AGAIN, first_line

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_DIMENSIONS = 4
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Type number of a metadata value → its :mod:`struct` code; 8 is text and 9 a list."""
TEXT, LIST = 8, 9


class _Damaged(ValueError):
    """What is wrong inside a file; becomes an ExportError that names the file."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies. shape: as in numpy, slowest axis first (GGUF states the reverse)."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True, eq=False)
class Gguf:
    """An open GGUF file: its metadata by key, and its tensors on demand."""

    path: Path
    fields: Mapping[str, Any]
    stored: Mapping[str, _Stored]
    data: Any

    def text(self, key: str) -> str:
        """A text of the metadata, empty where there is none."""
        value = self.fields.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> float:
        """A number of the metadata, 0 where there is none. Raises ExportError for anything else."""
        value = self.fields.get(key, 0.0)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        raise ExportError(f"{self.path}: {key} is {value!r}, not a finite number; {AGAIN}")

    def kind(self, name: str) -> str:
        """How a tensor is stored: ``F32``, ``F16``, ``Q8_0`` …"""
        return self._quantisation(name).name

    def _quantisation(self, name: str) -> Any:
        from gguf import GGMLQuantizationType

        try:
            return GGMLQuantizationType(self.stored[name].kind)
        except ValueError:
            raise ExportError(
                f"{self.path}: {name} has type {self.stored[name].kind}, which this gguf package "
                "does not know; update it (pip install -U gguf)"
            ) from None

    def tensor(self, name: str) -> Tensor:
        """A tensor in fp32, dequantised where needed. Raises ExportError for a damaged one."""
        from gguf import dequantize
        from gguf.quants import quant_shape_to_byte_shape

        kind, stored = self._quantisation(name), self.stored[name]
        try:
            shape = quant_shape_to_byte_shape(stored.shape, kind)
            size = math.prod(shape)
            if stored.offset + size > len(self.data):
                raise _Damaged("it ends beyond the file")
            raw = np.frombuffer(self.data, np.uint8, size, stored.offset).reshape(shape)
            value = np.array(dequantize(raw, kind), dtype=np.float32).reshape(stored.shape)
        except (ValueError, TypeError, NotImplementedError, IndexError) as cause:
            raise ExportError(
                f"{self.path}: {name} cannot be read ({first_line(cause)}); {AGAIN}"
            ) from None
        if not bool(np.isfinite(value).all()):
            raise ExportError(f"{self.path}: {name} is not finite; {AGAIN}")
        return torch.from_numpy(value)


def open_gguf(path: Path) -> Gguf:
    """Open a GGUF file and read its header. Raises ExportError for a missing or damaged one."""
    try:
        with path.open("rb") as handle:
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as cause:  # ValueError: an empty file cannot be mapped
        if not path.is_file():
            raise ExportError(f"{path} is missing; {AGAIN}") from None
        raise ExportError(f"{path} cannot be read ({first_line(cause)}); {AGAIN}") from None
    try:
        fields, stored = _header(data)
    except (_Damaged, struct.error, RecursionError, UnicodeDecodeError) as cause:
        raise ExportError(
            f"{path} is no GGUF file, truncated or damaged ({first_line(cause)}); {AGAIN}"
        ) from None
    return Gguf(path, fields, stored, data)


class _Cursor:
    """A position in the file that never leaves it."""

    def __init__(self, data: Any) -> None:
        self.data, self.at = data, 0

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def many(self, code: str, count: int) -> list[Any]:
        self.room(count * struct.calcsize(f"<{code}"))
        values = struct.unpack_from(f"<{count}{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{count}{code}")
        return list(values)

    def text(self) -> str:
        size = self.take("Q")
        self.room(size)
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8")

    def room(self, size: int) -> None:
        if self.at + size > len(self.data):
            raise _Damaged(f"{size} bytes are announced at {self.at} of {len(self.data)}")


def _header(data: Any) -> tuple[dict[str, Any], dict[str, _Stored]]:
    cursor = _Cursor(data)
    if data[:4] != MAGIC:
        raise _Damaged("it does not begin with GGUF")
    cursor.at = 4
    version = cursor.take("I")
    if version not in VERSIONS:
        raise _Damaged(f"version {version}; {' and '.join(map(str, VERSIONS))} are read")
    n_tensors, n_fields = cursor.take("Q"), cursor.take("Q")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        key = cursor.text()
        if key in fields:
            raise _Damaged(f"{key} is there twice")
        fields[key] = _value(cursor, cursor.take("I"))
    found: dict[str, _Stored] = {}
    for _ in range(n_tensors):
        name = cursor.text()
        if name in found:
            raise _Damaged(f"{name} is there twice")
        found[name] = _stored(cursor, name)
    start = _aligned(cursor.at, fields.get("general.alignment", ALIGNMENT))
    return fields, {k: _Stored(s.shape, s.kind, start + s.offset) for k, s in found.items()}


def _stored(cursor: _Cursor, name: str) -> _Stored:
    dimensions = cursor.take("I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise _Damaged(f"{name} has {dimensions} dimensions")
    shape = tuple(reversed(cursor.many("Q", dimensions)))
    if not all(shape):
        raise _Damaged(f"{name} is empty")
    return _Stored(shape, cursor.take("I"), cursor.take("Q"))


def _aligned(at: int, alignment: Any) -> int:
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"general.alignment is {alignment!r}")
    return -(-at // alignment) * alignment


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind == TEXT:
        return cursor.text()
    if kind in SCALARS:
        return cursor.take(SCALARS[kind])
    if kind != LIST:
        raise _Damaged(f"a value of type {kind}")
    inner, count = cursor.take("I"), cursor.take("Q")
    if inner in SCALARS:
        return cursor.many(SCALARS[inner], count)
    return [_value(cursor, inner) for _ in range(count)]


def write_gguf(
    path: Path,
    architecture: str,
    fields: Mapping[str, str | float | int],
    tensors: Mapping[str, Tensor],
) -> None:
    """Write fp32 tensors with metadata (text, ``float`` as F32, ``int`` as U32).

    Raises ExportError for a tensor that is not finite.
    """
    from gguf import GGUFWriter

    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ExportError(f"{name} is not finite; fit the edit again in float32")
    writer = GGUFWriter(path, architecture)
    for key, value in fields.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value.detach().to("cpu", torch.float32).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
