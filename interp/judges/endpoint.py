"""A model behind any OpenAI-compatible server as judge, through the ``openai`` client."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from interp.data.thinking import answer
from interp.errors import JudgeError
from interp.judges.protocol import HALFWAY, answers, check_prompts, spread
from interp.judges.rubric import HIGHEST, LEAST_MASS, LOWEST, Rubric, number_in

KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
"""Environment variables of the ``openai`` client. The key is read from nowhere else and never written."""
OFFICIAL = "https://api.openai.com/v1"
NO_KEY = "none"
"""Sent to servers other than ``OFFICIAL`` where no key is set: most local ones want none."""
REPLY_TOKENS = 16
ALTERNATIVES = 20
"""Alternatives to a token that servers are asked for: the most that OpenAI gives."""
TWO_DIGITS = 10
FILTERED = "content_filter"


@dataclass(frozen=True, slots=True)
class EndpointJudge:
    """Score from 0 to 100 in a served model's reply to a rubric.

    Where the server returns the alternatives of the reply's first token with whole numbers among them, the
    score is ``Σ k p(k) / Σ p(k)`` over those from 0 to 100, and None where they have less than
    ``least_mass``; otherwise the number that the reply states. Replies without a number and prompts that
    the server's content filter refuses have no score. A server that fails is an error. Requests have
    temperature 0; settings that a server refuses by name (``logprobs``, ``temperature``, …) are left out.

    url: the server, with its path (``http://localhost:8000/v1``); None for ``OPENAI_BASE_URL``, or OpenAI's
    own. timeout: seconds for one reply. retries: made by the client, after growing pauses, where the server
    is busy, fails or is silent. concurrency: requests at a time.
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
        if self.concurrency < 1 or self.retries < 0 or not self.timeout > 0:
            raise JudgeError("needs concurrency ≥ 1, retries ≥ 0 and a timeout above 0 seconds")

    @property
    def name(self) -> str:
        return self.rubric.name

    @property
    def server(self) -> str:
        """The server's address. JudgeError for one that is no http address."""
        found = self.url or os.environ.get(URL) or OFFICIAL
        if urlsplit(found).scheme not in ("http", "https") or not urlsplit(found).hostname:
            raise JudgeError(
                f"{_shown(found)} is no server; give an address like http://HOST:PORT/v1"
            )
        return found

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """See :class:`interp.judges.Judge`; needs prompts where the rubric shows them."""
        check_prompts(prompts, responses, self.name if self.rubric.needs_prompt else None)
        rows = answers(responses)
        if not rows:
            return [None] * len(responses)
        texts = [self.rubric.filled(prompts[i] if prompts else "", t) for i, t in rows.items()]
        with self._client() as client, ThreadPoolExecutor(self.concurrency) as pool:
            refused: set[str] = set()
            waiting = [pool.submit(self._scored, client, text, refused) for text in texts]
            try:
                found = [each.result() for each in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return spread(found, rows, len(responses))

    @contextmanager
    def _client(self) -> Iterator[Any]:
        try:
            import openai
        except ImportError:
            raise JudgeError(
                "judges behind a server need the openai client: pip install 'interp-toolkit[judge]'"
            ) from None
        key = os.environ.get(KEY)
        if not key and self.server == OFFICIAL:
            raise JudgeError(f"set the environment variable {KEY}, or name a server of your own")
        with openai.OpenAI(
            base_url=self.server,
            api_key=key or NO_KEY,
            timeout=self.timeout,
            max_retries=self.retries,
        ) as client:
            yield client

    def _scored(self, client: Any, text: str, refused: set[str]) -> float | None:
        """The score in the reply to one filled rubric. JudgeError where the server fails."""
        import openai

        try:
            reply = self._reply(client, text, refused)
            return self._read(reply.choices[0])
        except openai.APITimeoutError:
            why = f"gave no reply within {self.timeout:g} s, {self.retries + 1} times"
            mend = "give it longer (timeout) or fewer requests at a time (concurrency)"
        except openai.APIConnectionError:
            why, mend = "cannot be reached", "start it, or mend the address"
        except openai.APIStatusError as error:
            if FILTERED in (error.code, getattr(error.body, "get", str)("code")):
                return None
            why = f"answered {error.status_code}: {_first_line(error.message)}"
            mend = _mend(error.status_code)
        except (openai.APIError, ValueError, AttributeError, TypeError, IndexError):
            why, mend = (
                "sent no chat completion",
                "check that the address ends as its documentation says",
            )
        raise JudgeError(f"the judge's server {_shown(self.server)} {why}; {mend}") from None

    def _reply(self, client: Any, text: str, refused: set[str]) -> Any:
        """The chat completion for one filled rubric. refused: settings that the server does not take."""
        import openai

        settings = {
            "logprobs": True,
            "top_logprobs": ALTERNATIVES,
            "max_tokens": REPLY_TOKENS,
            "temperature": 0.0,
        }
        messages = [{"role": "user", "content": text}]
        while True:
            taken = {name: value for name, value in settings.items() if name not in refused}
            try:
                return client.chat.completions.create(model=self.model, messages=messages, **taken)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                named = {name for name in taken if name in str(error)}
                if not named:
                    raise
                refused |= named

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
            "server": _shown(self.server),
            "rubric": self.rubric.as_json(),
            "least_mass": self.least_mass,
        }


def _whole(token: str) -> int | None:
    """The number from 0 to 100 that a token is, white space aside."""
    text = token.strip()
    if not (text.isascii() and text.isdigit()) or str(int(text)) != text:
        return None
    return int(text) if LOWEST <= int(text) <= HIGHEST else None


def _shown(url: str) -> str:
    """An address without user, password and query, which may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _mend(status: int) -> str:
    if status in (401, 403):
        return f"set the environment variable {KEY} to a key that it accepts"
    if status == 404:
        return "check the address and the model's name"
    if status == 429:
        return "wait, or ask for fewer at a time (concurrency); scores that are cached are kept"
    return "look at the server's log" if status >= 500 else "check the model's name and the rubric"


def _first_line(text: str) -> str:
    return (str(text).strip() or "no reason").splitlines()[0][:200]
