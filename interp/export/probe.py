"""The fixed batch on which exports are compared, and the logits that it must give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.backends.hooks import HooksBackend
from interp.backends.limits import vocabulary
from interp.errors import ExportError
from interp.export.tensors import first_line, read_tensors, write_tensors
from interp.types import Logits, TokenBatch

FILE = "verification/probe.safetensors"
"""In a folder of its own, out of sight of loaders that take every ``*.safetensors`` they see."""

PROMPTS = (
    "The capital of France is",
    "What time is it now?",
    "Once upon a time, in a small village,",
    "2 + 2 =",
)
ROWS, LENGTH = 4, 12
COLUMNS = 512
STRIDE = 7919  # a prime: the rows walk the whole vocabulary without repeating early


def probe_batch(backend: HooksBackend) -> TokenBatch:
    """Deterministic token ids and, where there is a tokenizer, a few plain prompts."""
    vocab = vocabulary(backend.anatomy)
    rows = [[(1 + STRIDE * (r * LENGTH + c)) % vocab for c in range(LENGTH)] for r in range(ROWS)]
    if backend.tokenizer is not None:
        texts = [list(backend.tokenizer(text)["input_ids"]) for text in PROMPTS]
        if all(text and max(text) < vocab for text in texts):
            rows += texts
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return TokenBatch(ids, mask)


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What an export must give at the last position: some columns, and logsumexp over all."""

    batch: TokenBatch
    columns: Int[Tensor, " columns"]
    logits: Float[Tensor, "batch columns"]
    logsumexp: Float[Tensor, " batch"]

    @classmethod
    def of(cls, batch: TokenBatch, logits: Logits) -> Probe:
        """From logits ``[batch, vocab]`` at the last position."""
        step = -(-logits.shape[-1] // COLUMNS)
        columns = torch.arange(0, logits.shape[-1], step)
        return cls(batch, columns, logits[:, columns], logits.logsumexp(-1))

    def difference(self, logits: Logits) -> float:
        """Largest absolute difference of ``logits [batch, vocab]``; infinite if they do not fit."""
        if logits.shape[0] != len(self.batch) or logits.shape[-1] <= int(self.columns[-1]):
            return float("inf")
        columns = distance(logits[:, self.columns], self.logits)
        return max(columns, distance(logits.logsumexp(-1), self.logsumexp))

    def save(self, folder: Path) -> None:
        path = folder / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            "ids": self.batch.ids,
            "mask": self.batch.mask,
            "columns": self.columns,
            "logits": self.logits,
            "logsumexp": self.logsumexp,
        }
        write_tensors(path, tensors)

    @classmethod
    def load(cls, folder: Path) -> Probe:
        """Raises ExportError for a missing or damaged file."""
        stored = read_tensors(folder / FILE, ExportError)
        try:
            batch = TokenBatch(stored["ids"], stored["mask"])
            return cls(batch, stored["columns"], stored["logits"], stored["logsumexp"])
        except (KeyError, ValueError, RuntimeError) as cause:
            raise ExportError(
                f"{folder / FILE} is no probe ({first_line(cause)}); export again"
            ) from None


def distance(left: Tensor, right: Tensor) -> float:
    """Largest absolute difference; infinite for other shapes or when either is not finite."""
    if left.shape != right.shape:
        return float("inf")
    value = (left.double() - right.double()).abs().max().item()
    return value if value == value else float("inf")
