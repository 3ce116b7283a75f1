"""What lies between two checkpoints of one architecture, as a weight delta, read tensor by tensor.

Neither model is built with its weights: names and shapes come from the config, values from the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from interp.edits import FINGERPRINT_SAMPLES
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.checkpoint import Checkpoint
from interp.models.layout import pieces

CHUNK = 64 << 20
"""Bytes of one tensor that are held at a time where rows are enough."""


def checkpoint_fingerprint(checkpoint: Checkpoint, anatomy: Anatomy) -> str:
    """:func:`interp.edits.fingerprint` of the model that these files hold, without building it.

    ``"unverified"`` where a writer is quantised. Raises ModelNotFound for a writer that the files
    lack or hold in another shape.
    """
    digest = hashlib.sha256(f"{anatomy.model_type}:{anatomy.d_model}:{anatomy.n_blocks}".encode())
    for writer in anatomy.writers:
        if _quantised(checkpoint, writer):
            return "unverified"
        count = 1
        for n in writer.shape:
            count *= n
        step = max(1, count // FINGERPRINT_SAMPLES)
        parts = [part.to(torch.bfloat16) for part in _strided(checkpoint, writer, step)]
        sample = torch.cat(parts).contiguous().view(torch.int16)
        digest.update(writer.weight.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _quantised(checkpoint: Checkpoint, writer: BoundWriter) -> bool:
    found = (checkpoint.find(name) for name in writer.checkpoint)
    dtypes = [checkpoint.tensors[key].dtype for key in found if key is not None]
    return any(dtype is None or not dtype.is_floating_point for dtype in dtypes)


def _strided(checkpoint: Checkpoint, writer: BoundWriter, step: int) -> Iterator[Tensor]:
    """Every ``step``-th value of the flattened runtime parameter, in pieces."""
    start = 0
    for piece in pieces(checkpoint, writer):
        if piece.expert is not None and writer.axes == "expert in out":
            # Saved as a linear layer and stacked transposed: rows of the file are no rows in memory.
            parts = iter([checkpoint.read(piece.key).T])
        else:
            parts = (rows for _, rows in checkpoint.chunks(piece.key, CHUNK))
        for part in parts:
            flat = part.reshape(-1)
            yield flat[-start % step :: step]
            start += flat.numel()
