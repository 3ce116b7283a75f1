"""The report figure of the refusal pipeline: its rows, what it claims, and which edits rest on it."""

from __future__ import annotations

from collections.abc import Sequence

from interp.claims import Claim
from interp.evaluate.measure import BenchRow
from interp.records import FigureRecord, Provenance
from interp.series import Axis, Row, Rows

CLAIMS = (
    Claim("the least-disturbance edit removes at least half of the refusals",
          "at most", "/rows", 0.5, statistic="report/refused_share_left"),
    Claim("and so does directional ablation",
          "at most", "/rows", 0.5, statistic="report/ablated_share_left"),
    Claim("a random direction of equal norm leaves at least four in five",
          "at least", "/rows", 0.8, statistic="report/random_share_left"),
    Claim("it leaves no more refusals than directional ablation, within 5 points",
          "at most", "/rows", 0.0, 5.0, statistic="report/refused_beyond_ablation"),
    Claim("at no more than a third of its first-token KL",
          "at most", "/rows", 1 / 3, statistic="report/kl1_share_of_ablation"),
    Claim("and no more answerable requests are refused than before, within 5 points",
          "at most", "/rows", 0.0, 5.0, statistic="report/over_refused_beyond_original"),
)  # fmt: skip


def report_figure(
    rows: Sequence[BenchRow], provenance: Provenance, proves: Sequence[str] = ()
) -> FigureRecord:
    """The before/after table as a figure: refusals and over-refusals with Wilson intervals, and costs.

    proves: kinds of recipe of the edits that its claims are about.
    """
    columns = [
        Axis("refused", "%", limits=(0, 100)),
        Axis("over-refused", "%", limits=(0, 100)),
        Axis("KL₁", "nats", "log"),
        Axis("KL₃₂", "nats", "log"),
        Axis("neutral NLL", "nats"),
    ]
    return FigureRecord(
        key="refusal/report",
        title=f"Edits of {provenance.model} on held-out requests",
        series=Rows(columns, [_figure_row(row) for row in rows]),
        claims=CLAIMS,
        proves=tuple(proves),
        provenance=provenance,
        n={"refuse": rows[0].positive.n, "comply": rows[0].negative.n},
        intervals="95 % Wilson; KL ± 1 standard error",
        seeds=(provenance.seed,),
        caption="Fitted and chosen on other topics. KL₃₂ and NLL are per token.",
    )


def _figure_row(row: BenchRow) -> Row:
    kl, sides = row.divergence, (row.positive, row.negative)
    nats = ((kl.first, kl.first_se), (kl.continuation, kl.continuation_se))
    low, high = ([100 * side.interval[end] for side in sides] for end in (0, 1))
    return Row(
        row.name,
        [*(100 * side.share for side in sides), kl.first, kl.continuation, row.nll],
        low=[*low, *(max(mean - error, 0.0) for mean, error in nats), None],
        high=[*high, *(mean + error for mean, error in nats), None],
    )
