"""A model behind any OpenAI-compatible server, through the ``openai`` client."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from interp.errors import JudgeError

KEY, URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
"""Environment variables of the ``openai`` client. The key is read from nowhere else and never written."""
OFFICIAL = "https://api.openai.com/v1"
NO_KEY = "none"
"""Sent to servers other than ``OFFICIAL`` where no key is set: most local ones want none."""
FILTERED = "content_filter"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Server:
    """A served model. A server that fails is a JudgeError with the reason and its mend.

    url: the server, with its path (``http://localhost:8000/v1``); None for ``OPENAI_BASE_URL``, or OpenAI's
    own. timeout: seconds for one reply. retries: made by the client, after growing pauses, where the server
    is busy, fails or is silent.
    """

    model: str
    url: str | None = field(default=None, repr=False)  # may hold a password
    timeout: float = 60.0
    retries: int = 4

    def __post_init__(self) -> None:
        if self.retries < 0 or not self.timeout > 0:
            raise JudgeError("needs retries ≥ 0 and a timeout above 0 seconds")

    @property
    def address(self) -> str:
        """The server's address. JudgeError for one that is no http address."""
        found = self.url or os.environ.get(URL) or OFFICIAL
        if urlsplit(found).scheme not in ("http", "https") or not urlsplit(found).hostname:
            raise JudgeError(
                f"{_shown(found)} is no server; give an address like http://HOST:PORT/v1"
            )
        return found

    @property
    def shown(self) -> str:
        """The address without user, password and query, which may be secret."""
        return _shown(self.address)

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client of the server, for :meth:`reply`; several threads may share it."""
        try:
            import openai
        except ImportError:
            raise JudgeError(
                "models behind a server need the openai client: pip install 'interp-toolkit[judge]'"
            ) from None
        key = os.environ.get(KEY)
        if not key and self.address == OFFICIAL:
            raise JudgeError(f"set the environment variable {KEY}, or name a server of your own")
        with openai.OpenAI(
            base_url=self.address,
            api_key=key or NO_KEY,
            timeout=self.timeout,
            max_retries=self.retries,
        ) as client:
            yield client

    def reply(
        self,
        client: Any,
        text: str,
        settings: Mapping[str, Any],
        read: Callable[[Any], T],
        refused: set[str],
    ) -> T | None:
        """What ``read`` finds in the model's reply to one text; None where a content filter refuses the text.

        settings: of the request. refused: names of settings that the server does not take, which are left
        out; those that it refuses now are added.
        """
        import openai

        try:
            return read(self._completion(client, text, settings, refused).choices[0])
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
        raise JudgeError(f"the server {self.shown} {why}; {mend}") from None

    def _completion(
        self, client: Any, text: str, settings: Mapping[str, Any], refused: set[str]
    ) -> Any:
        import openai

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


def _shown(url: str) -> str:
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
