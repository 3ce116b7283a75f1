"""What every operator offers, and the half of it that operators without a weight form share."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.errors import NotExpressible
from interp.types import UNIT_TOLERANCE, LowRank, Vector, Weight


@runtime_checkable
class Operator(Protocol):
    """One edit of what a writer writes, on activations and on the writer's weights.

    needs_input: ``act`` also wants the writer's input. homogeneous: ``act`` maps 0 to 0 and is linear, so
    that it may act on a sum of experts as well as on each. exactness: one sentence for the receipt.
    """

    @property
    def needs_input(self) -> bool: ...

    @property
    def homogeneous(self) -> bool: ...

    @property
    def exactness(self) -> str: ...

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The edited write, ``[..., d_model]``; inputs: ``[..., d_in]`` (token ids at an embedding)."""
        ...

    def weight_update(self, weight: Weight) -> LowRank | None:
        """ΔW for ``weight [*expert, d_model, d_in]`` in canonical orientation, None when nothing changes.

        Raises NotExpressible where no weights do what ``act`` does.
        """
        ...

    def bias_update(self, bias: Tensor | None, like: Weight) -> Vector | None:
        """Δb for the writer's bias (None when it has none); None when nothing changes.

        Whatever is made of no bias is a constant: it has no weight form behind a norm or routing.
        """
        ...


class HookOnly:
    """The weight face of a nonlinear operator: NotExpressible, with ``why`` as the reason."""

    __slots__ = ()

    why: ClassVar[str]
    homogeneous: ClassVar[bool] = False

    def weight_update(self, weight: Weight) -> LowRank | None:
        self.refuse()

    def bias_update(self, bias: Tensor | None, like: Weight) -> Vector | None:
        self.refuse()

    def refuse(self) -> NoReturn:
        raise NotExpressible(
            f"{type(self).__name__} has no weight form: {self.why}; use it as a hook"
        )


def row_count(operator: object) -> int | None:
    """Rows of the batch that an operator is made for; None for any number."""
    return getattr(operator, "row_count", None)


def at_columns(operator: Any, start: int, stop: int, width: int) -> Any:
    """The operator for columns ``start:stop`` of a batch of ``width``; None where it does nothing there."""
    columns = getattr(operator, "columns", None)
    return operator if columns is None else columns(start, stop, width)


def widened(values: Tensor) -> Tensor:
    """``values`` in float32 at least: norms and angles in half precision are too coarse to keep."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_unit(vector: Vector, owner: str) -> None:
    """Raise ValueError unless ``vector`` has norm 1."""
    length = vector.double().norm().item()
    if not abs(length - 1.0) < UNIT_TOLERANCE:
        raise ValueError(f"{owner} needs norm 1, got {length:.4g}; use interp.maths.unit(vector)")
