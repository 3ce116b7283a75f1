"""Material for steering the tone of a text: personas, openings, and the words that measure it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from interp.errors import PromptError
from interp.files import sha256_text

SIDES = ("positive", "negative")


@dataclass(frozen=True, slots=True)
class Tone:
    """The shipped ``tone.json``; personas and words have the keys of :data:`SIDES`.

    personas: system prompts of like form. stems: openings to fit on. words: bare words, one space
    goes in front. contexts: openings to measure on, none of them a stem. sha256: of the file.
    """

    personas: Mapping[str, str]
    stems: tuple[str, ...]
    words: Mapping[str, tuple[str, ...]]
    contexts: tuple[str, ...]
    sha256: str

    def tokens(self, tokenizer: Any) -> dict[str, tuple[int, ...]]:
        """Ids of the words that are a single token, by side; ids on both sides are left out.

        A tokenizer without such words (one of bytes) gives the first tokens of the bare words.
        Raises PromptError where nothing is left of one side.
        """
        for choose in (_whole, _first):
            sides = {s: {i for w in self.words[s] for i in choose(tokenizer, w)} for s in SIDES}
            both = sides["positive"] & sides["negative"]
            if all(ids - both for ids in sides.values()):
                return {side: tuple(sorted(ids - both)) for side, ids in sides.items()}
        raise PromptError("no token of this tokenizer belongs to words of one tone only")


def _whole(tokenizer: Any, word: str) -> list[int]:
    ids = tokenizer(f" {word}", add_special_tokens=False).input_ids
    return ids if len(ids) == 1 else []


def _first(tokenizer: Any, word: str) -> list[int]:
    return tokenizer(word, add_special_tokens=False).input_ids[:1]


@cache
def load_tone() -> Tone:
    """The shipped material."""
    text = files("interp.data").joinpath("tone.json").read_text(encoding="utf-8")
    content = json.loads(text)
    return Tone(
        personas=content["personas"],
        stems=tuple(content["stems"]),
        words={side: tuple(content["words"][side]) for side in SIDES},
        contexts=tuple(content["contexts"]),
        sha256=sha256_text(text),
    )
