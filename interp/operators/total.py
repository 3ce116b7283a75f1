"""Several operators at one writer, all acting on what it writes unedited: ``y ← y + Σᵢ (opᵢ(y) − y)``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from interp.operators.protocol import Operator
from interp.types import LowRank, Weight


@dataclass(frozen=True, slots=True, eq=False)
class Several:
    """What operators that are made of others share. ValueError without parts."""

    parts: tuple[Operator, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError(f"{type(self).__name__} needs at least one operator")

    @property
    def needs_input(self) -> bool:
        return any(part.needs_input for part in self.parts)

    @property
    def homogeneous(self) -> bool:
        return all(part.homogeneous for part in self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Total(Several):
    """The sum of what several operators change; their order does not matter.

    Not one after the other: two ablations along overlapping directions remove what they share twice
    (use :class:`SubspaceAblation` for that). Weight form: the sum of theirs, ranks add; it exists where
    every part has one. ValueError without parts.
    """

    @property
    def exactness(self) -> str:
        return " + ".join(dict.fromkeys(part.exactness for part in self.parts))

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        changes = [part.act(written, inputs) - written for part in self.parts]
        return written + sum(changes[1:], changes[0])

    def weight_update(self, weight: Weight) -> LowRank | None:
        updates = [u for part in self.parts if (u := part.weight_update(weight)) is not None]
        if not updates:
            return None
        whole = updates[0]
        for update in updates[1:]:
            whole = whole.plus(update)
        return whole

    def bias_update(self, bias: Tensor | None, like: Weight) -> Tensor | None:
        shifts = [s for part in self.parts if (s := part.bias_update(bias, like)) is not None]
        return sum(shifts[1:], shifts[0]) if shifts else None
