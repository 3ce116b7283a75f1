"""The opener of a refusal: what a model says before its next word tells refusing from answering.

SmolLM2 opens with "I'm", after which it says "sorry" to one class and "glad" or "here" to the other. An
edit that acts there as well needs less strength at the first token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from interp.data.prompts import PromptSet
from interp.evaluate.divergence import first_log_probs
from interp.evaluate.refusal import generate_and_judge
from interp.judges.keywords import ENGLISH_JUDGE
from interp.judges.protocol import Judge
from interp.lm import LM
from interp.methods.refusal.fit import FEWEST_REFUSED, OPENING, answering
from interp.watching import within

LONGEST = 4
"""Tokens of an opener at most."""
SHARED = 0.5
"""Share of the refusals that must begin with it."""
READ = 64
"""Prompts of each class on which openers are compared."""
LEAST = 0.1
"""Difference in probability below which the classes do not part after an opener."""


def find_opener(
    lm: LM, refuse: PromptSet, comply: PromptSet, *, judge: Judge = ENGLISH_JUDGE
) -> str:
    """The beginning that most refusals share after which the classes differ most in the next token.

    Every beginning of up to ``LONGEST`` tokens that half of the refusals share is put into the mouth of
    both classes; the next shared token's probability is compared. Empty where the model refuses too few
    requests, its refusals share no beginning, or the classes do not part after any.
    """
    prompts = [PromptSet(side.prompts[:READ], side.source) for side in (refuse, comply)]
    lm = lm.using(watch=within(lm.watch, "opener"))
    found = generate_and_judge(lm, prompts[0], tokens=OPENING, by=judge)
    texts = [text for text, is_one in zip(found.texts, found.refused, strict=True) if is_one]
    if len(texts) < FEWEST_REFUSED:
        return ""
    refused = tuple(
        p for p, is_one in zip(prompts[0].prompts, found.refused, strict=True) if is_one
    )
    classes = (refused, prompts[1].prompts)
    shared = shared_beginning(
        [lm.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    )
    best, opener = LEAST, ""
    for length in range(1, len(shared)):
        said = lm.tokenizer.decode(shared[:length])
        likely = [_likely(answering(lm, said), side, shared[length]) for side in classes]
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


def _likely(lm: LM, prompts: Sequence[str], token: int) -> float:
    """Mean probability of a token at the decision position."""
    return first_log_probs(lm, prompts).double().exp()[:, token].mean().item()
