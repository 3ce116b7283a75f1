"""Statistics of the figures of the persona-vector module, and the labels they go by."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from interp.claims import Number, statistics
from interp.series import Bars, HeatMap, SmallMultiples, Table

UNSTEERED = "unsteered"
PERSONA = "persona vector"
EQUAL_NORM = "random, equal norm"
EQUAL_DAMAGE = "random, equal damage"
SHUFFLED = "labels shuffled"
CONTROLS = (UNSTEERED, EQUAL_NORM, EQUAL_DAMAGE, SHUFFLED)


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


@statistics("layer_sweep")
def layer_sweep(series: SmallMultiples) -> dict[str, Number]:
    """Least over traits of the greatest gain in score, and the share of traits whose peak is inside."""
    gains, inner = [], []
    for panel in series.panels:
        lines, marks = panel.series.lines, panel.series.marks  # type: ignore[attr-defined]
        if not marks:  # no unsteered answer has a score
            continue
        (base,) = marks
        columns = list(zip(*(line.values for line in lines), strict=True))
        best = [max(_known(column), default=base.at) for column in columns]
        gains.append(max(best) - base.at)
        inner.append(0 < best.index(max(best)) < len(best) - 1)
    return {"least_gain": min(gains), "inner_peaks": fmean(inner)}


@statistics("steering_controls")
def steering_controls(series: Bars) -> dict[str, Number]:
    """Number of traits whose steered score is above the greatest of every control."""
    groups = {group.label: group for group in series.groups}
    steered, above = groups[PERSONA].values, 0
    for i, score in enumerate(steered):
        tops = []
        for label in CONTROLS:
            top = groups[label].high if label != UNSTEERED else groups[label].values
            tops += _known([None if top is None else top[i]])
        above += score is not None and score > max(tops)
    return {"traits_above_controls": above, "traits": len(steered)}


@statistics("positions")
def positions(series: SmallMultiples) -> dict[str, Number]:
    """How far response_avg scores above each other reduction, in the mean over traits and norms."""
    found: dict[str, list[float]] = {}
    for panel in series.panels:
        for line in panel.series.lines:  # type: ignore[attr-defined]
            found.setdefault(line.label, []).extend(_known(line.values))
    means = {label: fmean(values) for label, values in found.items()}
    ours = means.pop("response_avg")
    return {f"response_beyond_{label}": ours - mean for label, mean in means.items()}


@statistics("persona_cosines")
def persona_cosines(series: HeatMap) -> dict[str, Number]:
    """Least cosine of two halves of a trait, and how far it is above the greatest of two traits."""
    halves, values = series.beside["split_half"], series.panels[0].values
    others = [v for i, row in enumerate(values) for j, v in enumerate(row) if i < j]
    least = min(halves)
    return {
        "least_split_half": least,
        "split_half_beyond_others": least - max(_known(others), default=-1.0),
    }


@statistics("monitoring")
def monitoring(series: SmallMultiples) -> dict[str, Number]:
    """Mean and least over traits of the correlation of projection and score."""
    found = [panel.series.correlation.r for panel in series.panels]  # type: ignore[attr-defined]
    return {"mean_r": fmean(found), "least_r": min(found)}


@statistics("monitoring_correlations")
def monitoring_correlations(series: Table) -> dict[str, Number]:
    """Mean of measured overall r less that of within-condition r, which is 0 where no score varies."""
    pairs = [
        (row.values[k], row.values[k + 1] or 0.0)
        for row in series.rows
        if not row.theirs
        for k in (0, 2)
    ]
    both = [(a, b) for a, b in pairs if isinstance(a, float) and isinstance(b, float)]
    return {"overall_beyond_within": fmean(a for a, _ in both) - fmean(b for _, b in both)}
