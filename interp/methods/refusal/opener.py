"""The opener of a refusal: what a model says before its next word tells refusing from answering.

SmolLM2 opens with "I'm", after which it says "sorry" to one class and "glad" or "here" to the other. An
edit that acts there as well needs less strength at the first token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from interp.backends.protocol import Backend
from interp.data.chat import ChatFormat, encode
from interp.data.prompts import PromptSet
from interp.evaluate.divergence import first_logits
from interp.evaluate.refusal import ENGLISH_JUDGE, Judge, generate_and_judge
from interp.fitting import BATCH
from interp.methods.refusal.fit import FEWEST_REFUSED, OPENING
from interp.watching import Watch, unwatched

LONGEST = 4
"""Tokens of an opener at most."""
SHARED = 0.5
"""Share of the refusals that must begin with it."""
READ = 64
"""Prompts of each class on which openers are compared."""
LEAST = 0.1
"""Difference in probability below which the classes do not part after an opener."""


def find_opener(
    backend: Backend,
    refuse: PromptSet,
    comply: PromptSet,
    *,
    chat: ChatFormat | None = None,
    judge: Judge = ENGLISH_JUDGE,
    batch_size: int = BATCH,
    watch: Watch = unwatched,
) -> str:
    """The beginning that most refusals share after which the classes differ most in the next token.

    Every beginning of up to ``LONGEST`` tokens that half of the refusals share is put into the mouth of
    both classes; the next shared token's probability is compared. Empty where the model refuses too few
    requests, its refusals share no beginning, or the classes do not part after any.
    """
    prompts = [PromptSet(side.prompts[:READ], side.source) for side in (refuse, comply)]
    batch = encode(backend.tokenizer, prompts[0].prompts, chat)
    found = generate_and_judge(backend, batch, tokens=OPENING, by=judge, batch_size=batch_size,
                  progress=watch("opener: responses", len(batch)))  # fmt: skip
    texts = [text for text, is_one in zip(found.texts, found.refused, strict=True) if is_one]
    if len(texts) < FEWEST_REFUSED:
        return ""
    refused = tuple(
        p for p, is_one in zip(prompts[0].prompts, found.refused, strict=True) if is_one
    )
    classes = (refused, prompts[1].prompts)
    shared = shared_beginning(
        [backend.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    )
    best, opener = LEAST, ""
    for length in range(1, len(shared)):
        said = backend.tokenizer.decode(shared[:length])
        likely = [
            _likely(backend, side, said, shared[length], chat, batch_size) for side in classes
        ]
        if likely[0] - likely[1] > best:
            best, opener = likely[0] - likely[1], said
    return opener


def shared_beginning(rows: Sequence[Sequence[int]]) -> list[int]:
    """The longest beginning, up to ``LONGEST`` + 1 tokens, that at least half of the rows share."""
    shared: list[int] = []
    while len(shared) <= LONGEST:
        place = len(shared)
        following = Counter(
            row[place] for row in rows if len(row) > place and list(row[:place]) == shared
        )
        if not following:
            break
        token, count = following.most_common(1)[0]
        if count < SHARED * len(rows):
            break
        shared.append(token)
    return shared


def _likely(
    backend: Backend,
    prompts: Sequence[str],
    said: str,
    token: int,
    chat: ChatFormat | None,
    batch_size: int,
) -> float:
    """Mean probability of a token once ``said`` has been put into the answer's mouth."""
    batch = encode(backend.tokenizer, prompts, (chat or ChatFormat()).saying(said))
    chances = first_logits(backend, batch, batch_size=batch_size).double().softmax(-1)
    return torch.mean(chances[:, token]).item()
