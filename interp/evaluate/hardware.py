"""What a model runs on, as records name it."""

from __future__ import annotations

import torch

from interp.lm import LM


def accelerator(lm: LM) -> str | None:
    """Name of the accelerator that the model runs on; None on a CPU."""
    device = lm.backend.device
    if device.type == "cpu":
        return None
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
