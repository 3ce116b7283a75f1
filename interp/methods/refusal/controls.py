"""Random controls of edits: equal norms, written in random directions."""

from __future__ import annotations

from dataclasses import replace

import torch

from interp.edits import Edit
from interp.errors import InterpError
from interp.maths import unit
from interp.operators import LeastDisturbance
from interp.types import LowRank, Shift, Update, WeightDelta


def random_direction(edit: Edit, *, seed: int = 0) -> Edit:
    """The same least-disturbance updates along one random direction: equal norm at every writer.

    Raises InterpError for an edit of another method.
    """
    generator = torch.Generator().manual_seed(seed)
    operators = {}
    drawn: torch.Tensor | None = None
    for name, operator in edit.writers.items():
        if not isinstance(operator, LeastDisturbance):
            raise InterpError("a random direction is defined for least-disturbance edits")
        if drawn is None:
            drawn = unit(torch.randn(operator.unit.shape, generator=generator))
        operators[name] = replace(operator, unit=drawn)
    return Edit(operators, recipe={"method": "random direction of equal norm", "seed": seed})


def random_control(delta: WeightDelta, *, seed: int = 0) -> WeightDelta:
    """The delta with everything that it writes turned by one random rotation of the stream.

    Every writer's update keeps its norm, its rank and its input directions; writers that wrote one
    direction write one other direction. Biases are turned along. Raises InterpError for updates that are
    not low-rank or do not write one stream.
    """
    widths = {u.b.shape[-2] for u in delta.updates.values() if isinstance(u, LowRank)}
    if len(widths) != 1:
        raise InterpError("the random control needs updates of weights that all write one stream")
    width = widths.pop()
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q

    def turned(update: Update) -> Update:
        if isinstance(update, Shift):
            return Shift((update.value.double() @ turn.T).to(update.value))
        return replace(update, b=(turn @ update.b.double()).to(update.b))

    updates = {name: turned(update) for name, update in delta}
    made = {"method": "the edit turned by a random rotation", "seed": seed}
    return replace(delta, updates=updates, recipe={**made, "of": dict(delta.recipe)})
