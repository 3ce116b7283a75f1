"""How far apart the two classes lie: d′, silhouette and cosines by block, and one block in a plane.

As in the reading figure, directions come from the fit topics and are read on the report topics.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from torch import Tensor

from interp.claims import Claim
from interp.estimators import LDA, DiffMeans
from interp.evaluate.geometry import d_prime, interval, plane, residual_geometry, silhouette
from interp.methods.representation_engineering.paper import KEY
from interp.methods.representation_engineering.reading import (
    FIRST_BLOCK,
    SIDES,
    by_block,
    counts,
    hashes,
    scores,
    streams,
)
from interp.records import FigureRecord
from interp.series import Axis, Group, Line, Lines, Mark, Scatter
from interp.study import Study

SHOWN = 0.8
"""Relative depth of the block that the plane shows."""
LINES = {"difference of means": DiffMeans(), "LDA": LDA()}

SEPARATION_CLAIMS = (
    Claim(f"from block {FIRST_BLOCK} on, held-out topics lie at least 1 sd apart along the means",
          "at least", "", 1.0, statistic="separation/d_prime_least"),
    Claim("at its best block LDA tells them apart at least as well",
          "at least", "", 0.0, statistic="separation/lda_best_beyond_means"),
    Claim("the classes form no clusters: the silhouette stays below .25 at every block",
          "at most", "", 0.25, statistic="separation/silhouette_most"),
)  # fmt: skip


def separation(study: Study) -> FigureRecord:
    """d′ of two directions by block on held-out topics, with bootstrap intervals."""
    fit, report = streams(study, "fit"), streams(study, "report")
    lines = [_line(name, scores(estimator, fit, report)) for name, estimator in LINES.items()]
    held = [report[side] for side in SIDES]
    return FigureRecord(
        key=f"{KEY}/separation",
        title="How far apart the classes lie",
        series=Lines(
            by_block(fit),
            Axis("d′ on held-out topics", "standard deviations"),
            lines,
            [Mark("y", 0.0, "no difference")],
            beside={
                "silhouette": silhouette(*held).tolist(),
                "residual_geometry": residual_geometry(*held),
            },
        ),
        claims=SEPARATION_CLAIMS,
        provenance=study.provenance(hashes(study, "fit", "report")),
        n=counts(fit, report),
        intervals="95 % bootstrap of pairs read",
        seeds=(0,),
        caption=(
            "Output of every block at the last prompt token. The record also holds the silhouette and "
            "the table of cosines and norms that heretic prints, block by block."
        ),
    )


def _line(label: str, held: Sequence[Tensor]) -> Line:
    low, high = interval(d_prime, *held, paired=True).unbind(-1)
    return Line(label, known(d_prime(*held)), known(low), known(high))


def known(values: Tensor) -> list[float | None]:
    """None where every score is the same, so that there is no d′."""
    return [value if isfinite(value) else None for value in values.tolist()]


PLANE_CLAIMS = (
    Claim("across the axis of the means, held-out topics are no further apart than 1 sd",
          "at most", "/groups", 1.0, statistic="projection/d_prime_second_axis"),
    Claim("along it they are at least 1 sd apart",
          "at least", "/groups", 1.0, statistic="projection/d_prime_first_axis"),
)  # fmt: skip


def projection(study: Study) -> FigureRecord:
    """Held-out prompts of one late block: difference of means against the first component across it."""
    report = streams(study, "report")
    blocks = len(report["refuse"])
    block = min(round(SHOWN * blocks), blocks - 1)
    points = plane(*(report[side][block] for side in SIDES))
    groups = [
        Group(label, side[:, 0], side[:, 1])
        for label, side in zip(("beyond the model", "within it"), points, strict=True)
    ]
    return FigureRecord(
        key=f"{KEY}/projection",
        title=f"Held-out prompts at block {block}",
        series=Scatter(
            Axis("along the difference of means"),
            Axis("along the first component across it"),
            groups,
        ),
        claims=PLANE_CLAIMS,
        provenance=study.provenance(hashes(study, "report")),
        n={side: len(rows) for side, rows in zip(SIDES, points, strict=True)},
        seeds=(0,),
        caption="Output of the block at the last prompt token; the origin is halfway between the means.",
    )
