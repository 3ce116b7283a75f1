"""Tokens of prompts and responses: texts, prompt sets or tokens in, one left-padded batch out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from interp.data.chat import ChatFormat, encode, pad_left, text_ids
from interp.data.prompts import PromptSet
from interp.errors import PromptError
from interp.types import TokenBatch

Prompts: TypeAlias = str | Sequence[str] | PromptSet | TokenBatch
"""One text, several, a prompt set, or tokens. Texts go through the chat template, unless ``chat`` is None."""


Tokens: TypeAlias = int | str | Sequence[int | str]
"""One token or several, each as id or text."""


def needed(tokenizer: Any) -> Any:
    """The tokenizer. PromptError for a model without one."""
    if tokenizer is None:
        raise PromptError("this model has no tokenizer; use token ids in and out (TokenBatch, ids)")
    return tokenizer


def token_id(tokenizer: Any, token: int | str) -> int:
    """The id of a token. PromptError for a text of several tokens."""
    if isinstance(token, int):
        return token
    ids = needed(tokenizer)(token, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise PromptError(f"{token!r} is {len(ids)} tokens; give one token, with its leading space")
    return ids[0]


def token_ids(tokenizer: Any, tokens: Tokens) -> list[int]:
    """The ids of one token or several. PromptError for a text of several tokens."""
    several = [tokens] if isinstance(tokens, (int, str)) else tokens
    return [token_id(tokenizer, token) for token in several]


def prompt_tokens(tokenizer: Any, prompts: Prompts, chat: ChatFormat | None) -> TokenBatch:
    """Left-padded tokens of prompts, on the CPU. PromptError for what is no prompt."""
    if isinstance(prompts, TokenBatch):
        return prompts.to("cpu")
    texts = [prompts] if isinstance(prompts, str) else list(_several(prompts))
    if wrong := [text for text in texts if not isinstance(text, str)]:
        name = type(wrong[0]).__name__
        raise PromptError(f"prompts are texts, a PromptSet or a TokenBatch, not {name}")
    tokenizer = needed(tokenizer)
    if chat is not None:
        return encode(tokenizer, texts, chat)
    return pad_left([text_ids(tokenizer, text) for text in texts], padding(tokenizer))


def followed(tokenizer: Any, batch: TokenBatch, responses: str | Sequence[str]) -> TokenBatch:
    """The batch with a response after every prompt. PromptError for an empty response or other counts."""
    responses = [responses] if isinstance(responses, str) else responses
    if len(responses) != len(batch):
        raise PromptError(f"{len(responses)} responses for {len(batch)} prompts; give one for each")
    tokenizer = needed(tokenizer)
    new = [tokenizer(text, add_special_tokens=False).input_ids for text in responses]
    if empty := [i for i, ids in enumerate(new) if not ids]:
        raise PromptError(f"response {empty[0] + 1} is empty; leave out its prompt")
    real = zip(batch.ids, batch.mask, strict=True)
    prompts = [ids[mask.bool()].tolist() for ids, mask in real]
    rows = [p + r for p, r in zip(prompts, new, strict=True)]
    whole = pad_left(rows, padding(tokenizer))
    return TokenBatch(whole.ids, whole.mask, torch.tensor([len(r) for r in new]))


def padding(tokenizer: Any) -> int:
    """The id that pads a batch; 0 where the tokenizer names none."""
    return tokenizer.pad_token_id or 0


def _several(prompts: Sequence[str] | PromptSet) -> Sequence[str]:
    return prompts.prompts if isinstance(prompts, PromptSet) else prompts
