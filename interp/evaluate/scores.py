"""Responses of a model and a judge's scores of them: the share that it finds, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.backends.protocol import AnyEdit
from interp.data.thinking import response_texts
from interp.data.tokens import Prompts
from interp.errors import InterpError
from interp.judges.agreement import CONFIDENCE, wilson
from interp.judges.keywords import ENGLISH_JUDGE
from interp.judges.protocol import Judge, finite
from interp.lm import LM
from interp.types import Ids


@dataclass(frozen=True, slots=True)
class Scores:
    """Responses to one class of prompts and one judge's score of each, None for those without one."""

    texts: tuple[str, ...]
    values: tuple[float | None, ...]
    threshold: float = ENGLISH_JUDGE.threshold

    @property
    def flagged(self) -> tuple[bool, ...]:
        """Which responses score at the threshold or above; those without a score do not."""
        return tuple(value is not None and value >= self.threshold for value in self.values)

    @property
    def count(self) -> int:
        """Responses that are flagged."""
        return sum(self.flagged)

    @property
    def unscored(self) -> int:
        """Responses without a score."""
        return sum(value is None for value in self.values)

    @property
    def n(self) -> int:
        """Responses that have a score. Raises InterpError where none has."""
        found = len(self.values) - self.unscored
        if self.values and not found:
            raise InterpError(
                f"none of {len(self.values)} responses can be judged: all of them are still thinking "
                "when they are cut off; ask for more tokens (--tokens), switch thinking off "
                "(--no-thinking), or fit on all requests (--all-requests)"
            )
        return found

    @property
    def share(self) -> float:
        """Share of those with a score that are flagged."""
        return self.count / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval (95 %) of the share."""
        return wilson(self.count, self.n)

    @property
    def mean(self) -> float | None:
        """Mean score; None where no response has one."""
        found = [value for value in self.values if value is not None]
        return sum(found) / len(found) if found else None

    def summary(self) -> dict[str, Any]:
        """``mean``, its t ``interval`` of 95 %, ``n`` with a score, ``unscorable`` without; JSON values."""
        found = [value for value in self.values if value is not None]
        counts = {"n": len(found), "unscorable": self.unscored}
        return {"mean": self.mean, "interval": t_interval(found), **counts}


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The t interval of a mean at 95 %; one point for equal values, None for fewer than two."""
    from scipy.stats import sem, t

    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * sem(values))
    return mean - half, mean + half


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
) -> Scores:
    """Greedy responses with a judge's scores."""
    return judge(respond(lm, prompts, edit, tokens=tokens), by)


def judge(texts: Sequence[str], by: Judge = ENGLISH_JUDGE, prompts: Sequence[str] = ()) -> Scores:
    """Responses with a judge's scores; without ``by``, those of the keyword judge in English."""
    values = by.score(prompts, texts)
    return Scores(tuple(texts), tuple(map(finite, values)), by.threshold)
