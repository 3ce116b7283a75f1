"""Estimators on planted data: two Gaussian classes whose difference is known. No model.

Rows of the classes are ``±δ/2`` plus noise of variance σ² = 1 in each of d coordinates; a nuisance
is one direction across δ in which the noise has a larger standard deviation instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.claims import Claim
from interp.estimators import ESTIMATORS
from interp.methods.representation_engineering.paper import KEY
from interp.records import FigureRecord, Provenance
from interp.series import Axis, Line, Lines, Mark, Places
from interp.statistics.representation_engineering import PREDICTION
from interp.study import Study

WIDTH = 128
SHIFTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""‖δ‖/σ."""
ROWS, DRAWS = 64, 100
"""Rows a class and draws of the isotropic figure: few rows, so that the noise of the means shows."""
NUISANCES = (4.0, 8.0)
NUISANCE_SHIFTS = (2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 11.0, 12.0, 14.0, 16.0)
NUISANCE_ROWS, NUISANCE_DRAWS = 4096, 10
"""Many rows, since the transition is a statement about the limit of many pairs."""
LEVELS = (0.025, 0.975)
Y = Axis("cosine with the planted direction", limits=(-0.15, 1.05))

ISOTROPIC = {
    "difference of means": "diff-means",
    "symmetric PCA": "symmetric-pca",
    "LAT (PCA, random order)": "random-order-pca",
    "centred PCA (known to fail)": "pca-diff",
    "LDA, read direction": "lda",
    "logistic, read direction": "logistic",
}
"""Line → name of its estimator."""
BANDLESS = ("LAT (PCA, random order)", "LDA, read direction")
"""Their intervals lie on those of symmetric PCA and of the means."""

Batch = Float[Tensor, "draws n d"]


def predicted_cosine(shift: float, d: int, n_pos: int, n_neg: int, sigma: float = 1.0) -> float:
    """``1/√(1 + dσ²(1/n⁺ + 1/n⁻)/‖δ‖²)``: cosine of the difference of means with δ, isotropic noise."""
    return 1.0 / sqrt(1.0 + d * sigma**2 * (1 / n_pos + 1 / n_neg) / shift**2)


def threshold(nuisance: float) -> float:
    """‖δ‖/σ at which ‖δ‖² is the largest eigenvalue of Cov D, D the difference of two such rows."""
    return sqrt(2.0) * max(nuisance, 1.0)


def plant(
    shift: float, rows: int, draws: int, *, nuisance: float = 1.0, d: int = WIDTH, seed: int = 0
) -> tuple[Batch, Batch, Float[Tensor, "draws d"]]:
    """Both classes, a draw on every layer, and the unit directions planted in them."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(draws, d, 2, generator=generator)).Q
    planted, across = frame[..., 0], frame[..., 1]
    sides = []
    for sign in (0.5, -0.5):
        noise = torch.randn(draws, rows, d, generator=generator)
        along = noise @ across[..., None]
        noise += (nuisance - 1.0) * along * across[:, None]
        sides.append(noise + sign * shift * planted[:, None])
    return sides[0], sides[1], planted


def recovered(
    estimator: str, sides: tuple[Batch, Batch], planted: Float[Tensor, "draws d"]
) -> Float[Tensor, " draws"]:
    """Cosine of an estimator's reading direction with the planted one, by draw."""
    read = ESTIMATORS[estimator]().fit(*sides, True).read_.double()
    return (read * planted).sum(-1) / read.norm(dim=-1)


def _line(label: str, cosines: Sequence[Tensor]) -> Line:
    """Mean over draws at every place, with the interval that holds 95 % of the draws."""
    low, high = ([torch.quantile(c, q).item() for c in cosines] for q in LEVELS)
    return Line(label, [c.mean().item() for c in cosines], low, high)


def _record(name: str, title: str, series: Lines, **more: Any) -> FigureRecord:
    provenance = Provenance.collect("planted data", seed=0)
    return FigureRecord(f"{KEY}/{name}", title, series, provenance, seeds=(0,), **more)


# --- isotropic noise ---------------------------------------------------------------------------

