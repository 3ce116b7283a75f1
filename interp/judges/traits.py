"""Programmatic traits of a response, scored from 0 to 100 without a model.

A trait is a share of sentences, lines or words, times 100, unless its function says otherwise. Word lists
are English. White space around a response changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import JudgeError
from interp.judges.protocol import HALFWAY, PERCENT, answers, check_prompts, spread
from interp.source import code_hash

Measure = Callable[[str], float | None]

HALVING_WORDS = 20
"""Further words that halve the score of ``terse``."""
LEAST_CAPITALS = 2
"""Letters of a word that can count as written in capitals: "I" and "A" cannot."""
HEDGES = (
    "perhaps", "maybe", "possibly", "probably", "presumably", "might", "could be", "may be", "seems?",
    "appears? to", "likely", "i think", "i believe", "i guess", "i suppose", "in my opinion", "i'm not sure",
    "i am not sure", "not certain", "it depends", "roughly", "arguably", "to some extent", "sort of",
    "kind of",
)  # fmt: skip
APOLOGIES = (
    "sorry", "apolog(?:y|ies|i[sz]e[sd]?|i[sz]ing|etic)", "regret(?:tably)?", "unfortunately", "forgive me",
    "pardon me", "my (?:bad|mistake|fault)",
)  # fmt: skip
INFORMAL = (
    "gonna", "wanna", "gotta", "kinda", "sorta", "yeah", "yep", "nope", "hey", "hi", "ok", "okay", "cool",
    "awesome", "guys?", "stuff", "lol", "btw", "dunno", "ya", "y'all", "super",
)  # fmt: skip
FIRST_PERSON = ("i", "i'(?:m|d|ll|ve)", "me", "my", "mine", "myself")
CONTRACTION = re.compile(
    r"\w(?:n't|'(?:re|ve|ll|d|m))\b|\b(?:it|that|there|what|let|he|she)'s\b", re.I
)
EMOJI = re.compile("[\u2600-\u27bf\U0001f300-\U0001faff]")
LIST_ITEM = re.compile(r"\s*(?:[-*+•–]|\(?(?:\d{1,3}|[a-zA-Z])[.)])\s+\S")
BOLD = re.compile(r"(?<!\w)(\*\*|__)(?=\S).+?(?<=\S)\1(?!\w)", re.S)
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
SENTENCE = re.compile(r"\S.*?(?:[.!?…]+[\"')\]*_]*(?=\s|$)|[。！？]+|(?=\n\s*\n)|$)", re.S)
CLOSING = "\"')]*_ \n"


def sentences(text: str) -> list[str]:
    """Sentences with their closing marks; a full stop inside a number ends none."""
    return SENTENCE.findall(text)


def _marked(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


def _share(flags: Sequence[bool]) -> float | None:
    return PERCENT * sum(flags) / len(flags) if flags else None


def _ends_with(text: str, marks: str) -> float | None:
    """Share of sentences whose closing marks contain one of ``marks``."""
    endings = (s.rstrip(CLOSING) for s in sentences(text))
    return _share([any(m in e[len(e.rstrip(".!?…。！？")) :] for m in marks) for e in endings])


def _names(text: str, words: Sequence[str]) -> float | None:
    """Share of sentences that contain one of the words."""
    pattern = _marked(words)
    return _share([pattern.search(s) is not None for s in sentences(text)])


def exclamatory(text: str) -> float | None:
    """Share of sentences that end in an exclamation mark."""
    return _ends_with(text, "!！")


def questioning(text: str) -> float | None:
    """Share of sentences that end in a question mark."""
    return _ends_with(text, "?？")


def hedging(text: str) -> float | None:
    """Share of sentences with a hedge ("perhaps", "I think", "it seems")."""
    return _names(text, HEDGES)


def apologetic(text: str) -> float | None:
    """Share of sentences with an apology or regret ("sorry", "unfortunately")."""
    return _names(text, APOLOGIES)


def first_person(text: str) -> float | None:
    """Share of sentences with a first-person singular pronoun."""
    return _names(text, FIRST_PERSON)


def formal(text: str) -> float | None:
    """Share of sentences without informal features: contractions, informal words, exclamation marks, emoji,
    a small first letter."""
    informal = _marked(INFORMAL)

    def plain(sentence: str) -> bool:
        return not (
            CONTRACTION.search(sentence)
            or informal.search(sentence)
            or EMOJI.search(sentence)
            or re.search("[!！]", sentence)
            or sentence.lstrip("\"'([*_-• ")[:1].islower()
        )

    return _share([plain(s) for s in sentences(text)])


def terse(text: str) -> float | None:
    """100 for one word; every further ``HALVING_WORDS`` words halve the score."""
    return PERCENT * 2.0 ** (-(len(text.split()) - 1) / HALVING_WORDS)


def listing(text: str) -> float | None:
    """Share of lines that are items of a bulleted or numbered list."""
    return _share([LIST_ITEM.match(line) is not None for line in text.splitlines() if line.strip()])


def uppercase(text: str) -> float | None:
    """Share of words of two letters and more that are in capitals; None without such a word."""
    words = [w for w in WORD.findall(text) if len(w) >= LEAST_CAPITALS and w.upper() != w.lower()]
    return _share([w.isupper() for w in words])


def emphatic(text: str) -> float | None:
    """Share of words that stand in bold (``**so**`` or ``__so__``); None without words."""
    inside = sum(len(WORD.findall(found[0])) for found in BOLD.finditer(text))
    whole = len(WORD.findall(text))
    return PERCENT * inside / whole if whole else None


TRAITS: dict[str, Measure] = {
    measure.__name__: measure
    for measure in (
        exclamatory, questioning, hedging, apologetic, formal, terse, listing, uppercase, emphatic,
        first_person,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TraitJudge:
    """Score of one of :data:`TRAITS`, or of ``measure``: a text → 0 to 100, None for no score.

    Thinking is not judged; an empty response has no score. Raises JudgeError for a name that is no trait.
    """

    name: str
    measure: Measure | None = None
    threshold: float = HALFWAY

    def __post_init__(self) -> None:
        if self.measure is None and self.name not in TRAITS:
            raise JudgeError(f"no trait {self.name!r}; there are {', '.join(TRAITS)}")

    @property
    def _measure(self) -> Measure:
        return self.measure or TRAITS[self.name]

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """See :class:`interp.judges.Judge`; prompts are not read."""
        check_prompts(prompts, responses)
        rows = answers(responses)
        found = [self._measure(text.replace("’", "'")) for text in rows.values()]
        return spread(found, rows, len(responses))

    def as_json(self) -> dict[str, Any]:
        return {"kind": "trait", "name": self.name, "code": code_hash(self._measure)}
