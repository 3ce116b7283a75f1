"""The effect of each change to the way in which heretic finds and uses a direction, one at a time.

The edit is partial ablation with the setting that the frontier chose for it; only the named step differs.
Fitted on fit, measured on report of the shipped split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.claims import Claim
from interp.edits import ablation
from interp.estimators import LDA, Chain, DiffMeans, Estimator, OrthogonaliseTo, Winsorise
from interp.evaluate.geometry import split_half_cosine
from interp.methods.refusal import Fitted
from interp.methods.representation_engineering.contenders import (
    CLOSED,
    FIRST_TOKEN,
    LEVEL,
    MAIN,
    NORMS,
    PARTIAL,
    TWO,
    Maker,
    Setting,
)
from interp.methods.representation_engineering.seed_run import FULL, SeedRun
from interp.records import FigureRecord
from interp.samples import DECISION, OPENER
from interp.series import Axis, Row
from interp.series import Rows as RowSeries
from interp.sites import Site
from interp.statistics.representation_engineering import PLAIN
from interp.study import Study
from interp.types import Direction, WeightDelta
from interp.watching import counted

WINSOR = 0.995
PRESERVED = 8
"""Principal components of the comply rows that one change keeps unchanged."""
AFTER_OPENER = "read after the opener"

Rows = tuple[Tensor, Tensor]
"""Refuse and comply rows of one block, ``[n, d_model]`` each."""
Change = Callable[[SeedRun, Setting], WeightDelta]
"""Makes the changed edit at the setting that was chosen for partial ablation."""


def projected(estimator: Estimator | None = None, *stages: Any) -> Chain:
    """An estimator whose direction is made orthogonal to the comply mean."""
    return Chain([*stages, OrthogonaliseTo("mean")], estimator)


def rows_of_block(fitted: Fitted, block: int) -> Rows:
    """Outputs of a block at the decision position, of both classes."""
    site = Site.resid_post(block)
    return fitted.samples.rows(site, True).float(), fitted.samples.rows(site, False).float()


def with_directions(maker: Maker, directions: Mapping[int, Direction]) -> Maker:
    """A maker of edits along other directions."""
    return replace(maker, fitted=replace(maker.fitted, directions={DECISION: directions}))


def fitted_with(
    maker: Maker, chosen: Setting, rows: Rows, estimator: Estimator, *, read: bool = False
) -> WeightDelta:
    """Ablation along the direction that an estimator finds. read: along its reading vector."""
    found = estimator.fit(*rows)
    vector = torch.nn.functional.normalize(found.read_, dim=-1) if read else found.unit_
    direction = Direction(vector.float(), chosen.block, type(found).__name__, 1.0)
    return with_directions(maker, {chosen.block: direction})(chosen)


def by_block(
    maker: Maker,
    chosen: Setting,
    direction: Direction | Mapping[int, Direction],
    shares: Mapping[int, float] | None = None,
) -> WeightDelta:
    """Ablation with a direction, or a share of the strength, for every block."""
    lm, blocks = maker.lm, maker.blocks(chosen)
    strength = {b: chosen.strength * (shares[b] if shares else 1.0) for b in blocks}
    edit = ablation(lm.hf, lm.anatomy, direction, strength=strength, blocks=blocks)
    return lm.to_delta(edit)


def reliable(maker: Maker) -> dict[int, float]:
    """Cosine between the directions of two halves of the fit, by block."""
    rows = [rows_of_block(maker.fitted, block) for block in range(maker.lm.n_blocks)]
    positive, negative = (torch.stack(side) for side in zip(*rows, strict=True))
    n = min(positive.shape[1], negative.shape[1]) // 2
    return dict(enumerate(split_half_cosine(DiffMeans(), positive, negative, n).tolist()))


# --- the changes -------------------------------------------------------------------------------


def estimated(make: Callable[[], Estimator], *, read: bool = False) -> Change:
    """Another estimator on the same rows."""

    def change(run: SeedRun, chosen: Setting) -> WeightDelta:
        rows = rows_of_block(run.maker.fitted, chosen.block)
        return fitted_with(run.maker, chosen, rows, make(), read=read)

    return change


def made_as(name: str) -> Change:
    """Another operator along the same direction: that of one of the contenders."""
    return lambda run, chosen: run.maker(replace(chosen, name=name))


def refused_alone(run: SeedRun, chosen: Setting) -> WeightDelta:
    """Fitted on the requests that the unedited model refuses."""
    fitted = run.maker.fitted
    return replace(run.maker, fitted=fitted.of(fitted.requests, fitted.answered))(chosen)


def unmatched(run: SeedRun, chosen: Setting) -> WeightDelta:
    """Fitted on as many comply prompts of other topics and forms as there are twins."""
    twins = len(run.parts.fit[1]) + len(run.parts.broad[1])
    site = Site.resid_post(chosen.block)
    comply = run.study.lm.activations(run.parts.pool.prompts[:twins], site)[site].float()
    refuse, _ = rows_of_block(run.maker.fitted, chosen.block)
    return fitted_with(run.maker, chosen, (refuse, comply), projected())


def shrunk(run: SeedRun, chosen: Setting) -> WeightDelta:
    """The strength of each block times its split-half cosine."""
    maker = run.maker
    return by_block(maker, chosen, maker.fitted.direction(chosen.block), reliable(maker))


CHANGES: dict[str, Change] = {
    PLAIN: estimated(projected),
    "not projected off the comply mean": estimated(DiffMeans),
    f"winsorised at {WINSOR}": estimated(lambda: projected(None, Winsorise(WINSOR))),
    "geometric medians": estimated(lambda: projected(DiffMeans("geometric median"))),
    "trimmed means": estimated(lambda: projected(DiffMeans("trimmed"))),
    f"off {PRESERVED} comply components": estimated(
        lambda: projected(None, OrthogonaliseTo("components", PRESERVED))
    ),
    "refused requests alone": refused_alone,
    "comply prompts without twins": unmatched,
    "LDA written as it reads": estimated(LDA, read=True),
    "each block's own direction": lambda run, chosen: by_block(
        run.maker, chosen, run.maker.fitted.directions[DECISION]
    ),
    "strengths shrunk by split-half cosine": shrunk,
    AFTER_OPENER: lambda run, chosen: with_directions(
        run.maker, run.maker.fitted.directions[OPENER]
    )(chosen),
    "to the comply level (ACE)": made_as(LEVEL),
    "column norms kept": made_as(NORMS),
    "two directions": made_as(TWO),
}


def changes(run: SeedRun) -> dict[str, Change]:
    """Name of a change → the change, for all that the model allows."""
    return {name: change for name, change in CHANGES.items() if name != AFTER_OPENER or run.opener}


def measured(run: SeedRun, name: str) -> dict[str, float]:
    """Share of report requests refused, and first-token KL on their twins, with one change."""
    return run.short(CHANGES[name](run, run.chosen(PARTIAL)))


def flags(study: Study) -> FigureRecord:
    """One row a change: requests left refused and first-token KL, heretic's way first."""
    run = SeedRun(study, FULL)
    chosen, names = run.chosen(PARTIAL), list(changes(run))
    about = {"setting": asdict(chosen), "opener": run.opener, "prompts": run.parts.hashes}
    table: dict[str, dict[str, float]] = {
        name: study.resumed("flags", partial(measured, run, name), name=name, **about)
        for name in counted(study.watch, "flags", names)
    }
    table |= {name: run.points(name)[-1] for name in (FIRST_TOKEN, CLOSED, MAIN)}
    columns = [Axis("refused", "%", limits=(0, 100)), Axis("KL₁", "nats", "log")]
    rows = [Row(name, [100 * found["refused"], found["kl1"]]) for name, found in table.items()]
    return run.record(
        "flags",
        "Changes to heretic's direction, one at a time",
        RowSeries(columns, rows),
        claims=CLAIMS,
        caption=(
            f"Ablation of strength {chosen.strength:g} from block {chosen.first} on; last rows: the "
            "least-disturbance edits as the frontier chose them."
        ),
    )


CLAIMS = (
    Claim("at least one change is better on one count and no worse on the other",
          "at least", "/rows", 1, statistic="flags/better_count"),
    Claim("none that leaves as few refused, within 5 points, comes within three times the first-token KL "
          "of least disturbance",
          "at most", "/rows", 1 / 3, statistic="flags/kl1_share_of_ours_in_cheapest"),
)  # fmt: skip
