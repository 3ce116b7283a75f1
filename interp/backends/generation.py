"""Greedy generation through transformers' own cached search, with nothing else switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from interp.backends.finite import FiniteScores
from interp.backends.prefix import Hoisted, prefix_cache
from interp.backends.steps import Steps
from interp.types import Ids, TokenBatch


def greedy(
    model: nn.Module, batch: TokenBatch | Hoisted, tokens: int, pad: int, steps: Steps
) -> Ids:
    """Greedy continuation ``[batch, tokens]``, filled with ``pad`` after the end of text."""
    cached = {"past_key_values": prefix_cache(model, batch)} if isinstance(batch, Hoisted) else {}
    with greedy_config(model, tokens, pad) as config:
        out = model.generate(  # type: ignore[operator]
            input_ids=batch.ids,
            attention_mask=batch.mask,
            generation_config=config,
            **step_arguments(batch.mask, steps),
            **cached,
        )
    return new_ids(out, batch, tokens, pad)


def step_arguments(mask: Tensor, steps: Steps) -> dict[str, Any]:
    """Arguments of transformers' ``generate`` for what happens at every step."""
    from transformers import LogitsProcessorList, StoppingCriteriaList

    given = {"logits_processor": LogitsProcessorList([FiniteScores(mask), *steps.processors])}
    if steps.criteria:
        given["stopping_criteria"] = StoppingCriteriaList(steps.criteria)
    return given


def new_ids(out: Tensor, batch: TokenBatch | Hoisted, tokens: int, pad: int) -> Ids:
    """The generated part of ``out [batch, seq + ≤tokens]``, padded to ``tokens`` columns."""
    new = out[:, batch.ids.shape[1] :].cpu()
    return nn.functional.pad(new, (0, tokens - new.shape[1]), value=pad)


def end_ids(model: Any) -> list[int]:
    """The ids that end a response, from the generation config or else the config."""
    own = getattr(model.generation_config, "eos_token_id", None)
    eos = own if own is not None else model.config.get_text_config().eos_token_id
    return eos if isinstance(eos, list) else [] if eos is None else [eos]


def padding_id(tokenizer: Any, model: Any, rows: int) -> int:
    """An id that an embedding of ``rows`` has: the tokenizer's padding, the model's, an end, or 0."""
    candidates = (
        getattr(tokenizer, "pad_token_id", None),
        getattr(model.generation_config, "pad_token_id", None),
        model.config.get_text_config().pad_token_id,
        *end_ids(model),
    )
    return next((i for i in candidates if i is not None and 0 <= i < rows), 0)


@contextmanager
def greedy_config(model: Any, tokens: int, pad: int) -> Iterator[Any]:
    """A generation config that is greedy and nothing else, in force while the context lasts.

    transformers fills what a config leaves open from the model's own one, which may hold repetition
    penalties or banned n-grams: so the model's own one steps aside.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=end_ids(model) or None,
        pad_token_id=pad,
    )
    model.generation_config = config
    try:
        yield config
    finally:
        model.generation_config = own