PLANTED_CLAIMS = (
    Claim("the difference of means is within .02 of its closed form at every shift",
          "at most", "/lines", 0.02, statistic="planted/means_off_prediction"),
    Claim("PCA of centred differences stays under .3",
          "at most", "/lines", 0.3, statistic="planted/centred_pca_most"),
)  # fmt: skip


def planted(study: Study) -> FigureRecord:
    """Cosine of every estimator with the planted direction, isotropic noise, few rows."""
    return _record(
        "planted",
        "Finding a planted direction in isotropic noise",
        Lines(Places("class shift ‖δ‖", "σ", values=SHIFTS), Y, isotropic_lines()),
        claims=PLANTED_CLAIMS,
        n={"a class": ROWS},
        intervals=f"95 % of {DRAWS} draws",
        caption=(
            f"d = {WIDTH}. The difference of means follows its closed form; PCA needs a larger "
            "shift, and PCA of centred differences finds nothing at any."
        ),
    )


def isotropic_lines(draws: int = DRAWS, estimators: Mapping[str, str] = ISOTROPIC) -> list[Line]:
    """One line an estimator, and the closed form (dashed)."""
    data = [plant(shift, ROWS, draws, seed=i) for i, shift in enumerate(SHIFTS)]
    lines = [
        _line(label, [recovered(name, (pos, neg), truth) for pos, neg, truth in data])
        for label, name in estimators.items()
    ]
    values = [predicted_cosine(shift, WIDTH, ROWS, ROWS) for shift in SHIFTS]
    lines = [Line(line.label, line.values) if line.label in BANDLESS else line for line in lines]
    return [*lines, Line(PREDICTION, values, theirs=True)]


# --- a nuisance direction ----------------------------------------------------------------------

NUISANCE_CLAIMS = (
    Claim("symmetric PCA stays below .5 wherever the nuisance variance of differences exceeds ‖δ‖²",
          "at most", "", 0.5, statistic="planted_nuisance/symmetric_pca_most_below"),
    Claim("and is above .9 wherever it does not",
          "at least", "", 0.9, statistic="planted_nuisance/symmetric_pca_least_above"),
    Claim("the difference of means is above .9 at every shift and nuisance",
          "at least", "", 0.9, statistic="planted_nuisance/means_least"),
    Claim("PCA of centred differences stays under .3",
          "at most", "", 0.3, statistic="planted_nuisance/centred_pca_most"),
)  # fmt: skip
METHODS = {"means": "diff-means", "symmetric PCA": "symmetric-pca", "centred PCA": "pca-diff"}
"""Method → name of its estimator."""


def planted_nuisance(study: Study) -> FigureRecord:
    """The transition of symmetric PCA where ‖δ‖² passes the nuisance's variance in differences."""
    marks = [Mark("x", threshold(sd), f"threshold, sd {sd:g}") for sd in NUISANCES]
    places = Places("class shift ‖δ‖", "σ", values=NUISANCE_SHIFTS)
    return _record(
        "planted_nuisance",
        "Finding a planted direction beside a louder one",
        Lines(places, Y, nuisance_lines(), marks),
        claims=NUISANCE_CLAIMS,
        n={"a class": NUISANCE_ROWS},
        intervals=f"95 % of {NUISANCE_DRAWS} draws",
        caption=(
            f"d = {WIDTH}; one direction has noise of the sd given. Symmetric PCA takes it for the "
            "shift until ‖δ‖² exceeds its variance in differences, 2 sd²; the means do not."
        ),
    )


def nuisance_lines(draws: int = NUISANCE_DRAWS) -> list[Line]:
    """Lines by method, a nuisance each; the data of a nuisance are the same for all methods."""
    found: dict[tuple[str, float], list[Tensor]] = {}
    for sd in NUISANCES:
        for i, shift in enumerate(NUISANCE_SHIFTS):
            pos, neg, truth = plant(shift, NUISANCE_ROWS, draws, nuisance=sd, seed=i)
            for name, estimator in METHODS.items():
                found.setdefault((name, sd), []).append(recovered(estimator, (pos, neg), truth))
    return [_line(f"{n}, sd {sd:g}", found[n, sd]) for n in METHODS for sd in NUISANCES]
