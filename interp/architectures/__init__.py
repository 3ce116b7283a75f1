"""Model classes of our own, in the style of transformers: one file each, named after its ``model_type``.

A file defines ``CONFIG`` and ``MODEL``, the classes for ``AutoConfig`` and ``AutoModelForCausalLM``. Its
anatomy and tiny sizes stand in ``interp/models/``, as for any family. Nothing is imported before a model of
that type is asked for; code that calls transformers itself calls :func:`register` first.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

__all__ = ["known_architectures", "register"]


@cache
def known_architectures() -> tuple[str, ...]:
    """``model_type`` of every architecture in this package."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def register(model_type: str | None = None) -> bool:
    """Add an architecture, or all, to transformers' auto classes; whether there is such a one."""
    wanted = [name for name in known_architectures() if model_type in (None, name)]
    for name in wanted:
        _register(name)
    return bool(wanted)


@cache
def _register(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    module = importlib.import_module(f"{__name__}.{name}")
    AutoConfig.register(name, module.CONFIG, exist_ok=True)
    AutoModelForCausalLM.register(module.CONFIG, module.MODEL, exist_ok=True)
