"""How far an edit moves a model on prompts and texts where it should change nothing.

First-token KL is ``KL(base ‖ edited)`` in nats at the decision position, averaged over prompts (the
definition of heretic's evaluator). k-token KL is the same divergence averaged over the k tokens of the
base model's own greedy continuation, teacher-forced, up to and including its end of text. On neutral text
the negative log-likelihood is measured.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.backends.generation import end_ids
from interp.backends.limits import position_limit
from interp.backends.protocol import AnyEdit
from interp.data.chat import pad_left, text_ids
from interp.data.text import neutral_passages
from interp.data.tokens import Prompts
from interp.errors import PromptError
from interp.lm import LM
from interp.types import Ids, TokenBatch

CONTINUATION = 32
MOST_BYTES = 8 * 10**9
"""Of base log-probabilities that are kept in memory."""
LONGEST = 128
NEUTRAL_ROWS = 8
"""Rows at a time: logits of every position are large, and small arrays stay in the cache."""


def kl_nats(base: Float[Tensor, "*n vocab"], edited: Float[Tensor, "*n vocab"]) -> Tensor:
    """``KL(base ‖ edited)`` per row from log-probabilities, in nats, summed in float64."""
    if base.ndim > 2:
        # One prompt at a time: the products stay in the cache.
        return torch.stack([kl_nats(b, e) for b, e in zip(base, edited, strict=True)])
    return (base.exp() * (base - edited)).sum(-1, dtype=torch.float64)


def first_log_probs(lm: LM, prompts: Prompts, edit: AnyEdit = None) -> Float[Tensor, "n vocab"]:
    """Log-probabilities of the first response token of any number of prompts, in fp32."""
    return lm.logits(prompts, edit).float().log_softmax(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Continued:
    """Prompts with the base model's continuations.

    base: its log-probabilities at their tokens. real: 1 up to and including the end of text.
    """

    batch: TokenBatch
    base: Float[Tensor, "batch tokens vocab"]
    real: Int[Tensor, "batch tokens"]

    @property
    def ids(self) -> Ids:
        """The tokens of the continuation, ``[batch, tokens]``."""
        return self.batch.ids[:, -self.real.shape[1] :]


@dataclass(frozen=True, slots=True)
class Reference:
    """Prompts with the base model's continuations of so many tokens, in batches."""

    parts: tuple[Continued, ...]
    tokens: int

    def first_ids(self, tokens: int) -> Ids | None:
        """The first ``tokens`` tokens of the continuations ``[n, tokens]``; None when they are shorter."""
        if self.tokens < tokens:
            return None
        return torch.cat([part.ids[:, :tokens] for part in self.parts])


def _logits(lm: LM, batch: TokenBatch, tokens: int) -> Float[Tensor, "n tokens vocab"]:
    """Logits in fp32 at the positions that predict the last ``tokens`` tokens."""
    return lm.backend.logits(batch, None, tuple(range(-tokens - 1, 0)))[:, :-1].float()


def _log_probs(lm: LM, batch: TokenBatch, tokens: int) -> Float[Tensor, "n tokens vocab"]:
    """Log-probabilities at those positions."""
    logits = _logits(lm, batch, tokens)
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def token_nats(lm: LM, batch: TokenBatch, tokens: int) -> Float[Tensor, "n tokens"]:
    """Negative log-likelihood of the last ``tokens`` tokens in nats."""
    logits = _logits(lm, batch, tokens)
    # Without a second array of vocabulary size.
    target = batch.ids[:, -tokens:].unsqueeze(-1).to(logits.device)
    return (logits.logsumexp(-1) - logits.gather(-1, target).squeeze(-1)).cpu().double()


def until_end(ids: Ids, ends: Collection[int]) -> Int[Tensor, "batch tokens"]:
    """1 for every token up to and including the first of ``ends``, the ids that end a response."""
    is_end = torch.isin(ids, torch.tensor(list(ends), dtype=ids.dtype, device=ids.device))
    return ((is_end.cumsum(1) - is_end.long()) == 0).long()


