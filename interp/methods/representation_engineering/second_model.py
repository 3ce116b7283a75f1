"""The bar on a second model: whether what was developed on one model holds on another.

Nothing is tuned on the second model: contenders, grids and the rule that chooses are those of the frontier.
"""

from __future__ import annotations

from interp.claims import Claim
from interp.methods.representation_engineering.contenders import CLOSED, MAIN, RANDOM
from interp.methods.representation_engineering.frontier import BAR_COLUMNS, NEW_TEXT, bar_row
from interp.methods.representation_engineering.paper import KEY
from interp.methods.representation_engineering.seed_run import FULL, SeedRun
from interp.records import FigureRecord
from interp.series import Row, Rows
from interp.statistics.representation_engineering import WHOLE_STACK
from interp.study import Study

CONTENDERS = (*WHOLE_STACK, CLOSED, MAIN, RANDOM)
CLAIMS = (
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
    run = SeedRun(study, FULL, names=CONTENDERS, factors=())
    base = {**run.base(), "kl1": None, "kl32": None}
    last = {name: run.points(name)[-1] for name in run.contenders}
    rows = {"original": base, **last}
    return FigureRecord(
        key=f"{KEY}/bar_coder",
        title=f"Edits of {study.model} on the shipped report split",
        series=Rows(
            BAR_COLUMNS,
            [Row(name, bar_row(point)) for name, point in rows.items()],
            beside={"examples": {name: point["examples"] for name, point in rows.items()}},
        ),
        claims=CLAIMS,
        provenance=study.provenance(run.parts.hashes),
        n={"refuse": len(run.parts.report[0]), "comply": len(run.parts.report[1])},
        seeds=(FULL,),
        caption=(
            "Fitted on fit, chosen on select, measured on report; nothing is tuned on this model. "
            f"{NEW_TEXT}"
        ),
    )
