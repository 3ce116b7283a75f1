"""A sweep of blocks, strengths and questions: one batch of settings against one generate call for each.

    .venv/bin/python benchmarks/steering_sweep.py [--model smollm2] [--layers 6] [--rounds 3]

CPU seconds of one thread, so that other programs on the machine count little. The floor is the arithmetic, 2
FLOPs per weight and token, which both sides have in common: a batch of one setting already reads the weights
for 20 rows at once. What the batch saves is reading weights once for many settings, the unsteered setting
that every block would repeat, and the calls themselves.
"""

from __future__ import annotations

import argparse

import torch
from timing import cpu_seconds, hardware, paired, report

import interp
from interp.methods.persona_vectors import shipped_trait
from interp.methods.persona_vectors.sweeps import Setting, random_vectors, together

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
NORM = 8.0
"""Norm of the vectors, about that of persona vectors of SmolLM2."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warmups", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lm = interp.open_model(given.model)
    questions = list(shipped_trait("exclamatory").evaluation_questions[: given.questions])
    vector = random_vectors(torch.full((lm.d_model,), NORM / lm.d_model**0.5), 1)[0]
    blocks = torch.linspace(0, lm.n_blocks - 1, given.layers).round().long().tolist()
    sites = [lm.resid_post[block] for block in blocks]
    unsteered = Setting(sites[0], vector, 0.0)
    steered = [Setting(site, vector, a) for site in sites for a in STRENGTHS if a]

    def batched() -> None:
        lm.using(batch_size=given.batch_size).generate(
            questions, together([unsteered, *steered]), tokens=given.tokens
        )

    def one_by_one() -> None:
        for site in sites:
            for strength in STRENGTHS:
                edit = interp.add(site, vector, strength)
                lm.generate(questions, edit, tokens=given.tokens)

    calls = {"one call for each setting": one_by_one, "one batch of settings": batched}
    timed = {name: cpu_seconds(call) for name, call in calls.items()}
    measured = paired(
        timed, against="one batch of settings", rounds=given.rounds, warmups=given.warmups
    )
    about = {name: getattr(given, name) for name in ("model", "layers", "questions", "tokens")}
    report("steering_sweep", {"hardware": hardware(), **about, "variants": measured})


if __name__ == "__main__":
    main()
