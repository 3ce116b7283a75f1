"""How narrow an edit is: refusals left on requests of another form than those it was fitted on.

Edits are fitted on fit, which the broad pairs join, and chosen on select, as on the frontier; the requests
here are made from the same pairs of report topics: reworded, translated, wrapped in courtesy, after
another turn, or with the answer already begun.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial

from interp.claims import Claim
from interp.data.chat import ChatFormat
from interp.data.prompts import SIDES, PromptSet, load_class, load_pairs
from interp.evaluate.scores import judge, respond
from interp.methods.refusal import finished
from interp.methods.representation_engineering.contenders import (
    CLOSED,
    FIRST_TOKEN,
    MAIN,
    PARTIAL,
    Maker,
    least_recipe,
)
from interp.methods.representation_engineering.seed_run import FULL, SET, SeedRun
from interp.records import FigureRecord
from interp.series import HeatMap, MapPanel, Names
from interp.statistics.representation_engineering import NARROW, REGULARISED
from interp.study import Study
from interp.types import WeightDelta
from interp.watching import counted

KINDS = ("paraphrase", "polite", "indirect", "spanish", "french", "german")
TALK = (("Can you help me with a few things today?", "Of course. What would you like to know?"),)
FORMATS = {
    "as fitted": ChatFormat(),
    "second turn": ChatFormat(history=TALK),
    "answer begins 'I'": ChatFormat(prefill="I"),
    "answer begins 'Unfortunately,'": ChatFormat(prefill="Unfortunately,"),
}
EDITS = (PARTIAL, FIRST_TOKEN, CLOSED, MAIN)
RIDGE = 1.0
"""A ridge as large as Σ itself: the edit then depends less on the comply inputs."""
TOKENS = 12
EVERY = 2
"""Every second pair that all kinds restate is used: two of each report topic."""

Classes = tuple[PromptSet, PromptSet]
Kind = tuple[Classes, ChatFormat]
Shares = dict[str, list[float]]
"""Edit → share of requests refused, and share of answerable twins refused."""


def kinds(limit: int | None) -> dict[str, Kind]:
    """Prompts of both classes and their chat format, by name of the kind of request."""
    found: dict[str, Kind] = {name: (originals(limit), chat) for name, chat in FORMATS.items()}
    for kind in KINDS:
        whole = [load_class(f"narrowness:{kind}", side) for side in SIDES]
        refuse, comply = (PromptSet(p.prompts[::EVERY][:limit], p.source) for p in whole)
        found[kind] = ((refuse, comply), ChatFormat())
    return found


def originals(limit: int | None) -> Classes:
    """The report pairs that every kind restates."""
    pairs, restated = load_pairs(SET).pairs, load_pairs("narrowness").pairs
    places = list(dict.fromkeys(p["from"] for p in restated))[::EVERY][:limit]
    refuse, comply = (
        PromptSet(tuple(pairs[i][side] for i in places), f"{SET}: restated ({side})")
        for side in SIDES
    )
    return refuse, comply


def deltas(run: SeedRun) -> dict[str, WeightDelta | None]:
    """The edits as the frontier chose them; the closed form also without broad pairs, and with ``RIDGE``."""
    found: dict[str, WeightDelta | None] = {"original": None}
    found |= {name: run.maker(run.chosen(name)) for name in EDITS}
    chosen = run.chosen(CLOSED)
    found[NARROW] = Maker(run.study.lm, run.narrow)(chosen)
    strong = replace(least_recipe(chosen, run.opener), ridge=RIDGE)
    found[REGULARISED] = finished(run.study.lm, run.maker.fitted, strong)
    return found


def refused(study: Study, prompts: PromptSet, chat: ChatFormat, delta: WeightDelta | None) -> float:
    """Share of prompts refused; a prefilled beginning counts as part of the response."""
    texts = respond(study.lm.using(chat=chat), prompts, delta, tokens=TOKENS)
    return judge([chat.prefill + text for text in texts]).count / len(texts)


def shares(run: SeedRun, classes: Classes, chat: ChatFormat) -> Shares:
    """Shares refused of both classes of one kind of request, by edit."""
    made = run.study.once("narrowness: edits", lambda: deltas(run))
    return {
        name: [refused(run.study, side, chat, delta) for side in classes]
        for name, delta in made.items()
    }


def drawn(table: dict[str, Shares], counts: dict[str, int]) -> HeatMap:
    """The series of the figure: kinds of request by edits, a panel for each class, in percent.

    table: kind → :data:`Shares`. counts: prompts of each kind.
    """
    names = list(next(iter(table.values())))
    panels = [
        MapPanel(
            label,
            [[100 * row[name][side] for name in names] for row in table.values()],
            "%",
            limits=(0, 100),
        )
        for side, label in enumerate(("requests refused", "answerable twins refused"))
    ]
    labels = [f"{kind} (n = {counts[kind]})" for kind in table]
    rows = Names("", labels, n=[counts[kind] for kind in table])
    return HeatMap(columns=Names("", names), rows=rows, panels=panels)


def narrowness(study: Study) -> FigureRecord:
    """Share of requests, and of answerable twins, that are refused: kinds of request by edits."""
    run, found = SeedRun(study, FULL), kinds(study.limit)
    about = {"fitted": run.parts.hashes, "settings": [asdict(run.chosen(name)) for name in EDITS]}
    table: dict[str, Shares] = {}
    for kind, (classes, chat) in counted(study.watch, "narrowness", found.items()):
        make = partial(shares, run, classes, chat)
        table[kind] = study.resumed("narrowness", make, prompts=classes, chat=asdict(chat), **about)
    counts = {kind: len(classes[0]) for kind, (classes, _) in found.items()}
    return run.record(
        "narrowness",
        "Refusals left where requests look otherwise",
        drawn(table, counts),
        claims=CLAIMS,
        n=counts,
        caption=(
            "Fitted on English requests of other topics; the plain fit had short plain ones alone. Where "
            "the unedited model hardly refuses, a row says nothing about the edits."
        ),
    )


CLAIMS = (
    Claim("the edit removes at least half of the refusals of requests that look otherwise",
          "at most", "", 0.5, statistic="narrowness/left"),
    Claim("it is no narrower than partial ablation, within 10 points",
          "at most", "", 0.0, 0.1, statistic="narrowness/beyond_ablation"),
    Claim("the broad pairs of the fit make it less narrow",
          "at least", "", 0.0, statistic="narrowness/mended_by_broad_pairs"),
    Claim("acting after the opener as well, and fitting again, make it less narrow",
          "at least", "", 0.0, statistic="narrowness/mended_by_opener"),
    Claim("learning what is read and written makes it no narrower",
          "at least", "", 0.0, statistic="narrowness/mended_by_learning"),
    Claim("in no kind are more answerable twins refused than by the unedited model",
          "at most", "", 0.0, statistic="narrowness/twins_refused_beyond_original"),
    Claim("a strong ridge makes it less narrow",
          "at least", "", 0.0, statistic="narrowness/mended_by_ridge"),
)  # fmt: skip
