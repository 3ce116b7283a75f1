"""interp: read residual streams, find directions, edit them, and export edits as weight diffs.

Importing this package imports no model library; the names below load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOMES = {
    "Direction": "interp.types",
    "Edit": "interp.edits",
    "InterpError": "interp.errors",
    "LM": "interp.lm",
    "PromptSet": "interp.data",
    "Sampling": "interp.backends.steps",
    "Site": "interp.sites",
    "TokenBatch": "interp.types",
    "WeightDelta": "interp.types",
    "ablate": "interp.interventions",
    "ablation": "interp.edits",
    "add": "interp.interventions",
    "applied": "interp.edits",
    "describe": "interp.models",
    "draw": "interp.figures",
    "encode": "interp.data",
    "load_class": "interp.data",
    "load_delta": "interp.export",
    "open_model": "interp.opening",
    "replace": "interp.interventions",
    "scale": "interp.interventions",
    "steering": "interp.edits",
    "tiny_model": "interp.models",
    "to_delta": "interp.edits",
    "verify_export": "interp.export",
    "wrap": "interp.backends.opening",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from interp.backends.opening import wrap as wrap
    from interp.backends.steps import Sampling as Sampling
    from interp.data import PromptSet as PromptSet
    from interp.data import encode as encode
    from interp.data import load_class as load_class
    from interp.edits import Edit as Edit
    from interp.edits import ablation as ablation
    from interp.edits import applied as applied
    from interp.edits import steering as steering
    from interp.edits import to_delta as to_delta
    from interp.errors import InterpError as InterpError
    from interp.export import load_delta as load_delta
    from interp.export import verify_export as verify_export
    from interp.figures import draw as draw
    from interp.interventions import ablate as ablate
    from interp.interventions import add as add
    from interp.interventions import replace as replace
    from interp.interventions import scale as scale
    from interp.lm import LM as LM
    from interp.models import describe as describe
    from interp.models import tiny_model as tiny_model
    from interp.opening import open_model as open_model
    from interp.sites import Site as Site
    from interp.types import Direction as Direction
    from interp.types import TokenBatch as TokenBatch
    from interp.types import WeightDelta as WeightDelta


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
