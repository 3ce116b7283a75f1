"""Edits: operators put at writers, at what writers read and at residual sites, as hooks and as weight deltas.

The base model is never changed by a method. :func:`interp.hooking.hooked` runs an edit as forward hooks,
:func:`applied` lends the model with a delta in its weights and gives the old weights back bit for bit.
"""

from __future__ import annotations

from interp.edits.applying import (
    FINGERPRINT_SAMPLES,
    applied,
    apply_,
    check_base,
    check_made_for,
    fingerprint,
    untie,
)
from interp.edits.edit import (
    Edit,
    ablation,
    bound,
    canonical,
    readable,
    select_writers,
    steering,
    writer_unit,
)
from interp.edits.weights import as_edit, to_delta

__all__ = [
    "FINGERPRINT_SAMPLES",
    "Edit",
    "ablation",
    "applied",
    "apply_",
    "as_edit",
    "bound",
    "canonical",
    "check_base",
    "check_made_for",
    "fingerprint",
    "readable",
    "select_writers",
    "steering",
    "to_delta",
    "untie",
    "writer_unit",
]
