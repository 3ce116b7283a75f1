"""Backends: three ways to read and edit a residual stream behind one narrow protocol."""

from __future__ import annotations

from interp.backends.opening import BACKENDS, open_model
from interp.backends.protocol import Backend, Positions, take

__all__ = ["BACKENDS", "Backend", "Positions", "open_model", "take"]
