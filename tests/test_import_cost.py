"""Importing the package or asking for help loads no model library (how long it takes: benchmarks/)."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "matplotlib",
    "transformer_lens",
    "nnsight",
    "peft",
    "scipy",
)


@pytest.mark.parametrize(
    "code",
    ["import interp", "from interp.cli import main; main(['--help'])", "import interp.records"],
)
def test_cheap_imports(code: str) -> None:
    probe = (
        "import sys, contextlib, io\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        f"    {code}\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_figures_draw_without_torch() -> None:
    probe = "import sys, interp.figures; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_exists() -> None:
    import interp

    for name in interp.__all__:
        assert getattr(interp, name) is not None
    with pytest.raises(AttributeError):
        interp.nonsense  # noqa: B018
