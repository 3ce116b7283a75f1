"""How far an edit moves the model on prompts that it should leave alone.

First-token KL is ``KL(base ‖ edited)`` in nats at the decision position, averaged over prompts (the
definition of heretic's evaluator). k-token KL is the same divergence averaged over the k tokens of the
base model's own greedy continuation, teacher-forced, up to and including its end of text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.backends.generation import end_ids
from interp.backends.protocol import AnyEdit
from interp.data.tokens import Prompts
from interp.errors import PromptError
from interp.lm import LM
from interp.types import Ids, TokenBatch

CONTINUATION = 32
MOST_BYTES = 8 * 10**9
"""Of base log-probabilities that are kept in memory."""


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
class Reference:
    """Comply prompts with the base model's continuation, split into batches.

    kept[i]: base log-probabilities ``[batch, tokens, vocab]`` of batch i at the continuation's tokens.
    real[i]: 1 up to and including the end of text. (Batches differ in size, so no shape is shared.)
    """

    batches: tuple[TokenBatch, ...]
    kept: tuple[Tensor, ...]
    real: tuple[Tensor, ...]

    def first_ids(self, tokens: int) -> Ids | None:
        """The first ``tokens`` tokens of the continuations ``[n, tokens]``; None when they are shorter."""
        if any(kept.shape[1] < tokens for kept in self.kept):
            return None
        parts = [
            spoken.ids[:, -kept.shape[1] :][:, :tokens]
            for spoken, kept in zip(self.batches, self.kept, strict=True)
        ]
        return torch.cat(parts)


def _log_probs(lm: LM, spoken: TokenBatch, tokens: int) -> Tensor:
    """Log-probabilities of the last ``tokens`` tokens of ``spoken``, given what precedes each."""
    logits = lm.backend.logits(spoken, None, tuple(range(-tokens - 1, 0)))[:, :-1].float()
    return logits.sub_(logits.logsumexp(-1, keepdim=True))


def until_end(ids: Ids, ends: frozenset[int]) -> Int[Tensor, "batch tokens"]:
    """1 for every token up to and including the first end of text."""
    is_end = torch.zeros_like(ids, dtype=torch.bool)
    for end in ends:
        is_end |= ids == end
    return ((is_end.cumsum(1) - is_end.long()) == 0).long()


def end_tokens(lm: LM) -> frozenset[int]:
    """The ids that end a response, from the generation config or else the config."""
    return frozenset(end_ids(lm.hf))


def reference(lm: LM, comply: Prompts, *, tokens: int = CONTINUATION) -> Reference:
    """Generate with the base model and keep what it predicts along the way."""
    batch = lm.tokens(comply)
    vocab = getattr(lm.hf.config.get_text_config(), "vocab_size", 0)
    if (size := 4 * len(batch) * tokens * vocab) > MOST_BYTES:
        raise PromptError(
            f"{len(batch)} comply prompts need {size / 1e9:.0f} GB for what the base predicts; "
            f"use --limit {MOST_BYTES // (4 * tokens * vocab)}"
        )
    batches, kept, real = [], [], []
    ends = end_tokens(lm)
    progress = lm.watch("base continuations", len(batch))
    for chunk in batch.split(lm.batch_size):
        new = lm.backend.generate(chunk, tokens=tokens)
        spoken = chunk.extended(new)
        batches.append(spoken)
        kept.append(_log_probs(lm, spoken, tokens))
        real.append(until_end(new, ends))
        progress(len(chunk))
    return Reference(tuple(batches), tuple(kept), tuple(real))


@dataclass(frozen=True, slots=True)
class Divergence:
    """Mean KL in nats with standard errors over prompts.

    agreed: of every prompt, for how many first tokens of the base's continuation the edited model would
    have said the same, up to the base's end of text; all of them where it says all the same.
    """

    first: float
    first_se: float
    continuation: float
    continuation_se: float
    agreed: tuple[int, ...] = ()


def divergence(lm: LM, ref: Reference, edit: AnyEdit) -> Divergence:
    """First-token and per-token KL of an edit against the base on the reference continuations."""
    first, sums, counts, agreed = [], [], [], []
    progress = lm.watch("KL", sum(len(batch) for batch in ref.batches))
    with lm.editing(edit):
        for spoken, base, real in zip(ref.batches, ref.kept, ref.real, strict=True):
            edited = _log_probs(lm, spoken, base.shape[1])
            same = (edited.argmax(-1) == spoken.ids[:, -base.shape[1] :]) | (real == 0)
            agreed += same.long().cumprod(1).sum(1).tolist()
            kl = kl_nats(base, edited)
            first.append(kl[:, 0])
            sums.append((kl * real).sum(1))
            counts.append(real.sum(1))
            progress(len(spoken))
    one, total, n = torch.cat(first), torch.cat(sums), torch.cat(counts).double()
    mean = total.sum() / n.sum()
    # Ratio estimator: prompts are the sampling unit, tokens inside one are not independent.
    spread = (total - mean * n).std() / (n.mean() * len(n) ** 0.5) if len(n) > 1 else total[0] * 0
    means = (one.mean().item(), _standard_error(one), mean.item(), float(spread))
    return Divergence(*means, tuple(agreed))


def _standard_error(values: Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else 0.0
