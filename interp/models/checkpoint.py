"""A safetensors checkpoint on disk, read tensor by tensor or row by row; the model is never built.

Offsets come from the files' own headers. Reads are plain ones into memory that was asked for; only a
few values far apart are taken through a memory map. A scaled float8 weight is read as its values, in
the dtype that the config gives (bfloat16 without one), as transformers loads it; :meth:`Checkpoint.lines`
alone gives the bytes of the file.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import ModelNotFound
from interp.models.quantised import Quantisation, Scale, quantisation

CONFIGS = ("hf_quant_config.json", "config.json")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
STACKS = ("language_model.model.", "model.language_model.", "model.")
HEADS = ("language_model.lm_head.", "lm_head.")
LARGEST_HEADER = 100 << 20  # the limit of safetensors itself


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor lies: ``size`` bytes at ``offset`` of ``file``, row-major."""

    file: Path
    code: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def dtype(self) -> torch.dtype | None:
        """None for a dtype that torch does not have."""
        return DTYPES.get(self.code)


def spellings(name: str) -> tuple[str, ...]:
    """Names that a tensor has in files of different age: as given; without the prefix of the base model;
    and in the text stack of a model that reads images, with the prefixes that versions of transformers
    have given it."""
    found = [name]
    for prefixes in (STACKS, HEADS):
        if start := next((p for p in prefixes if name.startswith(p)), None):
            found += [other + name.removeprefix(start) for other in prefixes]
    return tuple(dict.fromkeys((*found[:1], name.split(".", 1)[-1], *found[1:])))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a model directory by their names in the files.

    quantisation: how they are quantised, None for plain values. dtype: of dequantised values.
    """

    folder: Path
    tensors: Mapping[str, Stored]
    files: tuple[Path, ...]
    quantisation: Quantisation | None = None
    dtype: torch.dtype = torch.bfloat16

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Read the headers. Raises ModelNotFound for no, missing, damaged or contradicting files."""
        path = Path(folder)
        files = _files(path)
        tensors: dict[str, Stored] = {}
        for file in files:
            for name, stored in read_header(file).items():
                if name in tensors:
                    raise ModelNotFound(
                        f"{name} is in {tensors[name].file.name} and in {file.name} of {path}; "
                        "download the model again"
                    )
                tensors[name] = stored
        _check_index(path, tensors)
        config = read_config(path)
        return cls(path, tensors, files, quantisation(tensors, config), _value_dtype(config))

    def find(self, name: str) -> str | None:
        """A tensor's name in these files, one of :func:`spellings`; None where it is not."""
        return next((key for key in spellings(name) if key in self.tensors), None)

    @property
    def scales(self) -> Mapping[str, Scale]:
        """The scales of float8 weights by the weights' names."""
        return {} if self.quantisation is None else self.quantisation.scales

    def is_quantised(self, name: str) -> bool:
        """Whether the values of a weight cannot be read: packed, or absent under this name from files
        that are quantised."""
        if self.quantisation is None:
            return False
        key = self.find(name)
        return key is None or key in self.quantisation.opaque

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of the values that :meth:`read` gives. Raises ModelNotFound for quantised ones."""
        if name in self.scales:
            return self.dtype
        if self.quantisation is not None and name in self.quantisation.opaque:
            raise ModelNotFound(self.quantisation.explain(str(self.folder)))
        return self._dtype(self.tensors[name])

    def read(self, name: str) -> Tensor:
        """One whole tensor, on the CPU and in its own dtype."""
        stored = self.tensors[name]
        if not stored.shape:
            return self._at(stored, 0, stored.size).reshape(())
        return self.rows(name, 0, stored.shape[0])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Entries ``start:stop`` of the first axis."""
        dtype, stored = self.dtype_of(name), self.tensors[name]
        step = stored.size // max(1, stored.shape[0])
        found = self._at(stored, start * step, (stop - start) * step)
        found = found.reshape(stop - start, *stored.shape[1:])
        scale = self.scales.get(name)
        if scale is None:
            return found
        return (found.float() * scale.of_rows(self.read(scale.key), start, stop)).to(dtype)

    def strided(self, name: str, first: int, step: int) -> Tensor:
        """Values ``first``, ``first + step``, … of the flattened tensor; no other pages are read."""
        found = self._strided(name, first, step)
        scale = self.scales.get(name)
        if scale is None:
            return found
        places = torch.arange(first, math.prod(self.tensors[name].shape), step)
        return (found.float() * scale.at(self.read(scale.key), places)).to(self.dtype)

    def _strided(self, name: str, first: int, step: int) -> Tensor:
        stored = self.tensors[name]
        dtype = self._dtype(stored)
        mapped = np.memmap(
            stored.file,
            dtype=f"i{dtype.itemsize}",
            mode="r",
            offset=stored.offset,
            shape=(math.prod(stored.shape),),
        )
        return torch.from_numpy(np.array(mapped[first::step])).view(dtype)

    def lines(self, name: str, buffer: bytearray, *, within: int) -> Iterator[tuple[int, Tensor]]:
        """``(first line, lines [n, last axis])`` of a tensor flattened to two axes.

        The lines lie in ``buffer``, as many as it holds (one at least, in memory of its own), and
        the next piece overwrites them. No piece crosses a multiple of ``within`` lines, so that each
        belongs to one expert.
        """
        stored = self.tensors[name]
        dtype, count = self._dtype(stored), math.prod(stored.shape[:-1])
        step = stored.size // max(1, count)
        most = max(1, min(within, len(buffer) // max(1, step)))
        if len(buffer) < step:
            buffer = bytearray(step)
        with stored.file.open("rb", buffering=0) as handle:
            handle.seek(stored.offset)
            for outer in range(0, count, within):
                for start in range(outer, outer + within, most):
                    lines = min(most, outer + within - start)
                    part = memoryview(buffer)[: lines * step]
                    _fill(handle, part)
                    yield start, torch.frombuffer(part, dtype=dtype).reshape(lines, -1)

    def _at(self, stored: Stored, start: int, size: int) -> Tensor:
        dtype = self._dtype(stored)
        buffer = bytearray(size)
        with stored.file.open("rb", buffering=0) as handle:
            handle.seek(stored.offset + start)
            _fill(handle, memoryview(buffer))
        return torch.frombuffer(buffer, dtype=dtype) if size else torch.empty(0, dtype=dtype)

    def _dtype(self, stored: Stored) -> torch.dtype:
        if stored.dtype is None:
            raise ModelNotFound(
                f"{stored.file} holds {stored.code} tensors, which torch has no dtype for; "
                "give an unquantised model"
            )
        return stored.dtype


def _fill(handle: Any, view: memoryview) -> None:
    while len(view):  # an unbuffered read may give only a part
        count = handle.readinto(view)
        if not count:
            raise ModelNotFound(
                f"{handle.name} became shorter while it was read; download it again"
            )
        view = view[count:]


def read_header(file: Path) -> dict[str, Stored]:
    """Where each tensor of a safetensors file lies. Raises ModelNotFound for a damaged one."""
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        return _placed(file, header, 8 + length)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelNotFound(
            f"{file} is truncated or damaged ({error}); download it again"
        ) from None


def _placed(file: Path, header: Mapping[str, Any], start: int) -> dict[str, Stored]:
    found, last = {}, 0
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        shape = tuple(int(n) for n in entry["shape"])
        dtype = DTYPES.get(entry["dtype"])
        count = math.prod(shape)
        if not 0 <= first <= end or (dtype is not None and end - first != count * dtype.itemsize):
            raise ValueError(f"{name} has {end - first} bytes for shape {shape}")
        found[name] = Stored(file, entry["dtype"], shape, start + first, end - first)
        last = max(last, end)
    if file.stat().st_size != start + last:
        raise ValueError(f"{file.stat().st_size} bytes where its header says {start + last}")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """What a model directory says of itself; empty where it holds no readable config."""
    found: dict[str, Any] = {}
    for name in CONFIGS:
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        found |= value if isinstance(value, dict) else {}
    return found


def _value_dtype(config: Mapping[str, Any]) -> torch.dtype:
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    names = [str(part.get(key)) for part in parts for key in ("dtype", "torch_dtype")]
    found = (getattr(torch, name.removeprefix("torch."), None) for name in names)
    return next((dtype for dtype in found if isinstance(dtype, torch.dtype)), torch.bfloat16)


def _files(folder: Path) -> tuple[Path, ...]:
    """The files that hold the model: those that an index names, else the one without an index."""
    if (folder / INDEX).is_file():
        names = sorted(set(_weight_map(folder).values()))
        if bad := [n for n in names if Path(n).name != n]:
            raise ModelNotFound(f"{folder / INDEX} names {bad[0]!r} outside its directory")
        if missing := [n for n in names if not (folder / n).is_file()]:
            raise ModelNotFound(
                f"{folder} lacks {missing[0]} ({len(missing)} of {len(names)} files are missing); "
                "download the model again"
            )
        return tuple(folder / n for n in names)
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    raise ModelNotFound(
        f"{folder} has no {SINGLE} and no {INDEX}; save the model with save_pretrained first"
    )


def _weight_map(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise ValueError("its weight_map is no mapping of names")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotFound(f"{folder / INDEX} is no index ({error}); download it again") from None


def _check_index(folder: Path, tensors: Mapping[str, Stored]) -> None:
    if not (folder / INDEX).is_file():
        return
    named = _weight_map(folder)
    wrong = [n for n, f in named.items() if n not in tensors or tensors[n].file.name != f]
    if wrong:
        raise ModelNotFound(
            f"{folder / INDEX} places {wrong[0]} in {named[wrong[0]]}, which does not hold it; "
            "download the model again"
        )
