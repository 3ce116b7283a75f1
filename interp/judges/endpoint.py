"""A model behind any OpenAI-compatible server as judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from interp.data.thinking import answer
from interp.errors import JudgeError
from interp.judges.protocol import HALFWAY, answers, check_prompts, spread
from interp.judges.rubric import HIGHEST, LEAST_MASS, LOWEST, Rubric, number_in
from interp.judges.server import Server

REPLY_TOKENS = 16
ALTERNATIVES = 20
"""Alternatives to a token that servers are asked for: the most that OpenAI gives."""
TWO_DIGITS = 10
SETTINGS = {
    "logprobs": True,
    "top_logprobs": ALTERNATIVES,
    "max_tokens": REPLY_TOKENS,
    "temperature": 0.0,
}


@dataclass(frozen=True, slots=True)
class EndpointJudge:
    """Score from 0 to 100 in a served model's reply to a rubric.

    Where the server returns the alternatives of the reply's first token with whole numbers among them, the
    score is ``Σ k p(k) / Σ p(k)`` over those from 0 to 100, and None where they have less than
    ``least_mass``; otherwise the number that the reply states. Replies without a number and prompts that
    the server's content filter refuses have no score. A server that fails is an error. Requests have
    temperature 0; settings that a server refuses by name (``logprobs``, ``temperature``, …) are left out.

    url: the server, with its path (``http://localhost:8000/v1``); None for ``OPENAI_BASE_URL``, or OpenAI's
    own. timeout, retries: of :class:`interp.judges.server.Server`. concurrency: requests at a time.
    """

    model: str
    rubric: Rubric
    url: str | None = field(default=None, repr=False)  # may hold a password
    timeout: float = 60.0
    retries: int = 4
    concurrency: int = 8
    least_mass: float = LEAST_MASS
    threshold: float = HALFWAY

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise JudgeError("needs concurrency ≥ 1")
        _ = self.server  # checks its own settings

    @property
    def name(self) -> str:
        return self.rubric.name

    @property
    def server(self) -> Server:
        return Server(self.model, self.url, self.timeout, self.retries)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """See :class:`interp.judges.Judge`; needs prompts where the rubric shows them."""
        check_prompts(prompts, responses, self.name if self.rubric.needs_prompt else None)
        rows = answers(responses)
        if not rows:
            return [None] * len(responses)
        texts = [self.rubric.filled(prompts[i] if prompts else "", t) for i, t in rows.items()]
        with self.server.client() as client, ThreadPoolExecutor(self.concurrency) as pool:
            refused: set[str] = set()
            waiting = [pool.submit(self._scored, client, text, refused) for text in texts]
            try:
                found = [each.result() for each in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return spread(found, rows, len(responses))

    def _scored(self, client: Any, text: str, refused: set[str]) -> float | None:
        """The score in the reply to one filled rubric. JudgeError where the server fails."""
        return self.server.reply(client, text, SETTINGS, self._read, refused)

    def _read(self, choice: Any) -> float | None:
        """The score of one choice of a chat completion."""
        reply = choice.message.content or ""
        first = next(iter(getattr(choice.logprobs, "content", None) or ()), None)
        if first is not None and first.top_logprobs:
            numbers = [(_whole(each.token), each.logprob) for each in first.top_logprobs]
            found = [(k, math.exp(p)) for k, p in numbers if k is not None]
            # Single digits alone may be the first of several: then the reply has to be read.
            if not found or any(k >= TWO_DIGITS for k, _ in found):
                mass = sum(p for _, p in found)
                mean = sum(k * p for k, p in found) / mass if mass else 0.0
                return mean if mass >= self.least_mass else None
        cut = choice.finish_reason == "length" and reply[-1:].isdigit()
        return None if cut else number_in(answer(reply) or "")

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": "endpoint",
            "name": self.name,
            "model": self.model,
            "server": self.server.shown,
            "rubric": self.rubric.as_json(),
            "least_mass": self.least_mass,
        }


def _whole(token: str) -> int | None:
    """The number from 0 to 100 that a token is, white space aside."""
    text = token.strip()
    if not (text.isascii() and text.isdigit()) or str(int(text)) != text:
        return None
    return int(text) if LOWEST <= int(text) <= HIGHEST else None
