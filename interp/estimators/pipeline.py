"""Any estimator as a scikit-learn classifier of two classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y

from interp.estimators.base import Estimator, fresh
from interp.estimators.means import DiffMeans


class Probe(ClassifierMixin, BaseEstimator):
    """``fit(X, y)``, ``decision_function`` and ``predict`` around an estimator, for sklearn's pipelines.

    X: ``[rows, d]``, one layer. y: two labels; the larger one in sorted order is the positive class.
    Estimators that need pairs match the i-th row of one class with the i-th of the other, so they want
    equal classes in matching order: not what a shuffled split gives. estimator: DiffMeans by default;
    ``estimator_`` is the fitted copy.
    """

    def __init__(self, estimator: Estimator | None = None) -> None:
        self.estimator = estimator

    def fit(self, X: Any, y: Any) -> Probe:
        """Raises ValueError unless y has exactly two labels, and the errors of the estimator."""
        X, y = check_X_y(X, y)
        self.classes_ = unique_labels(y)
        if len(self.classes_) != 2:
            raise ValueError(f"a probe tells two classes apart, y has {len(self.classes_)}")
        self.n_features_in_ = X.shape[1]
        positive = y == self.classes_[1]
        self.estimator_ = fresh(self.estimator, DiffMeans).fit(X[positive], X[~positive])
        return self

    def decision_function(self, X: Any) -> npt.NDArray[Any]:
        """The read score of each row, ``[rows]``; positive means ``classes_[1]``."""
        check_is_fitted(self, "estimator_")
        return self.estimator_.score(check_array(X)).numpy(force=True)

    def predict(self, X: Any) -> npt.NDArray[Any]:
        return self.classes_[(self.decision_function(X) > 0).astype(np.intp)]
