"""What the model writes of its own: text that an edit leaves alone, though no prompt shows it.

Responses to answerable prompts are written once and read twice: in their chats, where later tokens of a
response are disturbed, and as plain text without a template, where prose is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.backends.hooks import writer_sites
from interp.backends.protocol import Backend
from interp.data.chat import pad_left, text_ids
from interp.data.prompts import PromptSet
from interp.data.text import fit_passages
from interp.evaluate.divergence import end_tokens, until_end
from interp.evaluate.neutral import LONGEST
from interp.lm import LM
from interp.maths import rows_of
from interp.sites import Site
from interp.types import TokenBatch

WRITTEN = 32
"""Tokens of a response."""

SQUARE = 4096
"""Inputs of a writer up to which a second moment is kept, over any number of tokens (8 · d_in² bytes)."""
ROWS = 2048
"""Rows that are kept of a wider writer, at most, spread evenly over the tokens."""

CUT = 48
"""Responses that are kept to be read at their last tokens, at most."""
LAST = 6
"""Last tokens for which they are kept."""
PIECES = (2, 24)
"""Pieces of every passage of prose that others wrote, and their tokens."""
GOLDEN = 0.5 * (math.sqrt(5) - 1)

Part = tuple[TokenBatch, Tensor]
"""Texts, and which of their tokens count (0 or 1, as wide as the texts)."""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Some responses in their chats and some as plain text, and pieces of the prose that is shipped for fits;
    each ends at another place, with at least ``LAST`` tokens of its own (a piece: those of ``PIECES``). None
    where none is that long."""

    chats: TokenBatch | None = None
    texts: TokenBatch | None = None
    prose: TokenBatch | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prose:
    """What the model writes, for edits to leave alone.

    moments: rows of every writer's inputs with their second moment, ``{name: [n, d_in]}``.
    """

    moments: Mapping[str, Tensor]
    cut: Cut = field(default_factory=Cut)


def written(lm: LM, prompts: PromptSet, *, tokens: int = WRITTEN) -> Prose:
    """Responses to ``prompts``: their second moment at every writer, and places to read them at.

    Half the moment is that over response tokens in their chats, half that over the same text without a
    template (all the first where nothing is left to read as text); every token counts alike within each
    half. Special tokens do not count in plain text, nor does its first token: it gathers attention and its
    inputs are unlike any other's. Writers of at most ``SQUARE`` inputs have their moment whole, ``n = d_in``;
    wider ones (d_ff of large models, fused experts) that of ``ROWS`` tokens.
    """
    backend, watch, batch_size = lm.backend, lm.watch, lm.batch_size
    batch = lm.tokens(prompts).by_length()
    ends = end_tokens(lm)
    progress = watch("responses", len(batch))
    chats: list[Part] = []
    texts: list[str] = []
    rows: list[tuple[list[int], int]] = []
    for chunk in batch.split(batch_size):
        new = backend.generate(chunk, tokens=tokens).cpu()
        real = until_end(new, ends)
        chats.append((chunk.extended(new), torch.cat([torch.zeros_like(chunk.ids), real], 1)))
        for ids, mask, more, kept in zip(chunk.ids, chunk.mask, new, real, strict=True):
            prompt = ids[mask.bool()].tolist()
            rows.append((prompt + more[kept.bool()].tolist(), len(prompt)))
        texts += [
            backend.tokenizer.decode(row[kept.bool()], skip_special_tokens=True)
            for row, kept in zip(new, real, strict=True)
        ]
        progress(len(chunk))
    halves = [
        (half, count)
        for half in (chats, _plain(backend, texts, batch_size))
        if (count := sum(int(counted.sum()) for _, counted in half))
    ]
    gathered = _Gathered(every=math.ceil(sum(count for _, count in halves) / ROWS))
    progress = watch("responses as prose", sum(len(b) for half, _ in halves for b, _ in half))
    for half, count in halves:
        for part in half:
            gathered.add(backend, part, 1.0 / (len(halves) * count))
            progress(len(part[0]))
    pad = backend.tokenizer.pad_token_id or 0
    plain = [(text_ids(backend.tokenizer, text), 1) for text in texts]
    cut = Cut(_cut(rows, pad), _cut(plain, pad), _pieces(backend.tokenizer, pad))
    return Prose(gathered.rows(), cut)


