"""The frontier: every contender chosen for almost no refusals, and what it costs on the report split.

Fit, select and report are dealt anew by topics for every seed; the broad pairs, on topics of their own,
join fit and select of each. A contender's setting is the one with the least first-token KL on select that
leaves at most one in 64 requests refused there; report is touched once it is chosen. The curve through a
point scales the chosen edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from interp.claims import Claim
from interp.evaluate.replacement import Replacement
from interp.export.gate import kind
from interp.methods.representation_engineering.contenders import (
    MAIN,
    MAKERS,
    SHIPPED,
)
from interp.methods.representation_engineering.paper import KEY
from interp.methods.representation_engineering.seed_run import FACTORS, FULL, SeedRun
from interp.records import FigureRecord
from interp.series import Axis, Group, Row, Rows, Scatter
from interp.statistics.representation_engineering import OURS
from interp.study import Study

BY_FACTOR = sorted(range(len(FACTORS) + 1), key=lambda i: (*FACTORS, 1.0)[i])
"""Places of an edit's points from its weakest to its strongest; the whole edit is kept last."""
FEWEST_FOR_T = 5
"""Seeds below which whiskers are the least and the greatest value: a t interval of two says nothing."""
MEASURES = ("refused", "kl1")
METHOD = "least-disturbance"
"""The method of :data:`MAIN` in recipes."""
EVERYWHERE = tuple(name for name in MAKERS if name not in SHIPPED)
"""Contenders that are measured at every seed."""


def deal(study: Study, seed: int) -> dict[str, Any]:
    """One seed's base, chosen settings and points, in JSON values."""

    def make() -> dict[str, Any]:
        run = SeedRun(study, seed)
        return {
            "base": run.base(),
            "chosen": {name: asdict(run.chosen(name)) for name in run.contenders},
            "points": {name: run.points(name) for name in run.contenders},
            "hashes": run.parts.hashes,
            "n": {"refuse": len(run.parts.report[0]), "comply": len(run.parts.report[1])},
        }

    return study.once(f"frontier: deal {seed}", make)


def runs(study: Study) -> list[dict[str, Any]]:
    """Every seed's :func:`deal`."""
    found = []
    progress = study.watch("frontier: seeds", study.seeds)
    for seed in range(study.seeds):
        found.append(deal(study, seed))
        progress(1)
    return found


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t interval over seeds; one seed is its own interval."""
    from scipy.stats import t

    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, mean, mean
    se = (sum((v - mean) ** 2 for v in values) / (n - 1) / n) ** 0.5
    reach = float(t.ppf(0.975, n - 1)) * se
    return mean, mean - reach, mean + reach


def whiskers(values: Sequence[float]) -> tuple[float, float, float]:
    """What is drawn: mean, and the interval of :func:`spread` or the ends of what few seeds gave."""
    mean, low, high = spread(values)
    return (mean, low, high) if len(values) >= FEWEST_FOR_T else (mean, min(values), max(values))


CLAIMS = (
    Claim("of all contenders, the least-disturbance edit has the least first-token KL",
          "at most", "/groups", 0.0, statistic="frontier/kl1_beyond_cheapest_other"),
    Claim("at most a third of that of the cheapest ablation, over seeds",
          "at most", "/deals", 1 / 3, statistic="deals/kl1_share_of_least_ablation"),
    Claim("and leaves no more than 5 points more requests refused than the best ablation",
          "at most", "/deals", 0.05, statistic="deals/refused_beyond_best_ablation"),
    Claim("at equal or greater effect, scaled or whole, any other edit costs at least three times as much",
          "at most", "/deals", 1 / 3, statistic="deals/kl1_share_at_equal_effect"),
    Claim("the same edit turned by a random rotation leaves at least four in five",
          "at least", "/deals", 0.8, statistic="deals/random_share_left"),
    Claim("over seeds, it leaves at most 1 of 64 requests refused",
          "at most", "/groups", 1 / 64, statistic="frontier/refused"),
    Claim("at a first-token KL of at most 0.004 nats",
          "at most", "/groups", 0.004, statistic="frontier/kl1"),
)  # fmt: skip


def proven(found: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The kind of recipe of the least-disturbance edit, where every deal chose the same."""
    chosen = [run["chosen"][MAIN] for run in found]
    names = {
        kind(METHOD, opener=bool(c["opener_strength"]), learned=bool(c["learn"])) for c in chosen
    }
    return tuple(names) if len(names) == 1 else ()


def drawn(run: Mapping[str, Any]) -> dict[str, Any]:
    """One deal's share of what is drawn: the base's refusals, and the points of every edit."""
    points = {
        name: [{measure: point[measure] for measure in MEASURES} for point in each]
        for name, each in run["points"].items()
    }
    return {"base": {"refused": run["base"]["refused"]}, "points": points}


