"""What each change to heretic's way of finding a direction does, one at a time.

The edit is partial ablation at the block, blocks and strength that the frontier chose for it, with
everything else as it is; only the named step differs. Fitted on fit, measured on report of the
shipped split.
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
from interp.evaluate.refusal import generate_and_judge
from interp.methods.refusal import Fitted
from interp.methods.refusal.fit import OPENING
from interp.methods.representation_engineering.contenders import (
    CLOSED,
    FIRST_TOKEN,
    MAIN,
    PARTIAL,
    Candidate,
    Maker,
)
from interp.methods.representation_engineering.paper import KEY
from interp.methods.representation_engineering.seed_run import SeedRun
from interp.records import FigureRecord
from interp.samples import DECISION, OPENER
from interp.series import Axis, Row
from interp.series import Rows as RowSeries
from interp.sites import Site
from interp.statistics.representation_engineering import PLAIN
from interp.study import Study
from interp.types import Direction, WeightDelta

WINSOR = 0.995
PRESERVED = 8
"""Principal components of the comply rows that one variant leaves alone."""

Rows = tuple[Tensor, Tensor]
"""Refuse and comply rows of one block, ``[n, d_model]`` each."""


def projected(estimator: Estimator | None = None, *stages: Any) -> Chain:
    return Chain([*stages, OrthogonaliseTo("mean")], estimator)


ESTIMATORS: Mapping[str, Callable[[], Estimator]] = {
    PLAIN: projected,
    "not projected off the comply mean": DiffMeans,
    f"winsorised at {WINSOR}": lambda: projected(None, Winsorise(WINSOR)),
    "geometric medians": lambda: projected(DiffMeans("geometric median")),
    "trimmed means": lambda: projected(DiffMeans("trimmed")),
    f"off {PRESERVED} comply components": lambda: projected(
        None, OrthogonaliseTo("components", PRESERVED)
    ),
}
"""Ways to read a direction from the same rows."""
OPERATORS = {
    "to the comply level (ACE)": "to the comply level",
    "column norms kept": "norms kept (columns)",
    "two directions": "two directions",
}
"""Ways to use the direction of heretic's way: the frontier's contenders."""
FILTERED = "refused requests alone"
UNMATCHED = "comply prompts without twins"
DISCRIMINANT = "LDA written as it reads"
OPENED = "read after the opener"
OWN = "each block's own direction"
SHRUNK = "strengths shrunk by split-half cosine"


def variants(run: SeedRun) -> dict[str, Callable[[], WeightDelta]]:
    """Name of a change → the edit with that change alone; nothing is fitted before one is made."""
    chosen = run.chosen(PARTIAL)

    def along(make: Callable[[], Estimator], **how: Any) -> WeightDelta:
        return fitted_with(
            run.maker, chosen, rows_of_block(run.maker.fitted, chosen.block), make, **how
        )

    def of_rows(choose: Callable[[Rows], Rows]) -> WeightDelta:
        rows = rows_of_block(run.maker.fitted, chosen.block)
        return fitted_with(run.maker, chosen, choose(rows), projected)

    def shrunk() -> WeightDelta:
        maker = run.maker
        return by_block(maker, chosen, maker.direction(chosen), reliable(maker))

    found: dict[str, Callable[[], WeightDelta]] = {
        name: partial(along, make) for name, make in ESTIMATORS.items()
    }
    found[FILTERED] = lambda: of_rows(lambda rows: (rows[0][_refused(run)], rows[1]))
    found[UNMATCHED] = lambda: of_rows(lambda rows: (rows[0], _pool(run, chosen.block)))
    found[DISCRIMINANT] = partial(along, LDA, read=True)
    found[OWN] = lambda: by_block(run.maker, chosen, run.maker.fitted.directions[DECISION])
    found[SHRUNK] = shrunk
    if run.opener:
        found[OPENED] = lambda: _opened(run.maker)(chosen)
    for name, contender in OPERATORS.items():
        found[name] = partial(_made, run, replace(chosen, name=contender))
    return found


def _made(run: SeedRun, candidate: Candidate) -> WeightDelta:
    return run.maker(candidate)


def _opened(maker: Maker) -> Maker:
    """With the directions that were read once the opener had been said."""
    directions = {DECISION: maker.fitted.directions[OPENER]}
    return replace(maker, fitted=replace(maker.fitted, directions=directions))


def rows_of_block(fitted: Fitted, block: int) -> Rows:
    """Outputs of a block, of both classes."""
    site = Site.resid_post(block)
    return fitted.samples.rows(site, True).float(), fitted.samples.rows(site, False).float()


def fitted_with(
    maker: Maker,
    chosen: Candidate,
    rows: Rows,
    make: Callable[[], Estimator],
    *,
    read: bool = False,
) -> WeightDelta:
    """The chosen ablation along a direction that is found otherwise. read: along the reading vector."""
    found = make().fit(*rows)
    vector = torch.nn.functional.normalize(found.read_, dim=-1) if read else found.unit_
    direction = Direction(vector.float(), chosen.block, type(found).__name__, 1.0)
    fitted = replace(maker.fitted, directions={DECISION: {chosen.block: direction}})
    return replace(maker, fitted=fitted)(chosen)


def by_block(
    maker: Maker,
    chosen: Candidate,
    direction: Direction | Mapping[int, Direction],
    shares: Mapping[int, float] | None = None,
) -> WeightDelta:
    """The chosen ablation with a direction, or a share of the strength, for every block."""
    lm, blocks = maker.lm, maker.blocks(chosen)
    strength = {b: chosen.strength * (shares[b] if shares else 1.0) for b in blocks}
    edit = ablation(lm.hf, lm.anatomy, direction, strength=strength, blocks=blocks)
    return lm.to_delta(edit)


def reliable(maker: Maker) -> dict[int, float]:
    """Cosine between the directions of two halves of the fit, by block."""
    by_block = [rows_of_block(maker.fitted, block) for block in range(maker.lm.n_blocks)]
    sides = [torch.stack(rows) for rows in zip(*by_block, strict=True)]
    n = min(len(rows) for rows in (sides[0][0], sides[1][0])) // 2
    return dict(enumerate(split_half_cosine(DiffMeans(), sides[0], sides[1], n).tolist()))


def _refused(run: SeedRun) -> Tensor:
    """Which requests of the whole fit the unedited model refuses; all where it refuses none."""
    study = run.study
    prompts = run.parts.fit[0].prompts + run.parts.broad[0].prompts

    def ask() -> list[bool]:
        return list(generate_and_judge(study.lm, prompts, tokens=OPENING).refused)

    refused = torch.tensor(study.resumed("flags-refused", ask, prompts=run.parts.hashes))
    return refused if refused.any() else torch.ones_like(refused)


def _pool(run: SeedRun, block: int) -> Tensor:
    """Rows of the pool, as many as there are comply prompts: same class, other topics and forms."""
    most = len(run.parts.fit[1]) + len(run.parts.broad[1])
    site = Site.resid_post(block)
    return run.study.lm.activations(run.parts.pool.prompts[:most], site)[site].float()


def measured(run: SeedRun, delta: WeightDelta) -> dict[str, float]:
    """Share of report requests refused, and first-token KL on their twins."""
    answers = generate_and_judge(run.study.lm, run.parts.report[0], delta, tokens=OPENING)
    return {"refused": answers.count / len(answers.texts), "kl1": run.first_kl(delta)}


def measured_variant(run: SeedRun, name: str) -> dict[str, float]:
    """What :func:`measured` says of one of the :func:`variants`."""
    return measured(run, variants(run)[name]())


def flags(study: Study) -> FigureRecord:
    """One row a change: requests left refused and first-token KL, heretic's way first."""
    run = SeedRun(study, 0)
    made = variants(run)
    progress = study.watch("flags", len(made))
    table: dict[str, dict[str, float]] = {}
    for name in made:
        table[name] = study.resumed(
            "flags",
            partial(measured_variant, run, name),
            name=name,
            setting=asdict(run.chosen(PARTIAL)),
            opener=run.opener,
            prompts=run.parts.hashes,
        )
        progress(1)
    for name in (FIRST_TOKEN, CLOSED, MAIN):
        ours = run.points(name)[-1]
        table[name] = {measure: ours[measure] for measure in ("refused", "kl1")}
    columns = [Axis("refused", "%", limits=(0, 100)), Axis("KL₁", "nats", "log")]
    rows = [Row(n, [100 * v["refused"], v["kl1"]]) for n, v in table.items()]
    return FigureRecord(
        key=f"{KEY}/flags",
        title="Changes to heretic's direction, one at a time",
        series=RowSeries(columns, rows),
        claims=CLAIMS,
        provenance=study.provenance(run.parts.hashes),
        n={
            side: len(part)
            for side, part in zip(("refuse", "comply"), run.parts.report, strict=True)
        },
        seeds=(0,),
        caption=(
            f"Ablation of strength {run.chosen(PARTIAL).strength:g} from block "
            f"{run.chosen(PARTIAL).first} on; last rows: the least-disturbance edits as the frontier "
            "chose them."
        ),
    )


CLAIMS = (
    Claim("at least one change is better on one count and no worse on the other",
          "at least", "/rows", 1, statistic="flags/better_count"),
    Claim("none that leaves as few refused, within 5 points, comes within three times the first-token KL "
          "of least disturbance",
          "at most", "/rows", 1 / 3, statistic="flags/kl1_share_of_ours_in_cheapest"),
)  # fmt: skip
