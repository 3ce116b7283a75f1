"""Where refusal lives, and how to remove or deepen it with as little else as possible.

Three disjoint splits: edits are fitted on *fit*, chosen on *select*, and measured on *report*, which
nothing before has seen.
"""

from __future__ import annotations

from interp.methods.refusal.again import finished, refit_on_remaining
from interp.methods.refusal.choose import Choice, Scored, Selection, candidates, choose
from interp.methods.refusal.controls import random_control, rotated
from interp.methods.refusal.delta import as_delta, rebased
from interp.methods.refusal.fit import (
    METHODS,
    Fitted,
    Setting,
    build,
    fit,
    writer_inputs,
)
from interp.methods.refusal.learning import learned
from interp.methods.refusal.opener import find_opener
from interp.methods.refusal.pipeline import Outcome, run
from interp.methods.refusal.prose import Prose, written

__all__ = [
    "METHODS",
    "Choice",
    "Fitted",
    "Outcome",
    "Prose",
    "Scored",
    "Selection",
    "Setting",
    "as_delta",
    "build",
    "candidates",
    "choose",
    "find_opener",
    "finished",
    "fit",
    "learned",
    "random_control",
    "rebased",
    "refit_on_remaining",
    "rotated",
    "run",
    "writer_inputs",
    "written",
]
