"""Paired timing: variants take turns inside each round, ratios are taken within a round."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def paired(
    variants: Mapping[str, Callable[[], object]], *, against: str, rounds: int, warmups: int = 1
) -> dict[str, dict[str, float]]:
    """Seconds of each variant and its ratio to ``against``: medians and quartiles over rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(warmups + rounds):
        for name, call in variants.items():
            started = time.perf_counter()
            told = call()
            spent = time.perf_counter() - started
            if turn >= warmups:
                # A variant in a process of its own says how long it took without its imports.
                seconds[name].append(told if isinstance(told, float) else spent)
    found = {}
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds[against], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else (ratios[0],) * 3
        found[name] = {
            "seconds": statistics.median(values),
            "ratio": statistics.median(ratios),
            "ratio_low": low,
            "ratio_high": high,
        }
    return found


def cpu_seconds(call: Callable[[], object]) -> Callable[[], float]:
    """``call``, which gives the CPU seconds that it took: other programs on the machine count little."""

    def timed() -> float:
        started = time.process_time()
        call()
        return time.process_time() - started

    return timed


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    from interp.records import package_versions, processor

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": package_versions(),
    }


def report(name: str, result: dict[str, Any]) -> None:
    """Print ratios and keep everything under ``benchmarks/results``."""
    for variant, row in result["variants"].items():
        print(
            f"{variant:<34} {row['seconds']:8.3f} s   ×{row['ratio']:.3f} "
            f"({row['ratio_low']:.3f}–{row['ratio_high']:.3f})"
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
