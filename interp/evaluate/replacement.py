"""Measures of responses that replace others: likelihood, repetition, overlap with the prompt.

KL is about prompts on which nothing should change. The measures here are about prompts whose response the
judge flagged, as a refusal for instance, and flags no longer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.backends.generation import end_ids
from interp.evaluate.divergence import ratio, token_nats, until_end
from interp.lm import LM
from interp.types import Ids, TokenBatch

FIRST_LEFT_OUT = 4
"""Tokens at the start of a response without NLL: the base model would have begun otherwise there."""
LOOPING = 0.5
"""A response loops if less than this share of its token bigrams is distinct."""
FEWEST_BIGRAMS = 8
"""A shorter response is never counted as looping."""
SHORTEST_WORD = 3
"""Letters of a content word, at least."""
ROWS = 16
"""Responses scored at a time: their logits ``[rows, tokens, vocab]`` are large."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """Measures of responses that replace others.

    n: responses measured. nll, nll_se: base-model NLL of a response given its prompt, nats per token over
    all tokens but the first ``FIRST_LEFT_OUT``, and its standard error over responses. looping: share of
    responses that repeat themselves (:func:`is_looping`). overlap: mean share of a prompt's content words
    that its response names. None where nothing could be measured.
    """

    n: int
    nll: float | None
    nll_se: float | None
    looping: float | None
    overlap: float | None

    @property
    def cells(self) -> list[float | None]:
        """NLL in nats per token, looping and overlap in percent: what tables and figures show."""
        shares = (self.looping, self.overlap)
        return [self.nll, *(None if share is None else 100 * share for share in shares)]


def measured(
    lm: LM, prompts: Sequence[str], batch: TokenBatch, ids: Ids, rows: Sequence[int]
) -> Replacement:
    """Measures of the responses ``ids [n, tokens]`` to ``batch [n, seq]`` in the given rows.

    lm: with the unedited model, whose NLL is taken. prompts: text of every prompt.
    """
    if not rows:
        return Replacement(0, None, None, None, None)
    places = torch.tensor(rows)
    batch, ids = batch.chosen(places), ids[places]
    real = until_end(ids, end_ids(lm.hf))
    texts = lm.tokenizer.batch_decode(ids, skip_special_tokens=True)
    shares = [content_overlap(prompts[row], text) for row, text in zip(rows, texts, strict=True)]
    known = [share for share in shares if share is not None]
    loops = [is_looping(row[keep.bool()].tolist()) for row, keep in zip(ids, real, strict=True)]
    nats, tokens = response_nats(lm, batch, ids, real)
    some = tokens > 0
    nll, error = ratio(nats[some], tokens[some]) if some.any() else (None, None)
    overlap = sum(known) / len(known) if known else None
    return Replacement(len(rows), nll, error, sum(loops) / len(loops), overlap)


def response_nats(
    lm: LM, batch: TokenBatch, ids: Ids, real: Int[Tensor, "n tokens"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """NLL of every response in nats, and the number of tokens it is summed over.

    real: 1 for tokens of the response (0 after its end). The first ``FIRST_LEFT_OUT`` tokens are left out.
    """
    counted = real.clone()
    counted[:, :FIRST_LEFT_OUT] = 0
    parts = [token_nats(lm, part, ids.shape[1]) for part in batch.extended(ids).split(ROWS)]
    return (torch.cat(parts) * counted).sum(-1), counted.sum(-1)


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether less than ``LOOPING`` of the bigrams of a response are distinct."""
    bigrams = list(pairwise(tokens))
    if len(bigrams) < FEWEST_BIGRAMS:
        return False
    return len(set(bigrams)) < LOOPING * len(bigrams)


def content_overlap(prompt: str, response: str) -> float | None:
    """Share of the prompt's content words that occur in the response; None for a prompt without any.

    Content words: at least ``SHORTEST_WORD`` letters, not among scikit-learn's English stop words, compared
    in lower case.
    """
    wanted = _content_words(prompt)
    if not wanted:
        return None
    return len(wanted & _content_words(response)) / len(wanted)


def _content_words(text: str) -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = re.findall(r"[^\W\d_]+", text.lower())
    return frozenset(w for w in words if len(w) >= SHORTEST_WORD and w not in ENGLISH_STOP_WORDS)


def replaced(before: Sequence[bool], after: Sequence[bool]) -> list[int]:
    """Rows that were flagged and are no longer."""
    return [i for i, (was, now) in enumerate(zip(before, after, strict=True)) if was and not now]
