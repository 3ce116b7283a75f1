"""Refusal and over-refusal: responses of a model, and the share that a judge finds refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interp.backends.protocol import AnyEdit
from interp.data.thinking import response_texts
from interp.data.tokens import Prompts
from interp.errors import InterpError
from interp.judges.agreement import wilson
from interp.judges.keywords import ENGLISH_JUDGE
from interp.judges.protocol import Judge, finite
from interp.lm import LM
from interp.types import Ids


@dataclass(frozen=True, slots=True)
class Judged:
    """Responses of one class of prompts and a judge's score of each, None for those without one."""

    texts: tuple[str, ...]
    scores: tuple[float | None, ...]
    threshold: float = ENGLISH_JUDGE.threshold

    @property
    def refused(self) -> tuple[bool, ...]:
        """Which responses are refusals; those without a score are not."""
        return tuple(score is not None and score >= self.threshold for score in self.scores)

    @property
    def count(self) -> int:
        return sum(self.refused)

    @property
    def unscored(self) -> int:
        """Responses without a score."""
        return sum(score is None for score in self.scores)

    @property
    def n(self) -> int:
        """Responses that have a score. Raises InterpError where none has."""
        found = len(self.scores) - self.unscored
        if self.scores and not found:
            raise InterpError(
                f"none of {len(self.scores)} responses can be judged: all of them are still thinking "
                "when they are cut off; ask for more tokens (--tokens), switch thinking off "
                "(--no-thinking), or fit on all requests (--all-requests)"
            )
        return found

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval (95 %) of the refused share of those with a score."""
        return wilson(self.count, self.n)


def generate_ids(lm: LM, prompts: Prompts, edit: AnyEdit = None, *, tokens: int) -> Ids:
    """Greedy responses as token ids ``[n, tokens]``, padded after their end."""
    # A decoding step reads all weights, whatever the rows: twice as many cost little more.
    return lm.using(batch_size=2 * lm.batch_size).generate(prompts, edit, tokens=tokens).ids


def respond(lm: LM, prompts: Prompts, edit: AnyEdit = None, *, tokens: int) -> list[str]:
    """Greedy responses as text (:func:`interp.data.thinking.response_texts`)."""
    batch = lm.tokens(prompts)
    return response_texts(lm.tokenizer, batch.ids, generate_ids(lm, batch, edit, tokens=tokens))


def generate_and_judge(
    lm: LM, prompts: Prompts, edit: AnyEdit = None, *, tokens: int, by: Judge = ENGLISH_JUDGE
) -> Judged:
    """Greedy responses with a judge's scores."""
    return judge(respond(lm, prompts, edit, tokens=tokens), by)


def judge(texts: Sequence[str], by: Judge = ENGLISH_JUDGE, prompts: Sequence[str] = ()) -> Judged:
    """Responses with a judge's scores; without ``by``, those of the keyword judge in English."""
    scores = by.score(prompts, texts)
    return Judged(tuple(texts), tuple(map(finite, scores)), by.threshold)
