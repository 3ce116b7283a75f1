"""LoRA adapters of PEFT: added to a model before training, and read back after it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from interp.errors import InterpError
from interp.recipes.training import LoRA

LINEAR = "all-linear"


def with_adapters(model: Any, lora: LoRA) -> Any:
    """The model with trainable adapters and all other weights frozen; the model itself is changed.

    Raises InterpError where no module has a wanted name.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] (PEFT takes fractions, too)
        target_modules=list(lora.targets) or LINEAR,
        layers_to_transform=list(lora.blocks) or None,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise InterpError(f"PEFT adds no adapter here: {str(error).splitlines()[0]}") from None
    return adapted


def merged(model: nn.Module, adapter: Path) -> nn.Module:
    """A copy of the model with a trained adapter added to its weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(model), str(adapter)).merge_and_unload().eval()  # type: ignore[operator]
