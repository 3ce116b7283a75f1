"""How stable the difference of means is: over blocks, and over samples of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.claims import Claim
from interp.estimators import DiffMeans
from interp.evaluate.geometry import cosines, split_half_cosine
from interp.methods.representation_engineering.paper import KEY
from interp.methods.representation_engineering.reading import (
    SIDES,
    Streams,
    by_block,
    hashes,
    streams,
)
from interp.records import FigureRecord
from interp.series import Axis, HeatMap, Line, Lines, MapPanel, Names, Reference
from interp.study import Study

HALF = 64
"""Rows a class in each of the two samples whose directions are compared."""


# --- cosines between blocks --------------------------------------------------------------------

COSINES_CLAIMS = (
    Claim("read before the final norm, the last block's direction has cosine .76 or more with its "
          "neighbour's",
          "at least", "/panels", 0.76, statistic="cosines/last_with_neighbour"),
    Claim("read after the final norm, as the last of transformers' hidden states, it has less",
          "at least", "/panels", 0.0, statistic="cosines/lost_by_final_norm"),
    Claim("directions grow unlike each other with distance: the first and last blocks are less alike "
          "than neighbours are on average",
          "at least", "/panels", 0.0, statistic="cosines/neighbours_beyond_ends"),
)  # fmt: skip


def cosines_by_block(study: Study) -> FigureRecord:
    """Cosines between the difference-of-means directions of all blocks."""
    fit = streams(study, "fit")
    units = DiffMeans().fit(fit["refuse"], fit["comply"]).unit_
    values = cosines(units)
    normed = cosines(torch.stack([units[-2], _after_final_norm(study, fit)]))[0, 1].item()
    blocks = Names("block", [str(block) for block in range(len(values))])
    mark = Reference(normed, "last two, after the final norm")
    return FigureRecord(
        key=f"{KEY}/cosines",
        title="Cosines between the directions of different blocks",
        series=HeatMap(
            columns=blocks,
            rows=blocks,
            panels=[MapPanel("cosine", values, map="diverging", limits=(-1, 1), reference=mark)],
        ),
        claims=COSINES_CLAIMS,
        provenance=study.provenance(hashes(study, "fit")),
        n={"fitted": fit["refuse"].shape[1]},
        caption=(
            "Difference of means at the last prompt token, at the output of every block, before the "
            "final norm."
        ),
    )


@torch.no_grad()
def _after_final_norm(study: Study, fit: Streams) -> Float[Tensor, " d"]:
    """The last block's direction when its output is read behind the model's final norm."""
    norm = study.lm.hf.get_submodule(study.lm.anatomy.final_norm)
    like = next(norm.parameters())
    pos, neg = (norm(fit[side][-1].to(like)).float().cpu() for side in SIDES)
    return DiffMeans().fit(pos, neg).unit_


# --- stability ---------------------------------------------------------------------------------

STABILITY_CLAIMS = (
    Claim("in the upper half of the blocks two disjoint samples give directions with cosine .9 or more",
          "at least", "/lines", 0.9, statistic="stability/split_half_upper_least"),
)  # fmt: skip


def stability(study: Study) -> FigureRecord:
    """Split-half and neighbouring-block cosines of the difference of means."""
    fit, select = streams(study, "fit"), streams(study, "select")
    both = {side: torch.cat([fit[side], select[side]], 1) for side in SIDES}
    seeds = tuple(range(study.seeds))
    lines = [_split_half(both, HALF, seeds), _split_half(fit, HALF, seeds), _neighbours(fit)]
    return FigureRecord(
        key=f"{KEY}/stability",
        title="How stable the difference of means is",
        series=Lines(by_block(fit), Axis("cosine"), lines),
        claims=STABILITY_CLAIMS,
        provenance=study.provenance(hashes(study, "fit", "select")),
        n={"fit": fit["refuse"].shape[1], "fit and select": both["refuse"].shape[1]},
        intervals=f"least and greatest of {len(seeds)} splits",
        seeds=seeds,
        caption=(
            "Difference of means: two disjoint samples of pairs at one block, and two neighbouring "
            "blocks on the same pairs."
        ),
    )


def _split_half(rows: Streams, most: int, seeds: Sequence[int]) -> Line:
    n = min(most, rows["refuse"].shape[1] // 2)
    draws = torch.stack(
        [split_half_cosine(DiffMeans(), rows["refuse"], rows["comply"], n, seed) for seed in seeds]
    )
    return Line(f"two samples of {n} pairs each", draws.mean(0), draws.amin(0), draws.amax(0))


def _neighbours(fit: Streams) -> Line:
    values = cosines(DiffMeans().fit(fit["refuse"], fit["comply"]).unit_).diagonal(1).tolist()
    return Line("this block and the one before", [None, *values])
