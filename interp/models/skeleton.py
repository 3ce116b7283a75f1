"""A model without weights: its modules on the meta device and its anatomy, from the config alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from interp.models import auto_class, describe
from interp.models.anatomy import Anatomy
from interp.models.loading import load_config, readable


def skeleton(
    name: str, *, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[nn.Module, Anatomy]:
    """``(model, anatomy)``; every parameter has a shape and no data.

    Raises ModelNotFound, UnknownFamily, UndescribedWriter.
    """
    config: Any = load_config(name, trust_remote_code=trust_remote_code, revision=revision)
    with readable(name):
        model = bare(config, trust_remote_code=trust_remote_code)
    return model, describe(model)


def bare(config: Any, *, trust_remote_code: bool = False) -> nn.Module:
    """The modules of a config on the meta device."""
    import torch

    with torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
