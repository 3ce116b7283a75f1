"""Which families each backend runs: the table behind README, ``interp models`` and the tests."""

from __future__ import annotations

from interp.errors import InterpError
from interp.models import known_model_types

NOT_BRIDGED = frozenset({"gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl", "samba"})
"""Described here, but without an (exact) adapter in TransformerLens 4.3."""

SUPPORT: dict[str, frozenset[str]] = {
    "hooks": frozenset(known_model_types()),
    "transformer_lens": frozenset(known_model_types()) - NOT_BRIDGED,
    "nnsight": frozenset(known_model_types()),
}
"""Backend name → the ``model_type``s it gives the same numbers for as plain hooks."""


def require_support(backend: str, model_type: str) -> None:
    """Raise InterpError naming the backends that do run ``model_type``."""
    if model_type not in SUPPORT[backend]:
        others = " or ".join(repr(name) for name in SUPPORT if model_type in SUPPORT[name])
        raise InterpError(
            f"the {backend} backend does not run {model_type} models; use backend={others}"
        )
