"""heretic's family of edits, and heretic itself as a second opinion.

heretic (``p-e-w/heretic``, AGPL) is a program that searches for directional ablations. Its formulas
are implemented here from their description. Nothing of it is imported or copied: a second opinion comes
from heretic as a program in an environment of its own.
"""

from __future__ import annotations

from interp.methods.heretic.directions import residual_directions
from interp.methods.heretic.edit import Kernel, components, heretic_delta
from interp.methods.heretic.opinion import Conditions, Opinion, second_opinion

__all__ = [
    "Conditions",
    "Kernel",
    "Opinion",
    "components",
    "heretic_delta",
    "residual_directions",
    "second_opinion",
]
