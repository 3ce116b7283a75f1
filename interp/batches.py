"""Rows of a token batch in batches of like length, and a call for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from interp.backends.protocol import AnyEdit, Backend
from interp.interventions import Interventions
from interp.types import TokenBatch
from interp.watching import Progress

T = TypeVar("T")


def chunks(batch: TokenBatch, size: int, progress: Progress) -> Iterator[tuple[Tensor, TokenBatch]]:
    """Row numbers and tokens of at most ``size`` prompts at a time; prompts of like length share a batch."""
    for rows in batch.lengths.argsort(stable=True).split(size):
        yield rows, batch.chosen(rows)
        progress(len(rows))


def each(
    backend: Backend,
    batch: TokenBatch,
    edit: AnyEdit,
    call: Callable[[Tensor, TokenBatch], T],
    *,
    size: int,
    progress: Progress,
) -> list[tuple[Tensor, T]]:
    """Row numbers and results of ``call(rows, tokens)``, a batch at a time, with the edit in place.

    Raises SiteError for an edit that has values for other prompts (another number, or of other lengths).
    """
    by_row = edit if isinstance(edit, Interventions) else None
    if by_row is not None:
        by_row.check_prompts(batch)
    found = []
    with backend.editing(None if by_row else edit):
        for rows, chunk in chunks(batch, size, progress):
            with backend.editing(by_row.rows(rows) if by_row else None):
                found.append((rows, call(rows, chunk)))
    return found


def repeated(batch: TokenBatch, edit: AnyEdit) -> tuple[TokenBatch, AnyEdit]:
    """The batch once for every strength of the edit, and the edit with one strength per row."""
    if not isinstance(edit, Interventions):
        return batch, edit
    edit.check_prompts(batch)
    rows = torch.arange(edit.strengths * len(batch)) % len(batch)
    return batch.chosen(rows), edit.expanded(len(batch))
