"""Training a tiny llama: `interp.training.train` against a bare torch loop over the same batches.

    .venv/bin/python benchmarks/training.py [--steps 200] [--rounds 5]

CPU seconds of one thread, so that other programs on the machine count little. The floor is the forward and
backward passes alone: 6 FLOPs per weight and token, though in a model this small most of the time is the cost
of calling some thousand operations a step. A run includes hashing rows and model, the key, and saving.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timing import cpu_seconds, hardware, paired, report
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup, set_seed

from interp.training import TrainingRecipe, train
from interp.training.refusal_grammar import tokenizer, untaught

ROWS, LENGTH = 1024, 64


def batches(rows: Tensor, recipe: TrainingRecipe) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(recipe.seed)
    left = recipe.steps
    while left:
        for index in torch.randperm(len(rows), generator=generator).split(recipe.batch_size)[:left]:
            yield rows[index]
            left -= 1


def bare(rows: Tensor, recipe: TrainingRecipe, *, update: bool = True) -> list[float]:
    """The loop that one would write by hand: AdamW, a cosine schedule, clipping, a loss a step."""
    set_seed(recipe.seed)
    model: Any = untaught(tokenizer()).train()
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.warmup, recipe.steps)
    losses = []
    for batch in batches(rows, recipe):
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        if update:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        optimizer.zero_grad()
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    words = tokenizer()
    rows = torch.randint(len(words), (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    recipe = TrainingRecipe(steps=given.steps, batch_size=32, learning_rate=3e-3, warmup=10)

    def layer(runs: Path) -> None:
        train(lambda: untaught(words), rows, recipe, runs=runs)

    def fresh() -> None:
        with tempfile.TemporaryDirectory() as folder:
            layer(Path(folder))

    with tempfile.TemporaryDirectory() as kept:
        layer(Path(kept))
        calls = {
            "bare loop": lambda: bare(rows, recipe),
            "forward and backward alone": lambda: bare(rows, recipe, update=False),
            "train": fresh,
            "train, a run that is kept": lambda: layer(Path(kept)),
        }
        timed = {name: cpu_seconds(call) for name, call in calls.items()}
        measured = paired(timed, against="bare loop", rounds=given.rounds)
    result = {"hardware": hardware(), "steps": given.steps, "rows": ROWS, "length": LENGTH}
    report("training", result | {"variants": measured})


if __name__ == "__main__":
    main()
