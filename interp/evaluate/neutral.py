"""NLL of neutral text: what an edit costs on prose that has nothing to do with refusing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.backends.limits import position_limit
from interp.backends.protocol import AnyEdit, Backend
from interp.data.chat import pad_left, text_ids
from interp.data.text import neutral_passages
from interp.fitting import BATCH
from interp.types import TokenBatch
from interp.watching import Progress

LONGEST = 128
ROWS = 8
"""Rows at a time: logits of every position are large, and small arrays stay in the cache."""


def neutral_batch(backend: Backend, passages: Sequence[str] | None = None) -> TokenBatch:
    """The shipped passages as plain text (no chat template), cut at 128 tokens or the model's limit."""
    texts = neutral_passages() if passages is None else passages
    longest = min(LONGEST, position_limit(backend.model, backend.anatomy) or LONGEST)
    rows = [text_ids(backend.tokenizer, t)[:longest] for t in texts]
    return pad_left(rows, backend.tokenizer.pad_token_id or 0)


def neutral_nll(
    backend: Backend,
    batch: TokenBatch,
    edit: AnyEdit = None,
    *,
    batch_size: int = BATCH,
    progress: Progress | None = None,
) -> float:
    """Mean negative log-likelihood per token in nats; the first token of a passage is not predicted."""
    nats, tokens = passage_nats(backend, batch, edit, batch_size=batch_size, progress=progress)
    return nats.sum().item() / int(tokens.sum())


def passage_nats(
    backend: Backend,
    batch: TokenBatch,
    edit: AnyEdit = None,
    *,
    batch_size: int = BATCH,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every passage in nats, and how many tokens it is of, ``[n]`` both: for
    intervals over passages, which edits share."""
    nats, tokens = [], []
    with backend.editing(edit):
        for chunk in batch.split(min(batch_size, ROWS)):
            logits = backend.logits(chunk, None, None)[:, :-1].float()
            target = chunk.ids[:, 1:].unsqueeze(-1)
            # Log-likelihood without a second array of vocabulary size.
            nll = (logits.logsumexp(-1) - logits.gather(-1, target).squeeze(-1)).double()
            # A token counts when it and its predecessor are real.
            real = chunk.mask[:, 1:] * chunk.mask[:, :-1]
            nats.append((nll * real).sum(-1).cpu())
            tokens.append(real.sum(-1).cpu())
            if progress:
                progress(len(chunk))
    return torch.cat(nats), torch.cat(tokens)
