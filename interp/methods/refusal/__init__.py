"""Where refusal lives, and how to remove or deepen it with as little else as possible.

Three disjoint splits: edits are fitted on *fit*, chosen on *select*, and measured on *report*, which
nothing before has seen.
"""

from __future__ import annotations

from interp.methods.refusal.attributing import attribution_figure, fit_openers, phrase_openers
from interp.methods.refusal.choose import Choice, Selection, candidates, choose
from interp.methods.refusal.delta import (
    as_delta,
    finished,
    random_control,
    random_direction,
    rebased,
)
from interp.methods.refusal.fit import Fitted, build, fit
from interp.methods.refusal.learning import learned
from interp.methods.refusal.opener import find_opener
from interp.methods.refusal.pipeline import RunResult, run

__all__ = [
    "Choice",
    "Fitted",
    "RunResult",
    "Selection",
    "as_delta",
    "attribution_figure",
    "build",
    "candidates",
    "choose",
    "find_opener",
    "finished",
    "fit",
    "fit_openers",
    "learned",
    "phrase_openers",
    "random_control",
    "random_direction",
    "rebased",
    "run",
]
