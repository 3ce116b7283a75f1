"""Reading a concept from the stream: how well each estimator does by block.

The concept is "beyond this model" against "within it", the classes of the shipped capability pairs,
read at the last prompt token. Directions are fitted on the topics of the fit split and read on those
of the report split.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.claims import Claim
from interp.data.prompts import SIDES, PromptSet, load_class
from interp.estimators import ESTIMATORS, Estimator, RandomDirection
from interp.evaluate.geometry import auroc, interval
from interp.methods.representation_engineering.paper import KEY
from interp.records import FigureRecord
from interp.series import Axis, Line, Lines, Mark, Places
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


# --- shared by the figures of this module, separation and stability ----------------------------


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
