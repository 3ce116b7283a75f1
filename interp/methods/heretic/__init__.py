"""heretic's family of edits, written anew, and heretic itself as a second opinion.

heretic (``p-e-w/heretic``, AGPL) is a program that searches for directional ablations. Its formulas
are implemented here from their description; nothing of it is imported or copied, and where its own
word is wanted it runs as a program in an environment of its own.
"""

from __future__ import annotations

from interp.methods.heretic.directions import residual_directions
from interp.methods.heretic.edit import components, heretic_delta
from interp.methods.heretic.kernel import Kernel
from interp.methods.heretic.opinion import Asking, Opinion, second_opinion

__all__ = [
    "Asking",
    "Kernel",
    "Opinion",
    "components",
    "heretic_delta",
    "residual_directions",
    "second_opinion",
]
