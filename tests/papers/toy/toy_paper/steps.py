"""A count of the steps that were measured, and a kill in the middle of one."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def counted(step: str) -> None:
    """Add a step to the file TOY_STEPS; kill this process if TOY_KILL names the step."""
    if file := os.environ.get("TOY_STEPS"):
        with Path(file).open("a", encoding="utf-8") as steps:
            steps.write(f"{step}\n")
    if step == os.environ.get("TOY_KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
