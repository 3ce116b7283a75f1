"""From prompts to left-padded token batches, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

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
    """The text that the model sees, ending at the decision position (generation prompt included)."""
    if getattr(tokenizer, "chat_template", None) is None:
        if chat.thinking is not None:
            raise PromptError("this tokenizer has no chat template, so no thinking switch")
        if chat.history:
            raise PromptError("this tokenizer has no chat template, so no earlier turns")
        system = f"{chat.system}\n\n" if chat.system else ""
        return system + chat.plain.replace("{prompt}", prompt) + chat.prefill
    options: dict[str, Any] = {}
    if chat.thinking is not None:
        if "enable_thinking" not in str(tokenizer.chat_template):
            raise PromptError("this chat template has no thinking switch; leave it unset")
        options["enable_thinking"] = chat.thinking
    turns = [
        {"role": role, "content": text}
        for turn in chat.history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    turns.append({"role": "user", "content": prompt})
    if chat.system is not None:
        turns.insert(0, {"role": "system", "content": chat.system})
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **options
        )
    except Exception as error:
        if chat.system is None or "system" not in str(error).lower():
            raise PromptError(f"the chat template failed: {error}") from error
        # Templates without a system role (Gemma) document this as the way to pass one.
        first = turns[1]["content"]
        folded = [{"role": "user", "content": f"{chat.system}\n\n{first}"}, *turns[2:]]
        text = tokenizer.apply_chat_template(
            folded, tokenize=False, add_generation_prompt=True, **options
        )
    return text + chat.prefill


def encode(tokenizer: Any, prompts: Sequence[str], chat: ChatFormat | None = None) -> TokenBatch:
    """Left-padded ids ``[n, seq]``. Raises PromptError when the model has no tokenizer.

    Templates write their own special tokens, so none are added; plain text gets the tokenizer's usual.
    """
    if tokenizer is None:
        raise PromptError(
            "this model directory has no tokenizer; copy tokenizer.json and tokenizer_config.json into it"
        )
    chat = chat or ChatFormat()
    texts = [render(tokenizer, p, chat) for p in prompts]
    templated = getattr(tokenizer, "chat_template", None) is not None
    rows = [tokenizer(t, add_special_tokens=not templated).input_ids for t in texts]
    return pad_left(rows, tokenizer.pad_token_id or 0)


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
