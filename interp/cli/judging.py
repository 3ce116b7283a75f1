"""``--judge``: further judges of the responses that ``interp measure`` generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from interp.cli.tables import table

if TYPE_CHECKING:
    from interp.judges import Judge
    from interp.judges.naming import Maker
    from interp.lm import LM

CACHED_SCORES = "scores"
"""Folder of the user's cache in which scores are kept."""

HELP = """\b
Each --judge JUDGE adds its mean scores of the responses. A JUDGE is
  refusal                  English refusal markers, 0 or 1
  declines                 wider markers, 0 or 1
  trait:NAME               programmatic, 0 to 100: exclamatory, questioning,
                           hedging, apologetic, formal, terse, listing,
                           uppercase, emphatic, first_person
  llr:FILE                 log-likelihood ratio, nats per token; FILE is JSON
                           with lists "positive" and "negative" of system texts
  model:MODEL:RUBRIC       expected score of a local chat model, 0 to 100;
                           RUBRIC is a text file with {question} and {answer},
                           or coherence
  openai:MODEL@URL:RUBRIC  a model behind an OpenAI-compatible server; without
                           @URL: OPENAI_BASE_URL, or OpenAI's own. The key comes
                           from OPENAI_API_KEY
Scores of the last three are kept in the cache (INTERP_CACHE)."""
"""Spellings of judges (``interp.judges.SPELLINGS``), without importing a model library."""

judge_option = click.option(
    "--judge",
    "names",
    multiple=True,
    metavar="JUDGE",
    help="score the responses with this judge, too; may be given several times (spellings below)",
)


def made(makers: Sequence[Maker], lm: LM) -> tuple[Judge, ...]:
    """The judges that ``interp.judges.spelled`` gave, those that take a model keeping their scores.

    Raises JudgeError for two of one name.
    """
    from interp.errors import JudgeError
    from interp.judges import KeywordJudge, TraitJudge, cached
    from interp.models.embedded import cache_directory

    judges = [make(lm) for make in makers]
    names = [judge.name for judge in judges]
    if twice := [name for name in names if names.count(name) > 1]:
        raise JudgeError(f"two judges are named {twice[0]!r}; give one of their files another name")
    place = cache_directory() / CACHED_SCORES
    return tuple(
        judge if isinstance(judge, KeywordJudge | TraitJudge) else cached(judge, place)
        for judge in judges
    )


def scores(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of mean scores by judge and edit, with 95 % intervals."""
    cells = [
        [
            name if row is rows[0] else "",
            row["name"],
            *map(_cell, sides.values()),
            _unscorable(sides),
        ]
        for name in rows[0].get("scores", ())
        for row in rows
        for sides in [row["scores"][name]]
    ]
    if cells:
        columns = ("judge", "edit", ">requests", ">answerable", ">unscorable")
        table("mean scores of the responses", columns, cells)


def _cell(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "–"
    between = " ({:.3g} to {:.3g})".format(*found["interval"]) if found["interval"] else ""
    return f"{found['mean']:.3g}{between}"


def _unscorable(sides: Mapping[str, Mapping[str, Any]]) -> str:
    missing = sum(side["unscorable"] for side in sides.values())
    return f"{missing}/{missing + sum(side['n'] for side in sides.values())}"
