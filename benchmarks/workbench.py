"""What an ``LM`` adds to the bare model: reading, caching, editing and several strengths, in pairs.

    .venv/bin/python benchmarks/workbench.py [--model smollm2] [--prompts 128] [--rounds 3]

Floors: reading takes one forward pass up to the last block; a cache one whole forward pass; an edit in the
weights one copy of the edited matrices each way; a decoding step reads the weights once, however many rows
share it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from timing import hardware, paired, report

from interp import add, open_model
from interp.data import PromptSet, load_class, load_pairs
from interp.edits import ablation, to_delta
from interp.evaluate.measure import Bench
from interp.lm import LM
from interp.maths import unit
from interp.types import Direction

STRENGTHS = [-1.0, 0.0, 1.0]
GENERATED = 24
MEASURED = 24


def mixed_prompts(most: int) -> list[str]:
    """Prompts of mixed length, in file order: short requests and everyday questions in turn."""
    short = load_pairs().side("refuse", "all").prompts
    every = load_class("answerable", "comply").prompts
    pairs = [p for two in zip(short, every, strict=False) for p in two] + list(every[len(short) :])
    return [p * (1 + i % 3) for i, p in enumerate(pairs)][:most]


@torch.no_grad()
def naive_residuals(lm: LM, prompts: list[str], size: int) -> torch.Tensor:
    """The usual loop: padded batches in file order, ``output_hidden_states``, last position kept."""
    rows = []
    for start in range(0, len(prompts), size):
        batch = lm.tokens(prompts[start : start + size])
        out = lm.hf(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
        rows.append(torch.stack([state[:, -1] for state in out.hidden_states]))
    return torch.cat(rows, 1)


def variants(lm: LM, prompts: list[str]) -> dict[str, dict[str, Any]]:
    """Calls by comparison; the second of each is what the first is compared with."""
    few, one = prompts[:16], lm.tokens(prompts[:16])
    vector = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    site = lm.resid_post[lm.n_blocks // 2]
    direction = Direction(unit(vector), 0, "random")
    nothing = ablation(lm.hf, lm.anatomy, direction, strength=0.0)
    delta = to_delta(lm.hf, lm.anatomy, nothing)
    sets = [PromptSet(tuple(prompts[i::2][:MEASURED]), "benchmark") for i in (0, 1)]
    bench = Bench(lm, *sets)
    apart = lambda: [lm.generate(few, add(site, vector, s), tokens=GENERATED) for s in STRENGTHS]  # noqa: E731
    return {
        "residuals": {
            "lm.residuals": lambda: lm.residuals(prompts),
            "hidden states, file order": lambda: naive_residuals(lm, prompts, lm.batch_size),
        },
        "cache": {
            "lm.run_with_cache": lambda: lm.run_with_cache(one),
            "one forward pass": lambda: lm.backend.logits(one, None, None),
        },
        "strengths": {
            "three strengths, one batch": lambda: lm.generate(
                few, add(site, vector, STRENGTHS), tokens=GENERATED
            ),
            "three calls": apart,
        },
        "measure": {
            "a delta that changes nothing": lambda: bench.row("edited", delta),
            "no delta in the weights": lambda: bench.row("edited", nothing),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    lm = open_model(given.model)
    rows: dict[str, Any] = {}
    for calls in variants(lm, mixed_prompts(given.prompts)).values():
        against = list(calls)[1]
        rows |= paired(calls, against=against, rounds=given.rounds)
    result = {"hardware": hardware(), "model": given.model, "prompts": given.prompts}
    report("workbench", result | {"variants": rows})


if __name__ == "__main__":
    main()
