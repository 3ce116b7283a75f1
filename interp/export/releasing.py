"""The memory of a model's weights, given back while a fresh process loads the same model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from interp.errors import ExportError

FILE = "weights.bin"


@contextmanager
def released(model: nn.Module, folder: Path, *, keep: bool = True) -> Iterator[None]:
    """The model without its weights in memory, until the context ends.

    keep: the weights wait in a file in ``folder`` and come back bit for bit; with False they are gone for
    good, and the model cannot run again.

    Raises ExportError where the disk has no room for the weights.
    """
    held = _groups(model)
    if keep:
        _check_room(folder, sum(group[0].nbytes for group in held))
        with (folder / FILE).open("wb") as file:
            for group in held:
                _bytes(group[0]).tofile(file)
    layouts = [(g[0].size(), g[0].stride(), g[0].dtype, g[0].device) for g in held]
    for group in held:
        _share(group, torch.empty(0, dtype=group[0].dtype, device=group[0].device))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        if keep:
            with (folder / FILE).open("rb") as file:
                for group, layout in zip(held, layouts, strict=True):
                    _share(group, _read(file, *layout))
            (folder / FILE).unlink()


def _groups(model: nn.Module) -> list[list[Tensor]]:
    """Parameters and buffers; those over the same memory, such as tied weights, in one list."""
    found: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_meta or not tensor.numel():
            continue  # offloaded: there is no memory to give back
        place = (tensor.data_ptr(), tensor.size(), tensor.stride(), tensor.dtype, tensor.device)
        found.setdefault(place, []).append(tensor)
    return list(found.values())


def _share(group: list[Tensor], value: Tensor) -> None:
    for tensor in group:
        tensor.data = value


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _read(
    file: BinaryIO,
    size: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    count = size.numel() * dtype.itemsize
    stored = torch.from_numpy(np.fromfile(file, np.uint8, count)).view(dtype).reshape(size)
    return torch.empty_strided(size, stride, dtype=dtype, device=device).copy_(stored)


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ExportError(
            f"the open model's weights ({size / 1e9:.1f} GB) wait on disk while a fresh process loads the "
            f"model, and {folder.parent} has {free / 1e9:.1f} GB free; free some, export to another disk, or "
            "export with keep_model=False if the model is not needed afterwards"
        )