def _cut(
    rows: Sequence[tuple[list[int], int]], pad: int, most: int = CUT, last: int = LAST
) -> TokenBatch | None:
    """At most so many of the rows, spread evenly over them, each cut after at least ``last`` tokens beyond
    its first so many. Places follow the golden section: any few of them are spread over the lengths."""
    long = [(ids, start) for ids, start in rows if len(ids) >= start + last]
    if not long:
        return None
    chosen = torch.linspace(0, len(long) - 1, min(most, len(long)), dtype=torch.float64).long()
    found = []
    for number, place in enumerate(chosen.tolist()):
        ids, start = long[place]
        ends = len(ids) - start - last + 1
        found.append(ids[: start + last + int(number * GOLDEN % 1 * ends)])
    return pad_left(found, pad).by_length()


def _pieces(tokenizer: Any, pad: int) -> TokenBatch | None:
    """Beginnings of the passages for fits, ``PIECES`` of each: people write otherwise than the model does."""
    times, last = PIECES
    passages = (text_ids(tokenizer, text)[:LONGEST] for text in fit_passages())
    rows = [(ids, 1) for ids in passages for _ in range(times)]
    return _cut(rows, pad, len(rows), last)


def _plain(backend: Backend, texts: Sequence[str], batch_size: int) -> list[Part]:
    """The texts without a template; those of fewer than two tokens have nothing to read."""
    rows = [row for text in texts if len(row := text_ids(backend.tokenizer, text)) > 1]
    if not rows:
        return []
    batch = pad_left(sorted(rows, key=len), backend.tokenizer.pad_token_id or 0)
    special = torch.tensor(sorted(backend.tokenizer.all_special_ids), dtype=torch.long)
    parts = []
    for chunk in batch.split(batch_size):
        counted = chunk.mask * ~torch.isin(chunk.ids, special)
        counted[:, 1:] *= chunk.mask[:, :-1]
        counted[:, 0] = 0
        parts.append((chunk, counted))
    return parts


@dataclass(slots=True)
class _Gathered:
    """Moments of narrow writers, rows of every so many tokens of wide ones; both weighted."""

    every: int
    moments: dict[str, Tensor] = field(default_factory=dict)
    sample: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, backend: Backend, part: Part, weight: float) -> None:
        """Add ``weight · aaᵀ`` for the tokens that count (float64)."""
        batch, counted = part
        if not counted.any():
            return
        sites: list[Site] = writer_sites(backend.anatomy.block_writers)
        first = int(counted.any(0).nonzero()[0])  # what precedes is prompt or padding
        positions = tuple(range(first - counted.shape[1], 0))
        kept = counted[:, first:].bool()
        for site, inputs in backend.capture(batch, sites, positions).items():
            rows = inputs[kept.to(inputs.device)].double().cpu()
            if rows.shape[-1] > SQUARE:
                taken = rows[:: self.every] * math.sqrt(weight * self.every)
                self.sample.setdefault(site.name, []).append(taken.float())
                continue
            if site.name not in self.moments:
                self.moments[site.name] = rows.new_zeros(rows.shape[-1], rows.shape[-1])
            # in place: no second array of its size
            self.moments[site.name].addmm_(rows.T, rows, alpha=weight)

    def rows(self) -> dict[str, Tensor]:
        """Rows whose mean of ``aaᵀ`` is what was added up. Empties the moments, which are large."""
        found = {}
        for name, parts in self.sample.items():
            rows = torch.cat(parts)
            found[name] = rows * math.sqrt(len(rows))
        while self.moments:
            name, moment = self.moments.popitem()
            found[name] = rows_of(moment)
        return found
