"""Tiny random models, one per ``model_type``, shared by a session: do not change them in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from interp.models import known_model_types, tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=known_model_types())
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny(model_type: str) -> nn.Module:
    return tiny_model(model_type)


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Two prompts of 17 tokens without padding, longer than every tiny sliding window."""
    return torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(0))
