"""What the toy paper reproduces, and the settings of its figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interp.claims import statistics
from interp.recipes import TrainingRecipe
from interp.study import FigureSpec, Paper


@dataclass(frozen=True)
class Taught:
    """A model that is taught one answer to every request."""

    answer: str = "no"
    training: TrainingRecipe = TrainingRecipe(steps=12, batch_size=4, learning_rate=1e-2)  # noqa: RUF009


@dataclass(frozen=True)
class Blocks:
    """What is left of the answer without one block's MLP, scaled by ``factor``."""

    factor: float = 0.0
    taught: Taught = Taught()


@statistics("toy")
def toy(values: Any) -> dict[str, float]:
    """Least of the values."""
    return {"least": min(values)}


PAPER = Paper(
    key="toy",
    title="A toy paper",
    arxiv="0000.00000",
    figures=(
        FigureSpec(
            "learning", "Learning one answer", "toy_paper.figures:learning", recipe=Taught()
        ),
        FigureSpec("blocks", "Without one MLP", "toy_paper.figures:blocks", recipe=Blocks()),
        FigureSpec("large", "The same, large", stands_for="figure 1", needs="a large model"),
    ),
)
