"""The least-disturbance edit of every writer from captured activations, against a primal solve.

    .venv/bin/python benchmarks/delta.py [--model smollm2] [--rounds 5]

Floor: per writer one n×n solve and two n×d products, O(n²d) FLOPs (n prompts, d inputs); forming and
factoring Σ costs O(nd² + d³) instead. SmolLM2: 60 writers, n = 104, d = 576 and 1536.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from timing import hardware, paired, report

from interp import open_model
from interp.data import load_pairs
from interp.edits import to_delta
from interp.fitting import Probes, least_disturbance
from interp.methods.refusal import fit
from interp.recipes import LeastDisturbanceEdit
from interp.samples import DECISION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    lm, pairs = open_model(given.model), load_pairs()
    fitted = fit(lm, pairs.side("refuse", "fit"), pairs.side("comply", "fit"))
    known = sorted(fitted.directions[DECISION])
    block = known[2 * len(known) // 3]
    along = {DECISION: fitted.direction(block)}
    recipe = LeastDisturbanceEdit(
        strength=0.8, block=block, first_block=0, attention=1.0, ridge=0.02, learn=0.0
    )

    def fresh() -> Any:
        """From activations to a delta, with nothing solved beforehand."""
        probes = Probes(fitted.samples)
        return to_delta(lm.hf, lm.anatomy, least_disturbance(lm, probes, along, recipe))

    def primal() -> Any:
        """Σ formed and solved per writer, in float64."""
        for site in lm.writer_inputs:
            wide = fitted.samples.rows(site, False).double()
            sigma = wide.T @ wide / len(wide)
            sigma.diagonal().add_(0.05 * sigma.diagonal().mean())
            torch.linalg.solve(sigma, fitted.probes.shift(site))

    rows = paired(
        {"ours, all writers": fresh, "primal solve alone": primal},
        against="ours, all writers",
        rounds=given.rounds,
    )
    made = fresh()
    report(
        "delta",
        {
            "hardware": hardware(),
            "writers": len(made),
            "prompts": len(fitted.answered),
            "variants": rows,
        },
    )


if __name__ == "__main__":
    main()