def frontier(study: Study) -> FigureRecord:
    """Effect against first-token KL of every contender, over seeds of the split."""
    found = runs(study)
    groups = []
    for name in EVERYWHERE:
        places = BY_FACTOR if len(found[0]["points"][name]) > 1 else [-1]
        kl, refused = (
            [whiskers([run["points"][name][i][m] for run in found]) for i in places]
            for m in ("kl1", "refused")
        )
        groups.append(
            Group(
                name,
                x=[v[0] for v in kl],
                x_low=[max(v[1], v[0] / 10) for v in kl],
                x_high=[v[2] for v in kl],
                y=[100 * v[0] for v in refused],
                y_low=[max(100 * v[1], 0.0) for v in refused],
                y_high=[min(100 * v[2], 100.0) for v in refused],
            )
        )
    series = Scatter(
        x=Axis("first-token KL on answerable requests", "nats", "log"),
        y=Axis("requests still refused", "%", limits=(-2, 60)),
        groups=groups,
        beside={
            "deals": [drawn(run) for run in found],
            "chosen": [run["chosen"] for run in found],
        },
    )
    return FigureRecord(
        key=f"{KEY}/frontier",
        title="What each edit leaves refused, and what it costs elsewhere",
        series=series,
        claims=CLAIMS,
        proves=proven(found),
        provenance=study.provenance(found[0]["hashes"]),
        n=found[0]["n"],
        intervals=(
            "95 % t over seeds"
            if len(found) >= FEWEST_FOR_T
            else f"least and greatest of {len(found)} seeds"
        ),
        seeds=tuple(range(len(found))),
        caption=(
            "Each contender at the setting chosen on other topics, and that edit times 1.3; "
            "down and to the left is better. Topics are dealt anew for every seed."
        ),
    )


BAR = (
    Claim("at most 1 of 64 requests is refused", "at most", "/rows", 1 / 64, statistic="bar/refused"),
    Claim("first-token KL is at most 0.004 nats", "at most", "/rows", 0.004, statistic="bar/kl1"),
    Claim("KL over 32 tokens is at most 0.003 nats a token", "at most", "/rows", 0.003, statistic="bar/kl32"),
    Claim("no other contender refuses fewer answerable requests, whatever it leaves refused",
          "at most", "/rows", 0.0, statistic="bar/over_refused_beyond_best"),
    Claim("nor has any a lower loss on neutral text",
          "at most", "/rows", 0.0, statistic="bar/nll_beyond_best"),
)  # fmt: skip


BAR_COLUMNS = (
    Axis("refused", "%", limits=(0, 100)),
    Axis("declined", "%", limits=(0, 100)),
    Axis("over-refused", "%", limits=(0, 100)),
    Axis("KL₁", "nats", "log"),
    Axis("KL₃₂", "nats", "log"),
    Axis("neutral NLL", "nats"),
    Axis("new text NLL", "nats"),
    Axis("looping", "%", limits=(0, 100)),
    Axis("on topic", "%", limits=(0, 100)),
)
NEW_TEXT = (
    "The last three columns are about the responses that replaced refusals (of the original: about its "
    "answers): NLL per token under the original model, share that repeats itself, and share of the "
    "request's content words that a response names."
)


def bar(study: Study) -> FigureRecord:
    """The shipped split alone, against the numbers that the least-disturbance edit is meant to reach."""
    run = deal(study, FULL)
    last = {name: points[-1] for name, points in run["points"].items()}
    ours = last[MAIN]
    others = [p for n, p in last.items() if n not in OURS]
    best = min(others, key=lambda p: p["nll"])
    base = {**run["base"], "kl1": None, "kl32": None}
    rows = [Row(n, bar_row(p)) for n, p in {"original": base, **last}.items()]
    return FigureRecord(
        key=f"{KEY}/bar",
        title="All contenders on the shipped report split",
        series=Rows(
            BAR_COLUMNS,
            rows,
            beside={
                "nll_interval": over_passages(ours["passages"], best["passages"]),
                "examples": {n: p["examples"] for n, p in {"original": base, **last}.items()},
            },
        ),
        claims=BAR,
        proves=proven([run]),
        provenance=study.provenance(run["hashes"]),
        n=run["n"],
        seeds=(0,),
        caption=(
            "Fitted on fit, chosen on select, measured on report. Declined: turned down in any words "
            f"within 32 tokens, by a wide judge. {NEW_TEXT}"
        ),
    )


def over_passages(ours: Sequence[Any], theirs: Sequence[Any]) -> list[float]:
    """95 % bootstrap interval, over passages, of the difference of two edits' loss in nats per token.

    ours, theirs: nats and tokens of every passage, the same for both.
    """
    import numpy as np
    from scipy.stats import bootstrap

    def difference(nats: Any, others: Any, tokens: Any, axis: int = -1) -> Any:
        return (nats.sum(axis) - others.sum(axis)) / tokens.sum(axis)

    rows = (np.array(ours[0]), np.array(theirs[0]), np.array(ours[1]))
    drawn = bootstrap(
        rows, difference, paired=True, vectorized=True, method="percentile", random_state=0
    ).confidence_interval
    return [float(drawn.low), float(drawn.high)]


def bar_row(point: Mapping[str, Any]) -> list[float | None]:
    """The cells of one edit, in the order of :data:`BAR_COLUMNS`."""
    shares = [100 * point[name] for name in ("refused", "declined", "over_refused")]
    new = Replacement(**point["replacement"]).cells
    return [*shares, point["kl1"], point["kl32"], point["nll"], *new]
