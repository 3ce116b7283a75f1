"""The hardware of a model, and provenance that names it."""

from __future__ import annotations

from typing import Any

import torch

from interp.edits import fingerprint
from interp.lm import LM
from interp.records import Provenance
from interp.source import code_hash


def accelerator(lm: LM) -> str | None:
    """Name of the accelerator that the model runs on; None on a CPU."""
    device = lm.backend.device
    if device.type == "cpu":
        return None
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def measured_with(
    lm: LM, name: str | None = None, *, made_by: str | None = None, **more: Any
) -> Provenance:
    """Provenance of a measurement on a model.

    name: of the model, by default that of its backend. made_by: ``module:function``, whose code is hashed.
    more: as :meth:`interp.records.Provenance.collect` takes.
    """
    return Provenance.collect(
        name or lm.backend.source,
        fingerprint=fingerprint(lm.hf, lm.anatomy),
        device=accelerator(lm),
        made_by=made_by,
        code=code_hash(made_by) if made_by else None,
        **more,
    )
