"""Responses as text, and the part of a response that is the answer: what follows its thinking."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

BLOCKS = (
    ("<think>", "</think>"),  # Qwen 3, DeepSeek R1, and most others
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|channel>thought", "<channel|>"),  # Gemma 4
)
"""Opening and closing mark of thinking."""
CHANNEL, START, MESSAGE = "<|channel|>", "<|start|>", "<|message|>"
FINAL = f"{CHANNEL}final{MESSAGE}"
"""gpt-oss thinks in the channel ``analysis`` and answers in ``final``."""
SPECIAL = frozenset((*(m for pair in BLOCKS for m in pair), CHANNEL, START, MESSAGE))
SPECIAL |= {"<|channel>", "<|end|>"}
"""Marks that some tokenizers hold as special tokens; they are kept when a response is decoded."""
TAIL = 16
"""Tokens at the end of a prompt that may open the thinking which the response goes on with."""


def answer(text: str) -> str | None:
    """A response without its thinking; None where the answer has not begun, as when it was cut off.

    A closing mark without an opening one ends thinking that the prompt began.
    """
    if CHANNEL in text:
        said = text.rpartition(FINAL)[2] if FINAL in text else ""
        return re.split(r"<\|\w+\|>", said)[0].strip() or None
    rest = text
    for opening, closing in BLOCKS:
        first, last = re.escape(opening), re.escape(closing)
        rest = re.sub(f"{first}.*?{last}", "", rest, flags=re.S | re.I)
        rest = re.split(last, rest, flags=re.I)[-1]
        rest = re.split(first, rest, flags=re.I)[0]
    return rest if rest == text else rest.strip() or None


def response_texts(tokenizer: Any, prompts: Tensor, responses: Tensor) -> list[str]:
    """Responses as text: special tokens are removed, but for marks of thinking.

    prompts: ids ``[n, seq]``, left-padded; where one ends with an opening mark, its response begins with
    that mark, too. responses: ids ``[n, tokens]``.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {i for i, token in added.items() if token.special}
    kept = {i for i in special if added[i].content in SPECIAL}
    if not kept:
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    else:
        rows = [[i for i in row if i not in special or i in kept] for row in responses.tolist()]
        texts = tokenizer.batch_decode(rows, skip_special_tokens=False)
    opened = _opened(tokenizer.batch_decode(prompts[:, -TAIL:], skip_special_tokens=False))
    return [mark + text for mark, text in zip(opened, texts, strict=True)]


def _opened(tails: Sequence[str]) -> list[str]:
    """The mark of thinking that each text ends with, or nothing."""
    marks = [opening for opening, _ in BLOCKS]
    return [next((m for m in marks if t.rstrip().endswith(m)), "") for t in tails]
