"""Tiny random models, one per ``model_type``, shared by a session: do not change them in place.

A test that takes ``model_type``, or a fixture made from it, runs on the families of
``covering.COVERING``; one marked ``every_family`` runs on all of them, on the others as a slow test.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# What is heavy is imported where it is used: the process that hands tests to others runs none.
if TYPE_CHECKING:
    import torch
    from torch import nn

    from interp.models.anatomy import Anatomy
    from interp.types import TokenBatch


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is collected: a test keeps the profile that was loaded when it was defined."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import torch
    from hypothesis import settings

    torch.set_num_threads(1)
    settings.register_profile("interp", deadline=None, max_examples=25, derandomize=True)
    settings.load_profile("interp")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "model_type" not in metafunc.fixturenames or any("model_type" in names for names in given):
        return
    from covering import COVERING, every

    all_of_them = metafunc.definition.get_closest_marker("every_family")
    types = every() if all_of_them else COVERING
    metafunc.parametrize("model_type", types, indirect=True, scope="session")


@pytest.fixture(scope="session")
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny(model_type: str) -> nn.Module:
    from interp.models import tiny_model

    return tiny_model(model_type)


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Two prompts of 17 tokens without padding, longer than every tiny sliding window."""
    import torch

    return torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def anatomy(tiny: nn.Module) -> Anatomy:
    from interp.models import describe

    return describe(tiny)


@pytest.fixture(scope="session")
def batch() -> TokenBatch:
    """Three prompts of 17, 13 and 16 tokens, left-padded."""
    import torch

    from interp.types import TokenBatch

    ids = torch.randint(3, 97, (3, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, :1] = 0
    return TokenBatch(ids * mask, mask)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Bytes in, bytes out, with a chat template."""
    from interp.models.tiny import byte_tokenizer

    return byte_tokenizer()


@pytest.fixture(scope="session")
def chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny tied llama, its tokenizer and chat template, as a user would have it."""
    from interp.models import family_of
    from interp.models.tiny import save_tiny

    folder = tmp_path_factory.mktemp("chat") / "llama"
    save_tiny("llama", family_of("llama"), folder)
    return folder
