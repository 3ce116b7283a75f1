"""Estimators inside scikit-learn's pipelines."""

from __future__ import annotations

import numpy as np
import pytest
from planting import pair_of_classes
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interp.estimators import LDA, DiffMeans, Probe


def labelled(shift: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    pos, neg = pair_of_classes(60, 8, seed=0, shift=shift)
    X = np.concatenate([pos.numpy(), neg[:50].numpy()])
    y = np.array(["refuse"] * 60 + ["comply"] * 50)
    order = np.random.default_rng(0).permutation(len(X))
    return X[order], y[order]


@pytest.mark.parametrize("estimator", [None, DiffMeans(), LDA()])
def test_cross_validated_in_a_pipeline(estimator) -> None:
    X, y = labelled()
    pipeline = make_pipeline(StandardScaler(), Probe(estimator))
    assert cross_val_score(pipeline, X, y, scoring="roc_auc").mean() > 0.95
    assert cross_val_score(pipeline, X, y).mean() > 0.9
    shuffled = np.random.default_rng(1).permutation(y)
    assert cross_val_score(pipeline, X, shuffled, scoring="roc_auc").mean() < 0.75


def test_decisions_are_read_scores() -> None:
    X, y = labelled(shift=1.0)
    probe = Probe(LDA()).fit(X, y)
    assert list(probe.classes_) == ["comply", "refuse"]
    direct = LDA().fit(X[y == "refuse"], X[y == "comply"])
    assert np.allclose(probe.decision_function(X), direct.score(X).numpy())
    assert ((probe.predict(X) == "refuse") == (probe.decision_function(X) > 0)).all()
    assert probe.score(X, y) == np.mean(probe.predict(X) == y)
    assert probe.n_features_in_ == 8


def test_parameters_of_the_estimator_can_be_searched() -> None:
    X, y = labelled(shift=1.0)
    inner = LDA()
    search = GridSearchCV(Probe(inner), {"estimator__shrinkage": [0.1, 0.9]}, scoring="roc_auc")
    assert search.fit(X, y).best_params_["estimator__shrinkage"] in (0.1, 0.9)
    assert inner.shrinkage == "ledoit-wolf"
    assert not hasattr(inner, "vector_")
    one, two = Probe(LDA(0.1)).fit(X, y), clone(search.best_estimator_).fit(X, y)
    assert np.array_equal(one.predict(X).shape, two.predict(X).shape)


def test_a_probe_tells_two_classes_apart() -> None:
    X, y = labelled()
    with pytest.raises(ValueError, match="y has 3"):
        Probe().fit(X, np.arange(len(y)) % 3)
    with pytest.raises(ValueError, match="y has 1"):
        Probe().fit(X, np.zeros(len(y)))
