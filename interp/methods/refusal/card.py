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
        n={"refuse": rows[0].n_refuse, "comply": rows[0].n_comply},
        intervals="95 % Wilson; KL ± 1 standard error",
        seeds=(provenance.seed,),
        caption="Fitted and chosen on other topics. KL₃₂ and NLL are per token.",
    )


def _figure_row(row: BenchRow) -> Row:
    refused, over = row.refusals / row.n_refuse, row.over_refusals / row.n_comply
    return Row(
        row.name,
        [100 * refused, 100 * over, row.kl_first, row.kl_continuation, row.nll],
        low=[
            100 * row.refusal_interval[0],
            100 * row.over_refusal_interval[0],
            max(row.kl_first - row.kl_first_se, 0.0),
            max(row.kl_continuation - row.kl_continuation_se, 0.0),
            None,
        ],
        high=[
            100 * row.refusal_interval[1],
            100 * row.over_refusal_interval[1],
            row.kl_first + row.kl_first_se,
            row.kl_continuation + row.kl_continuation_se,
            None,
        ],
    )