def reference(lm: LM, prompts: Prompts, *, tokens: int = CONTINUATION) -> Reference:
    """Greedy continuations of the base model with its log-probabilities.

    Raises PromptError where these would take more than ``MOST_BYTES``.
    """
    batch = lm.tokens(prompts)
    vocab = getattr(lm.hf.config.get_text_config(), "vocab_size", 0)
    if (size := 4 * len(batch) * tokens * vocab) > MOST_BYTES:
        raise PromptError(
            f"{len(batch)} prompts need {size / 1e9:.0f} GB for what the base predicts; "
            f"use --limit {MOST_BYTES // (4 * tokens * vocab)}"
        )
    parts = []
    progress = lm.watch("base continuations", len(batch))
    for chunk in batch.split(lm.batch_size):
        new = lm.backend.generate(chunk, tokens=tokens)
        spoken = chunk.extended(new)
        real = until_end(new, end_ids(lm.hf))
        parts.append(Continued(spoken, _log_probs(lm, spoken, tokens), real))
        progress(len(chunk))
    return Reference(tuple(parts), tokens)


@dataclass(frozen=True, slots=True)
class Divergence:
    """Mean KL in nats with standard errors over prompts.

    agreed: for every prompt, the number of first tokens of the base's continuation that the edited model
    predicts as well; all of them if they agree up to the base's end of text.
    """

    first: float
    first_se: float
    continuation: float
    continuation_se: float
    agreed: tuple[int, ...] = ()


def divergence(lm: LM, ref: Reference, edit: AnyEdit) -> Divergence:
    """First-token and per-token KL of an edit against the base on the reference continuations."""
    first, sums, counts, agreed = [], [], [], []
    progress = lm.watch("KL", sum(len(part.batch) for part in ref.parts))
    with lm.editing(edit):
        for part in ref.parts:
            edited = _log_probs(lm, part.batch, ref.tokens)
            same = (edited.argmax(-1) == part.ids) | (part.real == 0)
            agreed += same.long().cumprod(1).sum(1).tolist()
            kl = kl_nats(part.base, edited)
            first.append(kl[:, 0])
            sums.append((kl * part.real).sum(1))
            counts.append(part.real.sum(1))
            progress(len(part.batch))
    one, (mean, error) = torch.cat(first), ratio(torch.cat(sums), torch.cat(counts))
    first_se = (one.std() / len(one) ** 0.5).item() if len(one) > 1 else 0.0
    return Divergence(one.mean().item(), first_se, mean, error or 0.0, tuple(agreed))


def ratio(totals: Float[Tensor, " n"], counts: Int[Tensor, " n"]) -> tuple[float, float | None]:
    """Mean per token of sums over tokens, and its standard error; None for fewer than two rows.

    Rows (prompts, responses) are the sampling unit: tokens inside one are not independent.
    """
    n = counts.double()
    mean = totals.sum() / n.sum()
    if len(n) < 2:
        return mean.item(), None
    return mean.item(), ((totals - mean * n).std() / (n.mean() * len(n) ** 0.5)).item()


# --- neutral text ------------------------------------------------------------------------------


def neutral_batch(lm: LM, passages: Sequence[str] | None = None) -> TokenBatch:
    """The shipped passages as plain text (no chat template), cut at 128 tokens or the model's limit."""
    texts = neutral_passages() if passages is None else passages
    longest = min(LONGEST, position_limit(lm.hf, lm.anatomy) or LONGEST)
    rows = [text_ids(lm.tokenizer, t)[:longest] for t in texts]
    return pad_left(rows, lm.tokenizer.pad_token_id or 0)


def passage_nats(
    lm: LM, batch: TokenBatch, edit: AnyEdit = None
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Negative log-likelihood of every passage in nats, and the number of tokens it is summed over.

    The first token of a passage is not predicted.
    """
    nats, tokens = [], []
    progress = lm.watch("neutral text", len(batch))
    with lm.editing(edit):
        for chunk in batch.split(min(lm.batch_size, NEUTRAL_ROWS)):
            # A token counts when it and its predecessor are real.
            real = chunk.mask[:, 1:] * chunk.mask[:, :-1]
            nats.append((token_nats(lm, chunk, real.shape[1]) * real).sum(-1))
            tokens.append(real.sum(-1))
            progress(len(chunk))
    return torch.cat(nats), torch.cat(tokens)
