"""The opener of a refusal: the beginning after which the next token tells refusing from answering.

SmolLM2 opens with "I'm", after which it says "sorry" to one class and "glad" or "here" to the other. An
edit that acts there as well needs less strength at the first token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from interp.data.prompts import PromptSet
from interp.evaluate.divergence import first_log_probs
from interp.evaluate.scores import generate_and_judge
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
"""Difference in probability below which the classes count as equal after an opener."""


def find_opener(
    lm: LM, refuse: PromptSet, comply: PromptSet, *, judge: Judge = ENGLISH_JUDGE
) -> str:
    """The beginning that most refusals share after which the classes differ most in the next token.

    Every beginning of up to ``LONGEST`` tokens that half of the refusals share is prefilled in the answers
    to both classes; the next shared token's probability is compared. Empty where the model refuses too few
    requests, its refusals share no beginning, or the classes differ after none.
    """
    refuse, comply = (PromptSet(side.prompts[:READ], side.source) for side in (refuse, comply))
    lm = lm.using(watch=within(lm.watch, "opener"))
    found = generate_and_judge(lm, refuse, tokens=OPENING, by=judge)
    if found.count < FEWEST_REFUSED:
        return ""
    texts = [text for text, refused in zip(found.texts, found.flagged, strict=True) if refused]
    classes = (refuse.chosen(found.flagged), comply)
    shared = shared_beginning(
        [lm.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    )
    best, opener = LEAST, ""
    for length in range(1, len(shared)):
        beginning = lm.tokenizer.decode(shared[:length])
        after = answering(lm, beginning)
        refusing, complying = (_likely(after, side, shared[length]) for side in classes)
        if refusing - complying > best:
            best, opener = refusing - complying, beginning
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


def _likely(lm: LM, prompts: PromptSet, token: int) -> float:
    """Mean probability of a token at the decision position."""
    return first_log_probs(lm, prompts).double().exp()[:, token].mean().item()
