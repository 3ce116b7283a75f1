"""A run that another process can start, and that a test can kill."""

from __future__ import annotations

from pathlib import Path

import torch

from interp.models import tiny_model
from interp.training import TrainedRun, TrainingRecipe, train

ROWS = torch.randint(3, 97, (48, 12), generator=torch.Generator().manual_seed(0))


def run(runs: Path) -> TrainedRun:
    """Sixty steps with dropout over ten epochs, saved every fourth step."""
    torch.set_num_threads(1)
    recipe = TrainingRecipe(steps=60, batch_size=8, clip=0.5, warmup=5)
    model = lambda: tiny_model("llama", attention_dropout=0.2, num_hidden_layers=2)  # noqa: E731
    return train(model, ROWS, recipe, runs=runs, save_every=4)
