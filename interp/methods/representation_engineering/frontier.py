"""The frontier: every contender chosen for almost no refusals, and what it costs on the report split.

The topics are split anew into fit, select and report for every seed; the broad pairs, on topics of their own,
join fit and select of each. A contender's setting is the one with the least first-token KL on select that
leaves at most one in 64 requests refused there; report is evaluated once the setting is chosen. The curve
through a point scales the chosen edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interp.claims import Claim
from interp.evaluate.replacement import Replacement
from interp.evaluate.scores import t_interval
from interp.export.gate import kind
from interp.methods.representation_engineering.contenders import (
    CLOSED,
    CONTENDERS,
    MAIN,
    RANDOM,
    SHIPPED,
)
from interp.methods.representation_engineering.seed_run import FACTORS, FULL, SeedRun
from interp.recipes import LeastDisturbanceEdit
from interp.records import FigureRecord
from interp.series import Axis, Group, Row, Rows, Scatter
from interp.statistics.representation_engineering import OURS, WHOLE_STACK
from interp.study import Study
from interp.watching import counted

BY_FACTOR = sorted(range(len(FACTORS) + 1), key=lambda i: (*FACTORS, 1.0)[i])
"""Places of an edit's points from its weakest to its strongest; the unscaled edit is kept last."""
FEWEST_FOR_T = 5
"""Seeds below which whiskers are the least and the greatest value: a t interval of two says nothing."""
MEASURES = ("refused", "kl1")
EVERYWHERE = tuple(name for name in CONTENDERS if name not in SHIPPED)
"""Contenders that are measured at every seed."""


def whiskers(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95 % t interval over seeds, or with the least and greatest value of few seeds."""
    t = t_interval(values) if len(values) >= FEWEST_FOR_T else None
    return (sum(values) / len(values), *(t or (min(values), max(values))))


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
    """The kind of recipe of the least-disturbance edit, if every seed chose the same."""
    chosen = [run["chosen"][MAIN] for run in found]
    names = {
        kind(
            LeastDisturbanceEdit.method,
            opener=bool(setting["opener_strength"]),
            learned=bool(setting["learn"]),
        )
        for setting in chosen
    }
    return tuple(names) if len(names) == 1 else ()


def drawn(run: Mapping[str, Any]) -> dict[str, Any]:
    """The drawn part of one seed's results: refusals of the base, and the points of every edit."""
    points = {
        name: [{measure: point[measure] for measure in MEASURES} for point in each]
        for name, each in run["points"].items()
    }
    return {"base": {"refused": run["base"]["refused"]}, "points": points}


def group(name: str, points: Sequence[Sequence[Mapping[str, float]]]) -> Group:
    """One contender's points, means over seeds with whiskers. points: of every seed."""
    factors = BY_FACTOR if len(points[0]) > 1 else [-1]
    kl, refused = (
        [whiskers([seed[i][measure] for seed in points]) for i in factors]
        for measure in ("kl1", "refused")
    )
    return Group(
        name,
        x=[mean for mean, _, _ in kl],
        x_low=[max(low, mean / 10) for mean, low, _ in kl],
        x_high=[high for _, _, high in kl],
        y=[100 * mean for mean, _, _ in refused],
        y_low=[max(100 * low, 0.0) for _, low, _ in refused],
        y_high=[min(100 * high, 100.0) for _, _, high in refused],
    )


def frontier(study: Study) -> FigureRecord:
    """Mean over seeds of the share of requests refused and the first-token KL of every contender."""
    runs = [SeedRun(study, seed) for seed in range(study.seeds)]
    found = [run.results() for run in counted(study.watch, "frontier: seeds", runs)]
    series = Scatter(
        x=Axis("first-token KL on answerable requests", "nats", "log"),
        y=Axis("requests still refused", "%", limits=(-2, 60)),
        groups=[group(name, [run["points"][name] for run in found]) for name in EVERYWHERE],
        beside={"deals": [drawn(run) for run in found], "chosen": [run["chosen"] for run in found]},
    )
    by_t = len(found) >= FEWEST_FOR_T
    return runs[0].record(
        "frontier",
        "What each edit leaves refused, and what it costs elsewhere",
        series,
        claims=CLAIMS,
        proves=proven(found),
        intervals="95 % t over seeds" if by_t else f"least and greatest of {len(found)} seeds",
        seeds=tuple(range(len(found))),
        caption=(
            "Each contender at the setting chosen on other topics, and that edit times 1.3; "
            "down and to the left is better. Topics are split anew for every seed."
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
    """All contenders on the shipped split, beside numbers that the least-disturbance edit should reach."""
    run = SeedRun(study, FULL)
    found = run.results()
    last = {name: points[-1] for name, points in found["points"].items()}
    best = min((p for name, p in last.items() if name not in OURS), key=lambda p: p["nll"])
    return run.record(
        "bar",
        "All contenders on the shipped report split",
        table(found, nll_interval=over_passages(last[MAIN]["passages"], best["passages"])),
        claims=BAR,
        proves=proven([found]),
        caption=(
            "Fitted on fit, chosen on select, measured on report. Declined: turned down in any words "
            f"within 32 tokens, by a wide judge. {NEW_TEXT}"
        ),
    )


CODER_CONTENDERS = (*WHOLE_STACK, CLOSED, MAIN, RANDOM)
CODER = (
    Claim("the closed form leaves at most half of the refusals",
          "at most", "/rows", 0.5, statistic="bar_coder/refused_share_left"),
    Claim("and no more requests refused than the better ablation, within 5 points",
          "at most", "/rows", 0.05, statistic="bar_coder/refused_beyond_best_ablation"),
    Claim("at no more than a third of the first-token KL of the cheaper ablation",
          "at most", "/rows", 1 / 3, statistic="bar_coder/kl1_share_of_least_ablation"),
    Claim("learning leaves at most a quarter of the refusals",
          "at most", "/rows", 0.25, statistic="bar_coder/learned_share_left"),
    Claim("at no more than a third of the first-token KL of the cheaper ablation",
          "at most", "/rows", 1 / 3, statistic="bar_coder/learned_kl1_share_of_least_ablation"),
    Claim("the learned edit turned by a random rotation leaves at least four in five",
          "at least", "/rows", 0.8, statistic="bar_coder/random_share_left"),
)  # fmt: skip


def bar_coder(study: Study) -> FigureRecord:
    """Original, two ablations, least disturbance closed and learned, and its control, on report."""
    run = SeedRun(study, FULL, names=CODER_CONTENDERS, factors=())
    return run.record(
        "bar_coder",
        f"Edits of {study.model} on the shipped report split",
        table(run.results()),
        claims=CODER,
        caption=(
            "Fitted on fit, chosen on select, measured on report; nothing is tuned on this model. "
            f"{NEW_TEXT}"
        ),
    )


def table(found: Mapping[str, Any], **beside: Any) -> Rows:
    """Rows of the base and of every contender's unscaled edit. found: results of the shipped split."""
    points = {name: points[-1] for name, points in found["points"].items()}
    points = {"original": found["base"], **points}
    examples = {name: point["examples"] for name, point in points.items()}
    rows = [Row(name, bar_row(point)) for name, point in points.items()]
    return Rows(BAR_COLUMNS, rows, beside={**beside, "examples": examples})


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
