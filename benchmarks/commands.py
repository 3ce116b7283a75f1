"""Wall time and peak memory of `interp` commands on one model, each in a process of its own.

    .venv/bin/python benchmarks/commands.py --model qwen2.5-coder-1.5b [--limit 32]

Floor of memory: the bytes of the model (3.6 GB for 1.8 billion bf16 parameters). An edit is saved and
verified in a second process: the peak is that of both together, sampled every ``INTERVAL`` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from timing import RESULTS, hardware

SETTING = ("--block", "20", "--first-block", "15", "--strength", "1")
"""Edits are made at one setting: choosing takes as long as the grid is large."""
COMMANDS = {
    "attribute": ("attribute",),
    "edit ablation": ("edit", "ablation", *SETTING),
    "edit least-disturbance": ("edit", "least-disturbance", *SETTING),
    "measure": ("measure", "--tokens", "24"),
    "edit least-disturbance, learned": ("edit", "least-disturbance", "--after-opener", "auto"),
}
"""Name of a row → the words of the command."""
INTERVAL = 0.2
MB = 1 << 20


def run(words: list[str]) -> dict[str, float]:
    """Seconds of a command, and peak memory in MB of its process and their children together."""
    script = "import sys; from interp.cli import main; main(sys.argv[1:])"
    started, peak = time.perf_counter(), 0
    command = psutil.Popen([sys.executable, "-c", script, *words])
    while command.poll() is None:
        peak = max(peak, _resident(command))
        time.sleep(INTERVAL)
    if command.returncode:
        raise SystemExit(f"interp {' '.join(words)} ended with {command.returncode}")
    return {"seconds": round(time.perf_counter() - started, 1), "peak_mb": peak // MB}


def _resident(process: psutil.Process) -> int:
    """Bytes in memory of a process and its children; pages that they share count for each."""
    with suppress(psutil.NoSuchProcess):
        return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--limit", type=int, help="prompts per class (default: all)")
    parser.add_argument("--only", nargs="*", default=list(COMMANDS))
    given = parser.parse_args()
    path = RESULTS / f"commands_{given.model.replace('.', '_').replace('-', '_')}.json"
    rows: dict[str, Any] = json.loads(path.read_text())["commands"] if path.exists() else {}
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            words = [*COMMANDS[name], "--model", given.model]
            if given.limit:
                words += ["--limit", str(given.limit)]
            if name != "measure":
                words += ["--out", str(Path(folder) / "out")]
            rows[name] = run(words) | {
                "peak_of": "both processes",
                "limit": given.limit,
                "load": round(os.getloadavg()[1], 1),
            }
        print(name, rows[name], flush=True)
        about = {"hardware": hardware(), "model": given.model}
        path.write_text(json.dumps(about | {"commands": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
