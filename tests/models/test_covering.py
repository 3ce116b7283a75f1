"""The families on which most tests run have every feature that any described family has."""

from __future__ import annotations

import pytest
from covering import COVERING, features

from interp.models import describe, known_model_types, tiny_model


@pytest.fixture(scope="module")
def found() -> dict[str, set[str]]:
    models = {model_type: tiny_model(model_type) for model_type in known_model_types()}
    return {name: features(model, describe(model)) for name, model in models.items()}


def test_the_covering_families_have_every_feature(found: dict[str, set[str]]) -> None:
    """A new family with a feature of its own belongs into ``COVERING``."""
    covered = set().union(*(found[name] for name in COVERING))
    missing = {name: own - covered for name, own in found.items() if own - covered}
    assert not missing


def test_no_covering_family_but_llama_could_be_left_out(found: dict[str, set[str]]) -> None:
    """Llama stays: it is what most models are like, and is in the set for what it lacks."""
    for name in set(COVERING) - {"llama"}:
        others = set().union(*(found[other] for other in COVERING if other != name))
        assert found[name] - others, name


def test_features_tell_the_kinds_that_edits_depend_on(found: dict[str, set[str]]) -> None:
    every = set().union(*found.values())
    assert every >= {
        "attention stored as 'in out'",
        "attention stored as 'out in'",
        "expert stored as 'expert in out'",
        "expert stored as 'expert out in'",
        "ssm stored as 'out in'",
        "bias of 'out in'",
        "bias of 'expert in out'",
        "post-norm with offset 0.0",
        "post-norm with offset 1.0",
        "block of attention + mlp, parallel",
        "scaled writer",
        "tied",
        "untied",
    }
