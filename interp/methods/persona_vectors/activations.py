"""Mean activations of responses and prompts, at the embedding and the output of every block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.chat import pad_left
from interp.data.tokens import padding
from interp.errors import PromptError
from interp.lm import LM
from interp.methods.persona_vectors.rollouts import Context, Rollouts
from interp.methods.persona_vectors.vectors import REDUCTIONS
from interp.readings import span
from interp.types import TokenBatch
from interp.watching import unwatched

Means = Float[Tensor, "rows d_model"]


def conversations(lm: LM, rows: Rollouts, *, context: bool = True) -> TokenBatch:
    """Tokens of every conversation; prompt and response are tokenised apart and joined as ids.

    context: False leaves out system texts and demonstrations: responses are read as if nothing had asked for
    the trait, a control for what the context alone does to later positions.
    """
    places: dict[Context, list[int]] = {}
    for i, given in enumerate(rows.contexts):
        places.setdefault(given if context else Context(), []).append(i)
    ids: list[list[int]] = [[] for _ in range(len(rows))]
    counts = torch.zeros(len(rows), dtype=torch.long)
    for given, index in places.items():
        some = rows.chosen(index)
        batch = given.on(lm).tokens(some.prompts, some.responses)
        assert batch.response is not None
        counts[index] = batch.response.to(counts)
        for i, row, mask in zip(index, batch.ids, batch.mask, strict=True):
            ids[i] = row[mask.bool()].tolist()
    whole = pad_left(ids, padding(lm.tokenizer))
    return TokenBatch(whole.ids, whole.mask, counts)


def reduced(
    lm: LM, batch: TokenBatch, reductions: Sequence[str] = REDUCTIONS
) -> Iterator[tuple[Tensor, dict[str, Float[Tensor, "n rows d_model"]]]]:
    """Row numbers of a few conversations, and by reduction their means ``[n, n_blocks + 1, d_model]``.

    ``prompt_avg`` leaves out the first token, whose norm is many times that of others: its share of the mean
    depends on the length of the prompt alone. Raises PromptError for prompts of one token.
    """
    sites = (lm.embed, *lm.resid_post)
    progress = lm.watch("activations", len(batch))
    quiet = lm.using(watch=unwatched)
    for rows in batch.lengths.argsort(stable=True).split(lm.batch_size):
        chunk = batch.chosen(rows)
        weights = {name: _weights(chunk, name) for name in reductions}
        cache = quiet.activations(chunk, sites, at="all")
        yield (
            rows,
            {
                name: torch.stack(
                    [torch.einsum("npd,np->nd", cache[s].float(), w) for s in sites], 1
                )
                for name, w in weights.items()
            },
        )
        progress(len(rows))


def mean_activations(
    lm: LM, rows: Rollouts, reductions: Sequence[str] = REDUCTIONS
) -> dict[str, Means]:
    """By reduction, the mean over conversations ``[n_blocks + 1, d_model]``, summed in float64."""
    batch = conversations(lm, rows)
    sums: dict[str, Tensor] = {}
    for _, found in reduced(lm, batch, reductions):
        for name, value in found.items():
            total = value.double().sum(0)
            sums[name] = sums[name] + total if name in sums else total
    return {name: (value / len(batch)).float() for name, value in sums.items()}


def _weights(chunk: TokenBatch, reduction: str) -> Float[Tensor, "n position"]:
    """Weights of positions that sum to 1 in every row."""
    if reduction == "response_avg":
        chosen = span(chunk, "response")
    else:
        chosen = span(chunk, "prompt")
        counted = chosen.cumsum(1)
        last = counted == counted[:, -1:]
        chosen = chosen & (last if reduction == "prompt_last" else counted > 1)
    count = chosen.sum(1, keepdim=True)
    if not bool(count.all()):
        raise PromptError("a prompt of one token has no mean without its first token")
    return chosen.float() / count
