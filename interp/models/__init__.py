"""Model families: one file a family, found by scanning this package for ``FAMILIES``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

from interp.errors import UnknownFamily

if TYPE_CHECKING:
    from torch import nn

    from interp.models.anatomy import Anatomy, Family

__all__ = ["auto_class", "describe", "families", "family_of", "known_model_types", "tiny_model"]


@cache
def families() -> dict[str, Family]:
    """``model_type`` → its :class:`~interp.models.anatomy.Family`; no type may be claimed twice."""
    found: dict[str, Family] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for family in getattr(module, "FAMILIES", ()):
            for model_type in family.model_types:
                if model_type in found:
                    raise RuntimeError(f"{model_type!r} is described twice in interp/models/")
                found[model_type] = family
    return found


def known_model_types() -> list[str]:
    """All described ``model_type``s, sorted."""
    return sorted(families())


def family_of(model_type: str) -> Family:
    """The family of a ``model_type``. Raises UnknownFamily with the file to add."""
    try:
        return families()[model_type]
    except KeyError:
        raise UnknownFamily(
            f"no anatomy for model_type {model_type!r}; describe its writers in "
            f"interp/models/{model_type}.py (copy interp/models/llama_like.py); "
            f"known: {', '.join(known_model_types())}"
        ) from None


def auto_class(config: Any) -> Any:
    """The auto class of transformers that opens models with this config."""
    import transformers

    from interp.architectures import register

    register(config.model_type)
    images = bool(family_of(config.model_type).image_writers)
    return transformers.AutoModelForImageTextToText if images else transformers.AutoModelForCausalLM


def describe(model: nn.Module) -> Anatomy:
    """The anatomy of a loaded (or meta-device) causal language model of transformers."""
    from interp.models.anatomy import bind

    config: Any = model.config
    return bind(model, family_of(config.model_type), config)


def tiny_model(model_type: str, *, seed: int = 0, dtype: Any = None, **overrides: Any) -> nn.Module:
    """A small random model of a family, built from its config, without any download.

    Norm gains and biases are randomised too, so that a law cannot hold by accident.
    """
    from interp.models.tiny import build

    return build(model_type, family_of(model_type), seed=seed, dtype=dtype, **overrides)
