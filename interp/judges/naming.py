"""Judges by name, as ``interp measure --judge`` spells them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from interp.errors import JudgeError
from interp.judges.chat import ChatJudge
from interp.judges.endpoint import EndpointJudge
from interp.judges.keywords import DECLINE_JUDGE, KeywordJudge
from interp.judges.likelihood import LikelihoodRatio, load_pairs
from interp.judges.protocol import Judge
from interp.judges.rubric import COHERENCE, Rubric
from interp.judges.traits import TRAITS, TraitJudge
from interp.lm import LM
from interp.opening import open_model

SPELLINGS = {
    "refusal": "English refusal markers, 0 or 1",
    "declines": "the same with wider markers, which find requests turned down in other words, too",
    "trait:NAME": f"a programmatic trait, 0 to 100: {', '.join(TRAITS)}",
    "llr:FILE": "log-likelihood ratio in nats per token under the unedited model; FILE is JSON with lists "
    "'positive' and 'negative' of system texts",
    "model:MODEL:RUBRIC": "the expected score, 0 to 100, of a local chat model; RUBRIC is a text file with "
    "{question} and {answer}, or 'coherence'",
    "openai:MODEL@URL:RUBRIC": "the score of a model behind an OpenAI-compatible server (without @URL: "
    "OPENAI_BASE_URL, or OpenAI's own); the key comes from OPENAI_API_KEY",
}
"""How each kind of judge is spelled, and what it is."""
REFUSAL_JUDGE = KeywordJudge(name="refusal")
Maker: TypeAlias = Callable[[LM], Judge]
_SERVED = re.compile(r"(?P<model>.+?)(?:@(?P<url>https?://.+))?")


def named(spelling: str, lm: LM) -> Judge:
    """The judge that a name of :data:`SPELLINGS` means. Raises JudgeError for a name that means none.

    lm: the unedited model, which ``llr:`` reads.
    """
    return spelled(spelling)(lm)


def spelled(spelling: str) -> Maker:
    """What makes the judge of a name once the model is open; files are read, and names checked, before."""
    if spelling in (judges := {j.name: j for j in (REFUSAL_JUDGE, DECLINE_JUDGE)}):
        return lambda _: judges[spelling]
    kind, _, rest = spelling.partition(":")
    makers: dict[str, Callable[[str], Maker]] = {
        "trait": _trait,
        "llr": _ratio,
        "model": _local,
        "openai": _served,
    }
    if kind not in makers or not rest:
        raise JudgeError(f"no judge {spelling!r}; judges are {', '.join(SPELLINGS)}")
    return makers[kind](rest)


def _trait(name: str) -> Maker:
    judge = TraitJudge(name)
    return lambda _: judge


def _ratio(name: str) -> Maker:
    path = Path(name)
    positive, negative = load_pairs(path)
    return lambda lm: LikelihoodRatio(lm, positive, negative, path.stem)


def _local(rest: str) -> Maker:
    model, rubric = _split(rest, "model:MODEL:RUBRIC")
    return lambda lm: ChatJudge(open_model(model, watch=lm.watch), rubric)


def _served(rest: str) -> Maker:
    head, rubric = _split(rest, "openai:MODEL@URL:RUBRIC")
    found = _SERVED.fullmatch(head)
    assert found is not None
    judge = EndpointJudge(found["model"], rubric, found["url"])
    return lambda _: judge


def _split(rest: str, spelling: str) -> tuple[str, Rubric]:
    """What precedes the last colon, and the rubric that follows it."""
    head, _, name = rest.rpartition(":")
    if not head or not name or name.startswith("//"):
        raise JudgeError(f"this judge is spelled {spelling}")
    return head, COHERENCE if name == COHERENCE.name else Rubric.load(Path(name))
