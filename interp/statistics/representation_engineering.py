"""Statistics of the figures of the representation-engineering module, and the labels they go by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, variance
from typing import Any

from interp.claims import statistics
from interp.series import Group, HeatMap, Line, Lines, MapPanel, Row

MAIN = "least disturbance"
CLOSED = "least disturbance, closed form"
FIRST_TOKEN = "least disturbance, first token alone"
RANDOM = "random rotation"
OURS = (MAIN, CLOSED, FIRST_TOKEN, RANDOM)
"""What is not compared with: the least-disturbance family itself, and its control."""
PARTIAL = "partial ablation"
WHOLE_STACK = ("directional ablation", "heretic's kernel")
"""Ablations of all blocks."""
ABLATIONS = (*WHOLE_STACK, PARTIAL)
ORIGINAL = "original"
NARROW = "closed form, plain fit"
REGULARISED = "closed form, ridge 1"
FEWEST = 6
"""Refusals of the unedited model below which a kind says nothing about an edit."""
PLAIN = "heretic's way"
NEAR = 0.05
"""Shares refused that differ by less count as the same effect."""
FIRST_BLOCK = 3
"""From here on the difference of means is expected to read well."""
MEANS, LDA_LINE = "difference of means", "LDA"
BASELINE = "centred PCA (known to fail)"
RANDOM_LINE = "random direction"
PREDICTION = "prediction for the means"


def _values(lines: Sequence[Line | Row]) -> dict[str, Any]:
    return {line.label: line.values for line in lines}


def _late(values: Sequence[float]) -> Sequence[float]:
    """From ``FIRST_BLOCK`` on, or the last value of a shorter stack."""
    return values[min(FIRST_BLOCK, len(values) - 1) :]


@statistics("planted")
def planted(lines: Sequence[Line]) -> dict[str, float]:
    """How far the means are from their closed form, and the best of centred PCA."""
    values = _values(lines)
    pairs = zip(values[MEANS], values[PREDICTION], strict=True)
    return {
        "means_off_prediction": max(abs(a - b) for a, b in pairs),
        "centred_pca_most": max(values[BASELINE]),
    }


@statistics("planted_nuisance")
def planted_nuisance(series: Lines) -> dict[str, float]:
    """Extremes of each method's lines, symmetric PCA on either side of the thresholds that are marked."""
    values, shifts = _values(series.lines), series.x.values
    at = {mark.label.rpartition(", ")[2]: mark.at for mark in series.marks}

    def of(name: str, keep: Callable[[float, str], bool] = lambda shift, sd: True) -> list[float]:
        return [
            value
            for sd in at
            for shift, value in zip(shifts, values[f"{name}, {sd}"], strict=True)
            if keep(shift, sd)
        ]

    return {
        "symmetric_pca_most_below": max(of("symmetric PCA", lambda s, sd: s <= at[sd])),
        "symmetric_pca_least_above": min(of("symmetric PCA", lambda s, sd: s > at[sd])),
        "means_least": min(of("means")),
        "centred_pca_most": max(of("centred PCA")),
    }


@statistics("reading")
def reading(lines: Sequence[Line]) -> dict[str, float]:
    """AUROC of the difference of means beside that of LDA, of centred PCA and of chance."""
    values = _values(lines)
    means = values[MEANS]
    return {
        "difference_of_means_least": min(_late(means)),
        "lda_best_beyond_difference_of_means": max(values[LDA_LINE]) - max(means),
        "centred_pca_mean_shortfall": fmean(means) - fmean(values[BASELINE]),
        "random_mean_off_chance": abs(fmean(values[RANDOM_LINE]) - 0.5),
    }


