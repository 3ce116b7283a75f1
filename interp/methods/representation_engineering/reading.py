"""Reading a concept from the stream: AUROC and d′ by block, stability of the direction, a block in a plane.

The concept is "beyond this model" against "within it", the classes of the shipped capability pairs,
read at the last prompt token. Directions are fitted on the topics of the fit split and read on those
of the report split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from interp.claims import Claim
from interp.data.prompts import SIDES, PromptSet, load_class
from interp.estimators import ESTIMATORS, LDA, DiffMeans, Estimator, RandomDirection
from interp.evaluate.geometry import (
    auroc,
    cosines,
    d_prime,
    interval,
    plane,
    residual_geometry,
    silhouette,
    split_half_cosine,
)
from interp.methods.representation_engineering.paper import KEY
from interp.records import FigureRecord
from interp.series import (
    Axis,
    Group,
    HeatMap,
    Line,
    Lines,
    MapPanel,
    Mark,
    Names,
    Places,
    Reference,
    Scatter,
)
from interp.statistics.representation_engineering import BASELINE, FIRST_BLOCK, RANDOM_LINE
from interp.study import Study

RANDOM_DRAWS = 20
WITH_INTERVAL = ("difference of means", "LDA")

LINES = {
    "difference of means": "diff-means",
    "LAT (PCA, random order)": "random-order-pca",
    "symmetric PCA": "symmetric-pca",
    "LDA": "lda",
    "logistic regression": "logistic",
    "2-means": "kmeans",
}
"""Line → name of its estimator."""

Streams = dict[str, Float[Tensor, "layers _ d"]]


# --- shared ------------------------------------------------------------------------------------


def prompts(study: Study, split: str) -> dict[str, PromptSet]:
    """Both classes of one split of the capability pairs; row i of one belongs to row i of the other."""
    return {s: load_class(f"capability:{split}", s, limit=study.limit) for s in SIDES}


def streams(study: Study, split: str) -> Streams:
    """The stream after every block at the last prompt token, ``{side: [L, n, d]}``, captured once."""

    def read() -> Streams:
        classes = prompts(study, split)
        return {side: study.lm.residuals(each)[1:].float() for side, each in classes.items()}

    return study.once(f"streams:{split}", read)


def hashes(study: Study, *splits: str) -> dict[str, str]:
    """Hashes of the prompts of some splits, for a record."""
    return {
        f"{split} {side}": chosen.sha256
        for split in splits
        for side, chosen in prompts(study, split).items()
    }


def scores(estimator: Estimator, fit: Streams, report: Streams) -> list[Tensor]:
    """Scores of held-out prompts by block, for each class, ``[L, n]``."""
    fitted = estimator.fit(fit["refuse"], fit["comply"], True)
    return [fitted.score(report[side]) for side in SIDES]


def counts(fit: Streams, report: Streams) -> dict[str, int]:
    """Pairs that directions are fitted on, and pairs that are read."""
    return {"fitted": fit["refuse"].shape[1], "read": report["refuse"].shape[1]}


def by_block(streams: Streams) -> Places:
    """The blocks as positions of lines."""
    return Places("block", values=range(len(streams["refuse"])))


# --- AUROC by block ----------------------------------------------------------------------------

READING_CLAIMS = (
    Claim(f"from block {FIRST_BLOCK} on, the difference of means reads held-out topics at .9 or more",
          "at least", "/lines", 0.9, statistic="reading/difference_of_means_least"),
    Claim("LDA at its best block is at least as good as the difference of means at its own",
          "at least", "/lines", 0.0, statistic="reading/lda_best_beyond_difference_of_means"),
    Claim("on average over blocks, PCA of centred differences reads at least .1 worse",
          "at least", "/lines", 0.1, statistic="reading/centred_pca_mean_shortfall"),
    Claim("a random direction is within .1 of chance on average over blocks",
          "at most", "/lines", 0.1, statistic="reading/random_mean_off_chance"),
)  # fmt: skip


def reading(study: Study) -> FigureRecord:
    """AUROC of every estimator by block, on topics that it was not fitted on."""
    fit, report = streams(study, "fit"), streams(study, "report")
    return FigureRecord(
        key=f"{KEY}/reading",
        title="Reading “beyond this model” at the last prompt token",
        series=Lines(
            by_block(fit),
            Axis("AUROC on held-out topics"),
            reading_lines(fit, report),
            [Mark("y", 0.5, "chance")],
        ),
        claims=READING_CLAIMS,
        provenance=study.provenance(hashes(study, "fit", "report")),
        n=counts(fit, report),
        intervals=f"95 % bootstrap of pairs read; random: 95 % of {RANDOM_DRAWS} draws",
        seeds=(0,),
        caption=(
            "Output of every block; directions from one set of topics, read on another. The sign of "
            "every direction, the random one too, is set by the classes it was fitted on."
        ),
    )


def reading_lines(fit: Streams, report: Streams) -> list[Line]:
    """One line an estimator. Baselines are grey: the renderer has six colours for the others."""
    named = [_line(label, name, fit, report) for label, name in LINES.items()]
    baseline = _line(BASELINE, "pca-diff", fit, report)
    return [_random_line(fit, report), *named, replace(baseline, theirs=True)]


def _line(label: str, estimator: str, fit: Streams, report: Streams) -> Line:
    held = scores(ESTIMATORS[estimator](), fit, report)
    if label not in WITH_INTERVAL:
        return Line(label, auroc(*held))
    return Line(label, auroc(*held), *interval(auroc, *held, paired=True).unbind(-1))


def _random_line(fit: Streams, report: Streams) -> Line:
    """Mean over draws of random directions, with 95 % of the draws."""
    draws = torch.stack(
        [auroc(*scores(RandomDirection(seed), fit, report)) for seed in range(RANDOM_DRAWS)]
    )
    low, high = (torch.quantile(draws, q, dim=0) for q in (0.025, 0.975))
    return Line(RANDOM_LINE, draws.mean(0), low, high, theirs=True)


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

HALF = 64
"""Rows a class in each of the two samples whose directions are compared."""
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


# --- d′ by block -------------------------------------------------------------------------------

APART = {"difference of means": DiffMeans(), "LDA": LDA()}
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
    lines = [_d_primes(name, scores(estimator, fit, report)) for name, estimator in APART.items()]
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


def _d_primes(label: str, held: Sequence[Tensor]) -> Line:
    low, high = interval(d_prime, *held, paired=True).unbind(-1)
    return Line(label, known(d_prime(*held)), known(low), known(high))


def known(values: Tensor) -> list[float | None]:
    """None where every score is the same, so that there is no d′."""
    return [value if isfinite(value) else None for value in values.tolist()]


# --- one block in a plane ----------------------------------------------------------------------

SHOWN = 0.8
"""Relative depth of the block that the plane shows."""
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
