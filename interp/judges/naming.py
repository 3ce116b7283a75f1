"""Judges by name, as ``interp measure --judge`` spells them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from interp.errors import JudgeError
from interp.judges.chat import ChatJudge
from interp.judges.endpoint import EndpointJudge
from interp.judges.likelihood import LikelihoodRatio
from interp.judges.protocol import Judge
from interp.judges.rubric import COHERENCE, Rubric
from interp.judges.traits import TRAITS, TraitJudge
from interp.lm import LM
from interp.opening import open_model

SPELLINGS = {
    "trait:NAME": f"a programmatic trait, 0 to 100: {', '.join(TRAITS)}",
    "llr:FILE": "log-likelihood ratio under the unedited model; FILE is JSON with lists 'positive' and "
    "'negative' of system texts",
    "model:MODEL:RUBRIC": "a local chat model's expected score, 0 to 100; RUBRIC is a text file with "
    "{question} and {answer}, or 'coherence'",
    "openai:MODEL@URL:RUBRIC": "the same of a model behind an OpenAI-compatible server (without @URL: "
    "OPENAI_BASE_URL); a key is read from OPENAI_API_KEY",
}
"""How each kind of judge is spelled, and what it is."""
_SERVED = re.compile(r"(?P<model>.+?)(?:@(?P<url>https?://.+))?")


def named(spelling: str, lm: LM | None = None) -> Judge:
    """The judge that a name of :data:`SPELLINGS` means. Raises JudgeError for a name that means none.

    lm: the unedited model of ``llr:``.
    """
    kind, _, rest = spelling.partition(":")
    makers: dict[str, Callable[[str], Judge]] = {
        "trait": TraitJudge,
        "llr": lambda name: LikelihoodRatio.load(_needed(lm), Path(name)),
        "model": _local,
        "openai": _served,
    }
    if kind not in makers or not rest:
        raise JudgeError(f"no judge {spelling!r}; judges are {', '.join(SPELLINGS)}")
    return makers[kind](rest)


def _needed(lm: LM | None) -> LM:
    if lm is None:
        raise JudgeError("llr: needs a model; give lm=")
    return lm


def _local(rest: str) -> Judge:
    model, rubric = _split(rest, "model:MODEL:RUBRIC")
    return ChatJudge(open_model(model), rubric)


def _served(rest: str) -> Judge:
    head, rubric = _split(rest, "openai:MODEL@URL:RUBRIC")
    found = _SERVED.fullmatch(head)
    assert found is not None
    return EndpointJudge(found["model"], rubric, found["url"])


def _split(rest: str, spelling: str) -> tuple[str, Rubric]:
    """What precedes the last colon, and the rubric that follows it."""
    head, _, name = rest.rpartition(":")
    if not head or not name or name.startswith("//"):
        raise JudgeError(f"this judge is spelled {spelling}")
    return head, COHERENCE if name == COHERENCE.name else Rubric.load(Path(name))
