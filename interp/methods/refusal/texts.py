"""Texts that an edit leaves alone: what the model writes, and prose by others.

Responses to answerable prompts are generated once and used twice, in their chats and as plain text without
a template. Each text is cut at a place of its own and read at its last tokens: by the closed form for the
second moment of the writers' inputs, by learning for the next-token distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from interp.backends.generation import end_ids
from interp.data.chat import pad_left, text_ids
from interp.data.prompts import PromptSet
from interp.data.text import fit_passages
from interp.evaluate.divergence import until_end
from interp.lm import LM
from interp.types import TokenBatch

RESPONSE_TOKENS = 32
"""Generated tokens of a response."""
LAST_TOKENS = 6
"""Last tokens at which a response is read."""
PASSAGE_TOKENS = 24
"""Last tokens at which a passage is read."""
PASSAGE_CUTS = 2
"""Places at which every passage is cut."""
LONGEST_PASSAGE = 128
"""Tokens of a passage that are used."""
GOLDEN = 0.5 * (math.sqrt(5) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Token batches, sorted by length; None where there is no text that is long enough.

    chats: responses in their chats. plain: the same responses without a template. Both are read at their
    last ``LAST_TOKENS``. passages: English prose that is shipped for fits, read at its last
    ``PASSAGE_TOKENS``.
    """

    chats: TokenBatch | None = None
    plain: TokenBatch | None = None
    passages: TokenBatch | None = None

    def joined(self, other: Texts) -> Texts:
        """The texts of both; passages, which are always the same, once."""
        both = (_joined(getattr(self, n), getattr(other, n)) for n in ("chats", "plain"))
        return Texts(*both, self.passages or other.passages)

    def __iter__(self) -> Iterator[tuple[TokenBatch, int]]:
        """Every batch with the number of last tokens at which it is read."""
        tokens = (LAST_TOKENS, LAST_TOKENS, PASSAGE_TOKENS)
        for batch, last in zip((self.chats, self.plain, self.passages), tokens, strict=True):
            if batch is not None:
                yield batch, last


def written(lm: LM, prompts: PromptSet, tokens: int = RESPONSE_TOKENS) -> Texts:
    """Responses of the model to answerable prompts, and the shipped passages.

    Responses that are too short to be read are left out.
    """
    batch = lm.tokens(prompts)
    responses = lm.generate(batch, tokens=tokens)
    real = until_end(responses.ids, end_ids(lm.hf))
    spoken = zip(batch.ids, batch.mask.bool(), responses.ids, real.bool(), strict=True)
    chats = [
        (torch.cat([ids[mask], new[keep]]).tolist(), int(mask.sum()))
        for ids, mask, new, keep in spoken
    ]
    plain = [(text_ids(lm.tokenizer, text), 1) for text in responses.texts]
    passages = [text_ids(lm.tokenizer, text)[:LONGEST_PASSAGE] for text in fit_passages()]
    pieces = [(ids, 1) for ids in passages for _ in range(PASSAGE_CUTS)]
    pad = lm.tokenizer.pad_token_id or 0
    return Texts(
        cut(chats, LAST_TOKENS, pad), cut(plain, LAST_TOKENS, pad), cut(pieces, PASSAGE_TOKENS, pad)
    )


def cut(rows: Sequence[tuple[list[int], int]], last: int, pad: int) -> TokenBatch | None:
    """Token rows, each cut so that at least ``last`` tokens follow its first ``start``, sorted by length.

    rows: token ids and ``start`` of every text. Cuts follow the golden ratio, so that those of any few texts
    are spread over their lengths. None where no text is long enough.
    """
    long = [(ids, start) for ids, start in rows if len(ids) >= start + last]
    found = []
    for number, (ids, start) in enumerate(long):
        places = len(ids) - start - last + 1
        found.append(ids[: start + last + int(number * GOLDEN % 1 * places)])
    return pad_left(found, pad).by_length() if found else None


def _joined(one: TokenBatch | None, other: TokenBatch | None) -> TokenBatch | None:
    if one is None or other is None:
        return one or other
    return one.followed_by(other).by_length()
