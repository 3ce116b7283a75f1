"""From prompts to left-padded token batches, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from interp.data.templates import Turn, conversation, template_of
from interp.errors import PromptError
from interp.types import TokenBatch


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a prompt becomes a conversation.

    system: text of the system turn; None leaves it to the template (many insert a default).
    thinking: True or False for templates with a thinking switch; None leaves it alone.
    prefill: text that the assistant's turn already begins with. history: earlier turns, each what the
    user said and what was answered.
    plain: format for models without a chat template; must contain ``{prompt}``.
    """

    system: str | None = None
    thinking: bool | None = None
    prefill: str = ""
    plain: str = "{prompt}"
    history: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if "{prompt}" not in self.plain:
            raise PromptError("the plain format must contain {prompt}")

    def saying(self, text: str) -> ChatFormat:
        """The same conversation, the answer going on with ``text`` as if the model had said it."""
        return replace(self, prefill=self.prefill + text)


def render(tokenizer: Any, prompt: str, chat: ChatFormat) -> str:
    """The text that the model sees, ending at the decision position (generation prompt included).

    Raises PromptError for a template that fails, drops what it is given or lacks what ``chat`` wants.
    """
    if template_of(tokenizer) is None:
        if chat.thinking is not None:
            raise PromptError("this tokenizer has no chat template, so no thinking switch")
        if chat.history:
            raise PromptError("this tokenizer has no chat template, so no earlier turns")
        system = f"{chat.system}\n\n" if chat.system else ""
        return system + chat.plain.replace("{prompt}", prompt) + chat.prefill
    turns: list[Turn] = [
        {"role": role, "content": text}
        for turn in chat.history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    turns.append({"role": "user", "content": prompt})
    if chat.system is not None:
        turns.insert(0, {"role": "system", "content": chat.system})
    return conversation(tokenizer, turns, chat.thinking) + chat.prefill


def encode(tokenizer: Any, prompts: Sequence[str], chat: ChatFormat | None = None) -> TokenBatch:
    """Left-padded ids ``[n, seq]``. Raises PromptError when the model has no tokenizer.

    Templates write their own special tokens, so none are added; plain text gets those that the tokenizer
    puts in front.
    """
    if tokenizer is None:
        raise PromptError(
            "this model directory has no tokenizer; copy tokenizer.json and tokenizer_config.json into it"
        )
    chat = chat or ChatFormat()
    texts = [render(tokenizer, p, chat) for p in prompts]
    if template_of(tokenizer) is None:
        rows = [text_ids(tokenizer, t) for t in texts]
    else:
        rows = [tokenizer(t, add_special_tokens=False).input_ids for t in texts]
    return pad_left(rows, tokenizer.pad_token_id or 0)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of plain text behind the special tokens that the tokenizer puts in front.

    A special token that it puts at the end (T5's and others' ``</s>``) is left out: the text goes on.
    """
    bare = tokenizer(text, add_special_tokens=False).input_ids
    ids = tokenizer(text).input_ids
    for end in range(len(ids), len(bare) - 1, -1):
        if ids[end - len(bare) : end] == bare:
            return ids[:end]
    return ids


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> TokenBatch:
    """Token rows of different lengths as one left-padded batch."""
    if not rows or not all(rows):
        raise PromptError("a prompt without tokens; remove empty lines")
    width = max(len(r) for r in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return TokenBatch(ids, mask)
