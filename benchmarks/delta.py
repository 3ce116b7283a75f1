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
from interp.fitting import WriterStatistics, least_disturbance
from interp.methods.refusal import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    lm, pairs = open_model(given.model), load_pairs()
    fitted = fit(lm, pairs.side("refuse", "fit"), pairs.side("comply", "fit"))
    stats = fitted.statistics
    block = sorted(fitted.directions)[2 * len(fitted.directions) // 3]
    direction = fitted.directions[block]

    def fresh() -> Any:
        """From activations to a delta, with nothing solved beforehand."""
        again = WriterStatistics(stats.refuse, stats.comply, stats.extra)
        return to_delta(lm.hf, lm.anatomy, least_disturbance(lm, again, direction))

    def primal() -> Any:
        """Σ formed and solved per writer, in float64."""
        for name, rows in stats.comply.items():
            wide = rows.double()
            sigma = wide.T @ wide / len(wide)
            sigma.diagonal().add_(0.05 * sigma.diagonal().mean())
            torch.linalg.solve(sigma, stats.shift(name))

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
            "prompts": len(next(iter(stats.comply.values()))),
            "variants": rows,
        },
    )


if __name__ == "__main__":
    main()
