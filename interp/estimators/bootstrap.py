"""How much a fitted direction depends on the rows that happened to be there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from torch import Tensor

from interp.estimators.base import Array, Estimator, Pairs, fresh, gather
from interp.estimators.means import DiffMeans

Statistic = Callable[[Estimator], Tensor]


class Bootstrap(BaseEstimator):
    """Refit on resampled rows: cosines, a percentile interval, split-half agreement.

    Each class is resampled with replacement on its own; with ``pairs``, whole pairs are. All layers see
    the same draw (a row is a prompt). statistic: fitted estimator → tensor, ``[*layers]`` or any
    other shape, for the interval; None is the cosine with the full fit.

    Attributes: estimator_, the full fit; values_ ``[n_boot, …]`` of the statistic and value_
    ``[…]`` in the full fit; interval_ ``[…, 2]``, the central ``level`` of values_
    (percentile interval, Efron 1979); cosines_ ``[n_boot, *layers]`` with the full fit and mean_cosine_
    ``[*layers]``; split_half_ ``[*layers]``, mean cosine of fits on two disjoint halves over
    ``n_splits`` splits.

    The cosine is 1 in the full fit and less in every resample: its interval says how far the direction
    wanders and covers no parameter. Give a statistic for an interval that does.
    """

    def __init__(
        self,
        estimator: Estimator | None = None,
        n_boot: int = 100,
        n_splits: int = 10,
        level: float = 0.95,
        statistic: Statistic | None = None,
        seed: int = 0,
    ) -> None:
        self.estimator = estimator
        self.n_boot = n_boot
        self.n_splits = n_splits
        self.level = level
        self.statistic = statistic
        self.seed = seed

    def fit(self, X_pos: Array, X_neg: Array, pairs: Pairs = None) -> Bootstrap:
        """Rows as for :meth:`Estimator.fit`. Raises its errors, ValueError for a level outside (0, 1),
        fewer than 1 resample or split, and fewer than 2 rows in a class."""
        if not 0.0 < self.level < 1.0 or min(self.n_boot, self.n_splits) < 1:
            raise ValueError("needs 0 < level < 1, n_boot ≥ 1 and n_splits ≥ 1")
        classes = gather(X_pos, X_neg, pairs, least=2)
        pos, neg = (
            rows.reshape((*classes.layers, *rows.shape[1:])) for rows in (classes.pos, classes.neg)
        )
        if classes.partner is not None:
            neg = neg[..., classes.partner, :]
        paired = classes.partner is not None
        self.estimator_ = self._fitted(pos, neg, paired)
        self._resample(pos, neg, paired)
        self.split_half_ = self._halves(pos, neg, paired)
        return self

    def _fitted(self, pos: Tensor, neg: Tensor, paired: bool) -> Estimator:
        return fresh(self.estimator, DiffMeans).fit(pos, neg, True if paired else None)

    def _resample(self, pos: Tensor, neg: Tensor, paired: bool) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        n, m = pos.shape[-2], neg.shape[-2]
        cosines, values = [], []
        for _ in range(self.n_boot):
            rows = torch.randint(n, (n,), generator=generator)
            others = rows if paired else torch.randint(m, (m,), generator=generator)
            again = self._fitted(_take(pos, rows), _take(neg, others), paired)
            cosines.append(_cosine(again, self.estimator_))
            values.append(self.statistic(again) if self.statistic else cosines[-1])
        self.cosines_ = torch.stack(cosines)
        self.mean_cosine_ = self.cosines_.mean(0)
        self.values_ = torch.stack(values)
        self.value_ = (self.statistic or self._itself)(self.estimator_)
        tail = (1.0 - self.level) / 2
        ends = [torch.quantile(self.values_, q, dim=0) for q in (tail, 1.0 - tail)]
        self.interval_ = torch.stack(ends, -1)

    def _halves(self, pos: Tensor, neg: Tensor, paired: bool) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        n, m = pos.shape[-2], neg.shape[-2]
        cosines = []
        for _ in range(self.n_splits):
            rows = torch.randperm(n, generator=generator)
            others = rows if paired else torch.randperm(m, generator=generator)
            halves = [
                self._fitted(_take(pos, a), _take(neg, b), paired)
                for a, b in zip(rows.tensor_split(2), others.tensor_split(2), strict=True)
            ]
            cosines.append(_cosine(*halves))
        return torch.stack(cosines).mean(0)

    @staticmethod
    def _itself(estimator: Estimator) -> Tensor:
        return _cosine(estimator, estimator)


def _take(rows: Tensor, index: Int[Tensor, " k"]) -> Tensor:
    return rows[..., index, :]


def _cosine(one: Estimator, two: Estimator) -> Float[Tensor, "*layers"]:
    return (one.unit_ * two.unit_).sum(-1)
