"""Which component of which block writes a logit difference, and how the stream reads out as one."""

from __future__ import annotations

from interp.attribution.direct import Attribution, Contrast, attribute
from interp.attribution.openers import Openers

__all__ = ["Attribution", "Contrast", "Openers", "attribute"]
