"""How well a judge agrees with labelled examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from interp.errors import JudgeError
from interp.judges.protocol import Judge, finite

CONFIDENCE = 0.95
RESAMPLES = 1000
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of a judge's scores with labels, over the responses that have a score.

    auc: probability that a positive example scores higher than a negative one, ties counting half, with a
    percentile bootstrap interval (each class resampled). accuracy: share of responses on the right side of
    ``threshold``, with a Wilson interval. Both intervals are of 95 %; that of an AUC is None for fewer
    than two examples of a class.
    """

    judge: str
    auc: float
    auc_interval: Interval | None
    accuracy: float
    accuracy_interval: Interval
    threshold: float
    n_positive: int
    n_negative: int
    n_unscorable: int

    @property
    def n_scored(self) -> int:
        return self.n_positive + self.n_negative

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        between = "" if self.auc_interval is None else " ({:.3f}–{:.3f})".format(*self.auc_interval)
        low, high = self.accuracy_interval
        return (
            f"{self.judge}: AUC {self.auc:.3f}{between}, accuracy {self.accuracy:.3f} ({low:.3f}–{high:.3f}) "
            f"at {self.threshold:g}; {self.n_positive} positive and {self.n_negative} negative examples, "
            f"{self.n_unscorable} unscorable"
        )


def agreement(
    judge: Judge,
    prompts: Sequence[str],
    responses: Sequence[str],
    labels: Sequence[bool],
    *,
    threshold: float | None = None,
) -> Agreement:
    """Agreement of ``judge`` with ``labels``, one per response: whether it shows what is judged.

    threshold: score from which a response counts as positive; None for the judge's own. Responses without
    a score are left out and counted. Raises JudgeError where a class has no scored example.
    """
    from sklearn.metrics import roc_auc_score

    if len(labels) != len(responses):
        raise JudgeError(f"{len(labels)} labels for {len(responses)} responses: give one each")
    scores = [finite(score) for score in judge.score(prompts, responses)]
    pairs = [(s, bool(y)) for s, y in zip(scores, labels, strict=True) if s is not None]
    values = np.array([s for s, _ in pairs], dtype=np.float64)
    truth = np.array([y for _, y in pairs], dtype=bool)
    positive, negative = values[truth], values[~truth]
    if not len(positive) or not len(negative):
        raise JudgeError(
            f"agreement needs scored examples of both classes, got {len(positive)} positive and "
            f"{len(negative)} negative; {len(scores) - len(pairs)} are unscorable"
        )
    cut = judge.threshold if threshold is None else threshold
    right = int(((values >= cut) == truth).sum())
    return Agreement(
        judge.name,
        float(roc_auc_score(truth, values)),
        _auc_interval(positive, negative),
        right / len(pairs),
        wilson(right, len(pairs)),
        cut,
        len(positive),
        len(negative),
        len(scores) - len(pairs),
    )


def wilson(successes: int, n: int) -> Interval:
    """Wilson score interval of a share at 95 %."""
    from scipy.stats import binomtest

    low, high = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(low), float(high)


def _auc_interval(positive: np.ndarray, negative: np.ndarray) -> Interval | None:
    from scipy.stats import bootstrap

    if min(len(positive), len(negative)) < 2:
        return None
    drawn = bootstrap(
        (positive, negative), _auc, vectorized=True, method="percentile", n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE, random_state=0,
    ).confidence_interval  # fmt: skip
    return float(drawn.low), float(drawn.high)


def _auc(positive: np.ndarray, negative: np.ndarray, axis: int = -1) -> np.ndarray:
    """Area under the ROC curve from ranks (Mann–Whitney), along an axis."""
    from scipy.stats import rankdata

    n, m = positive.shape[axis], negative.shape[axis]
    ranks = rankdata(np.concatenate([positive, negative], axis), axis=axis)
    above = ranks.take(range(n), axis).sum(axis) - n * (n + 1) / 2
    return above / (n * m)
