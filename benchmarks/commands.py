"""Wall time and peak memory of `interp` commands on one model, each in a process of its own.

    .venv/bin/python benchmarks/commands.py --model qwen2.5-coder-1.5b [--limit 32]

Floor of memory: the bytes of the model (3.6 GB for 1.8 billion bf16 parameters). An edit is saved and
verified in a second process, which holds the model, too: the peak is that of the largest process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import RESULTS, hardware

SETTING = ("--block", "20", "--first-block", "15", "--strength", "1")
"""Edits are made at one setting: choosing takes as long as the grid is large."""
COMMANDS = {
    "attribute": ("attribute",),
    "edit ablation": ("edit", "ablation", *SETTING),
    "edit least-disturbance": ("edit", "least-disturbance", *SETTING),
    "measure": ("measure", "--tokens", "24"),
}
"""Name of a row → the words of the command."""
MB = 1024


def run(words: list[str]) -> dict[str, float]:
    """Seconds of a command and peak memory in MB of its largest process."""
    script = (
        "import json, resource, sys\n"
        "from interp.cli import main\n"
        "try:\n    main(sys.argv[2:])\nexcept SystemExit as stop:\n    code = stop.code or 0\n"
        "own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "open(sys.argv[1], 'w').write(json.dumps([code, own, child]))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "peaks.json"
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", script, str(told), *words], check=True)
        seconds = time.perf_counter() - started
        code, own, child = json.loads(told.read_text())
    if code:
        raise SystemExit(f"interp {' '.join(words)} ended with {code}")
    return {"seconds": round(seconds, 1), "peak_mb": max(own, child) // MB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--only", nargs="*", default=list(COMMANDS))
    given = parser.parse_args()
    rows: dict[str, Any] = {}
    path = RESULTS / f"commands_{given.model.replace('.', '_').replace('-', '_')}.json"
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            words = [*COMMANDS[name], "--model", given.model, "--limit", str(given.limit)]
            if name != "measure":
                words += ["--out", str(Path(folder) / "out")]
            rows[name] = run(words)
        print(name, rows[name], flush=True)
        about = {"hardware": hardware(), "model": given.model, "limit": given.limit}
        about["load"] = round(os.getloadavg()[1], 1)
        path.write_text(json.dumps(about | {"commands": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
