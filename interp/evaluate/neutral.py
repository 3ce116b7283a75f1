"""NLL of neutral text: what an edit costs on prose that has nothing to do with refusing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.backends.limits import position_limit
from interp.backends.protocol import AnyEdit
from interp.data.chat import pad_left, text_ids
from interp.data.text import neutral_passages
from interp.lm import LM
from interp.types import TokenBatch

LONGEST = 128
ROWS = 8
"""Rows at a time: logits of every position are large, and small arrays stay in the cache."""


def neutral_batch(lm: LM, passages: Sequence[str] | None = None) -> TokenBatch:
    """The shipped passages as plain text (no chat template), cut at 128 tokens or the model's limit."""
    texts = neutral_passages() if passages is None else passages
    longest = min(LONGEST, position_limit(lm.hf, lm.anatomy) or LONGEST)
    rows = [text_ids(lm.tokenizer, t)[:longest] for t in texts]
    return pad_left(rows, lm.tokenizer.pad_token_id or 0)


def neutral_nll(lm: LM, batch: TokenBatch, edit: AnyEdit = None) -> float:
    """Mean negative log-likelihood per token in nats; the first token of a passage is not predicted."""
    nats, tokens = passage_nats(lm, batch, edit)
    return nats.sum().item() / int(tokens.sum())


def passage_nats(lm: LM, batch: TokenBatch, edit: AnyEdit = None) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of every passage in nats, and how many tokens it is of, ``[n]`` both: for
    intervals over passages, which edits share."""
    nats, tokens = [], []
    progress = lm.watch("neutral text", len(batch))
    with lm.editing(edit):
        for chunk in batch.split(min(lm.batch_size, ROWS)):
            logits = lm.backend.logits(chunk, None, None)[:, :-1].float()
            target = chunk.ids[:, 1:].unsqueeze(-1)
            # Log-likelihood without a second array of vocabulary size.
            nll = (logits.logsumexp(-1) - logits.gather(-1, target).squeeze(-1)).double()
            # A token counts when it and its predecessor are real.
            real = chunk.mask[:, 1:] * chunk.mask[:, :-1]
            nats.append((nll * real).sum(-1))
            tokens.append(real.sum(-1))
            progress(len(chunk))
    return torch.cat(nats), torch.cat(tokens)
