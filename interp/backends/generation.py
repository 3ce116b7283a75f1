"""Greedy generation through transformers' own cached search, with nothing else switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from interp.backends.prefix import Hoisted, prefix_cache
from interp.types import Ids, TokenBatch


def greedy(model: nn.Module, tokenizer: Any, batch: TokenBatch | Hoisted, tokens: int) -> Ids:
    """Greedy continuation ``[batch, tokens]``, padded after the end of text."""
    if tokens < 1:
        return batch.ids[:, :0].cpu()
    cached = {"past_key_values": prefix_cache(model, batch)} if isinstance(batch, Hoisted) else {}
    with greedy_config(model, tokenizer, tokens) as config:
        out = model.generate(  # type: ignore[operator]
            input_ids=batch.ids, attention_mask=batch.mask, generation_config=config, **cached
        )
    return new_ids(out, batch, tokens, config.pad_token_id)


def new_ids(out: Tensor, batch: TokenBatch | Hoisted, tokens: int, pad: int) -> Ids:
    """The generated part of ``out [batch, seq + ≤tokens]``, padded to ``tokens`` columns."""
    new = out[:, batch.ids.shape[1] :].cpu()
    return nn.functional.pad(new, (0, tokens - new.shape[1]), value=pad)


@contextmanager
def greedy_config(model: Any, tokenizer: Any, tokens: int) -> Iterator[Any]:
    """A generation config that is greedy and nothing else, in force while the context lasts.

    transformers fills what a config leaves open from the model's own one, which may hold repetition
    penalties or banned n-grams: so the model's own one steps aside.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    eos = own.eos_token_id if own.eos_token_id is not None else model.config.eos_token_id
    pads = (getattr(tokenizer, "pad_token_id", None), own.pad_token_id, model.config.pad_token_id)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=eos,
        pad_token_id=next((pad for pad in pads if pad is not None), 0),
    )
    model.generation_config = config
    try:
        yield config
    finally:
        model.generation_config = own
