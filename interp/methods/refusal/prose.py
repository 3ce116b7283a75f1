"""What the model writes of its own: text that an edit leaves alone, though no prompt shows it.

Responses to answerable prompts are written once and read twice: in their chats, where later tokens of a
response are disturbed, and as plain text without a template, where prose is. Only second moments are kept,
so any number of tokens takes ``8 · d_in²`` bytes a writer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.backends.hooks import writer_sites
from interp.backends.protocol import Backend
from interp.data.chat import ChatFormat, encode, pad_left
from interp.data.prompts import PromptSet
from interp.evaluate.divergence import end_tokens, until_end
from interp.fitting import BATCH
from interp.maths import rows_of
from interp.sites import Site
from interp.types import TokenBatch
from interp.watching import Watch, unwatched

WRITTEN = 32
"""Tokens of a response."""

Part = tuple[TokenBatch, Tensor]
"""Texts, and which of their tokens count (0 or 1, as wide as the texts)."""


def written(
    backend: Backend,
    prompts: PromptSet,
    *,
    chat: ChatFormat | None = None,
    tokens: int = WRITTEN,
    batch_size: int = BATCH,
    watch: Watch = unwatched,
) -> dict[str, Tensor]:
    """Inputs of every writer over responses to ``prompts``: rows with their second moment, ``[d_in, d_in]``.

    Half the moment is that over response tokens in their chats, half that over the same text without a
    template; every token counts alike within each half. The first token of a plain text is left out: it
    gathers attention and its inputs are unlike any other's.
    """
    batch = encode(backend.tokenizer, prompts.prompts, chat).by_length()
    ends = end_tokens(backend)
    progress = watch("fit: responses as prose", 3 * len(batch))
    chats: list[Part] = []
    texts: list[str] = []
    for chunk in batch.split(batch_size):
        new = backend.generate(chunk, tokens=tokens).cpu()
        real = until_end(new, ends)
        chats.append((chunk.extended(new), torch.cat([torch.zeros_like(chunk.ids), real], 1)))
        texts += [
            backend.tokenizer.decode(row[kept.bool()], skip_special_tokens=True)
            for row, kept in zip(new, real, strict=True)
        ]
        progress(len(chunk))
    moments: dict[str, Tensor] = {}
    for parts in (chats, _plain(backend, texts, batch_size)):
        count = sum(int(counted.sum()) for _, counted in parts)
        for part in parts:
            _add(backend, part, moments, 0.5 / max(count, 1))
            progress(len(part[0]))
    return {name: rows_of(moment) for name, moment in moments.items()}


def _plain(backend: Backend, texts: Sequence[str], batch_size: int) -> list[Part]:
    """The texts without a template; those of fewer than two tokens have nothing to read."""
    rows = [row for text in texts if len(row := backend.tokenizer(text).input_ids) > 1]
    if not rows:
        return []
    batch = pad_left(sorted(rows, key=len), backend.tokenizer.pad_token_id or 0)
    parts = []
    for chunk in batch.split(batch_size):
        counted = chunk.mask.clone()
        counted[:, 1:] *= chunk.mask[:, :-1]
        counted[:, 0] = 0
        parts.append((chunk, counted))
    return parts


def _add(backend: Backend, part: Part, moments: dict[str, Tensor], weight: float) -> None:
    """Add ``weight · Σ aaᵀ`` over the tokens that count to each writer's moment (float64)."""
    batch, counted = part
    if not counted.any():
        return
    sites: list[Site] = writer_sites(backend.anatomy.block_writers)
    first = int(counted.any(0).nonzero()[0])  # what precedes is prompt or padding
    positions = tuple(range(first - counted.shape[1], 0))
    kept = counted[:, first:].bool()
    for site, inputs in backend.capture(batch, sites, positions).items():
        rows = inputs[kept.to(inputs.device)].float()
        moment = (weight * (rows.T @ rows)).double().cpu()
        if site.name in moments:
            moments[site.name] += moment
        else:
            moments[site.name] = moment