@statistics("stability")
def stability(lines: Sequence[Line]) -> dict[str, float]:
    """The least mean split-half cosine of the upper half of the blocks, larger samples."""
    values = lines[0].values
    return {"split_half_upper_least": min(values[len(values) // 2 :])}


@statistics("cosines")
def cosines(panels: Sequence[MapPanel]) -> dict[str, float]:
    """Cosines of neighbours and of the ends; the mark is the last block read behind the final norm."""
    values, normed = panels[0].values, panels[0].reference.at
    beside = [values[i][i + 1] for i in range(len(values) - 1)]
    return {
        "last_with_neighbour": beside[-1],
        "lost_by_final_norm": beside[-1] - normed,
        "neighbours_beyond_ends": fmean(beside) - values[0][-1],
    }


@statistics("separation")
def separation(series: Lines) -> dict[str, float]:
    """d′ of both directions, and the largest silhouette."""
    values = {name: [v or 0.0 for v in line] for name, line in _values(series.lines).items()}
    return {
        "d_prime_least": min(_late(values[MEANS])),
        "lda_best_beyond_means": max(values[LDA_LINE]) - max(values[MEANS]),
        "silhouette_most": max(series.beside["silhouette"]),
    }


@statistics("projection")
def projection(groups: Sequence[Group]) -> dict[str, float]:
    """d′ of the two groups along each axis."""

    def apart(axis: str) -> float:
        one, other = (getattr(group, axis) for group in groups)
        spread = ((variance(one) + variance(other)) / 2) ** 0.5
        return abs(fmean(one) - fmean(other)) / spread

    return {"d_prime_first_axis": apart("x"), "d_prime_second_axis": apart("y")}


@statistics("tone")
def tone(series: Lines) -> dict[str, float]:
    """Effects of α = ±1, in the direction of α.

    late_least_move: over late blocks and contexts. early_greatest_move: the larger of the early blocks'
    means. random_share: mean size of the effects of random draws (``random_size``), over the least late mean.
    """
    lines = {line.label: line for line in series.lines}
    up, down = (series.x.values.index(alpha) for alpha in (1.0, -1.0))

    def mean(line: Line) -> float:
        return (line.values[up] - line.values[down]) / 2

    late, early = ([lines[label] for label in series.beside[which]] for which in ("late", "early"))
    random, least = series.beside["random_size"], min(map(mean, late))
    return {
        "late_least_move": min(min(line.low[up], -line.high[down]) for line in late),
        "early_greatest_move": max(map(mean, early)),
        "random_share": random / max(least, 1e-12),
    }


@statistics("bar")
def bar(rows: Sequence[Row]) -> dict[str, float]:
    """Our row, shares and nats, and how it compares with the best of the others."""
    values = _values(rows)
    ours = values[MAIN]
    others = [row for name, row in values.items() if name not in (*OURS, ORIGINAL)]
    return {
        "refused": ours[0] / 100,
        "kl1": ours[3],
        "kl32": ours[4],
        "over_refused_beyond_best": (ours[2] - min(row[2] for row in others)) / 100,
        "nll_beyond_best": ours[5] - min(row[5] for row in others),
    }


@statistics("bar_coder")
def bar_coder(rows: Sequence[Row]) -> dict[str, float]:
    """The closed form, the learned edit and its control beside the unedited model and two ablations."""
    values = _values(rows)
    closed, learned, refused = values[CLOSED], values.get(MAIN), max(values[ORIGINAL][0], 1e-7)
    ablations = [values[name] for name in WHOLE_STACK]
    cheapest = min(row[3] for row in ablations)
    found = {}
    if learned is not None:
        found["learned_share_left"] = learned[0] / refused
        found["learned_kl1_share_of_least_ablation"] = learned[3] / cheapest
    return found | {
        "refused_share_left": closed[0] / refused,
        "refused_beyond_best_ablation": (closed[0] - min(row[0] for row in ablations)) / 100,
        "kl1_share_of_least_ablation": closed[3] / cheapest,
        "random_share_left": values[RANDOM][0] / refused,
    }


@statistics("frontier")
def frontier(groups: Sequence[Group]) -> dict[str, float]:
    """Means over deals: our own (nats, share refused), and our cost beside the cheapest of the others."""
    # The first point of a group is the edit as it was chosen.
    values = {group.label: (group.x[0], group.y[0] / 100) for group in groups}
    cheapest = min(cost for name, (cost, _) in values.items() if name not in OURS)
    cost, left = values[MAIN]
    return {"kl1": cost, "refused": left, "kl1_beyond_cheapest_other": cost - cheapest}


@statistics("deals")
def deals(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over deals of what is compared within each: the last of an edit's points is the whole edit."""
    last = [{name: points[-1] for name, points in run["points"].items()} for run in found]
    known = [share for share in map(_at_equal_effect, found) if share is not None]
    pairs = list(zip(found, last, strict=True))
    return {
        # Whichever ablation costs least at its chosen setting is what ours is compared with.
        "kl1_share_of_least_ablation": fmean(
            run[MAIN]["kl1"] / max(min(run[name]["kl1"] for name in ABLATIONS), 1e-9)
            for run in last
        ),
        "refused_beyond_best_ablation": fmean(
            run[MAIN]["refused"] - min(run[name]["refused"] for name in ABLATIONS) for run in last
        ),
        "random_share_left": fmean(
            run[RANDOM]["refused"] / max(of["base"]["refused"], 1e-9) for of, run in pairs
        ),
        # Zero where no other edit leaves as few: then there is nothing to share with.
        "kl1_share_at_equal_effect": fmean(known or [0.0]),
        "deals_with_equal_effect": len(known),
    }


def _at_equal_effect(run: Mapping[str, Any]) -> float | None:
    """Our KL as a share of the least of any other edit, scaled or whole, that leaves no more refused; None
    where none does."""
    ours = run["points"][MAIN][-1]
    others = [p for name, points in run["points"].items() if name not in OURS for p in points]
    costs = [p["kl1"] for p in others if p["refused"] <= ours["refused"]]
    return ours["kl1"] / max(min(costs), 1e-9) if costs else None


@statistics("flags")
def flags(rows: Sequence[Row]) -> dict[str, float]:
    """How many changes are better than heretic's way on one count and no worse on the other, and our cost
    beside the cheapest that leaves about as few refused."""
    values = {row.label: (row.values[0] / 100, row.values[1]) for row in rows}
    plain, ours = values[PLAIN], values[MAIN]
    changes = [v for name, v in values.items() if name not in (PLAIN, *OURS)]
    better = [v for v in changes if v[0] <= plain[0] and v[1] <= plain[1] and v != plain]
    # An edit that does nothing costs nothing: compared are those that leave about as few as ours.
    as_few = [cost for left, cost in changes if left <= ours[0] + NEAR]
    share = ours[1] / max(min(as_few), 1e-9) if as_few else 0.0
    return {"better_count": len(better), "kl1_share_of_ours_in_cheapest": share}


@statistics("narrowness")
def narrowness(series: HeatMap) -> dict[str, float]:
    """Share of the unedited model's refusals that an edit leaves, over kinds of request that it refuses."""
    refused, twins = (
        [dict(zip(series.columns.names, row, strict=True)) for row in panel.values]
        for panel in series.panels
    )
    counts = series.rows.n
    # The first kind is that which edits were fitted on.
    shifted = [
        row for row, n in list(zip(refused, counts, strict=True))[1:]
        if row[ORIGINAL] / 100 * n >= FEWEST
    ]  # fmt: skip

    def left(name: str) -> float:
        return fmean(row[name] / row[ORIGINAL] for row in shifted) if shifted else 1.0

    return {
        "left": left(MAIN),
        "twins_refused_beyond_original": max(row[MAIN] - row[ORIGINAL] for row in twins) / 100,
        "beyond_ablation": left(MAIN) - left(PARTIAL),
        "mended_by_opener": left(FIRST_TOKEN) - left(CLOSED),
        "mended_by_learning": left(CLOSED) - left(MAIN),
        "mended_by_ridge": left(CLOSED) - left(REGULARISED),
        "mended_by_broad_pairs": left(NARROW) - left(CLOSED),
    }
