"""Replacement by given values: activation patching, and mean or zero ablation of a whole site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from interp.errors import SiteError
from interp.operators.protocol import HookOnly


@dataclass(frozen=True, slots=True, eq=False)
class Replace(HookOnly):
    """``y ← values``, whatever y is. A hook only.

    values: a number or ``[d]`` for every row and position, ``[row, d]`` for every position of a row, or
    ``[row, position, d]``, whose last position is the last of the batch (left padding may be longer or
    missing); one row of values is for all rows, one position for all positions. mask: of values by position,
    which ``[row, position]`` are real; None where it is not known.
    """

    values: Tensor
    mask: Tensor | None = None

    needs_input: ClassVar[bool] = False
    exactness: ClassVar[str] = "a hook: the values are given"
    why: ClassVar[str] = "what is given depends on the prompt, which no matrix sees"

    def act(self, written: Tensor, inputs: Tensor | None = None) -> Tensor:
        values = self.values.to(written)
        if values.ndim == 2:
            values = values.unsqueeze(-2)
        return values.expand(written.shape).clone()  # never the given tensor itself

    @property
    def real(self) -> Tensor:
        """Which ``[row, position]`` of values by position are real: all but padding, which has zeros alone.

        Of a single coordinate zeros say nothing.
        """
        if self.mask is not None:
            return self.mask.bool()
        one = self.values.shape[-1] == 1
        return self.values.ne(0).any(-1).cpu() | one

    @property
    def row_count(self) -> int | None:
        """Rows that the values are for; None for any number."""
        many = self.values.ndim > 1 and len(self.values) > 1
        return len(self.values) if many else None

    def columns(self, start: int, stop: int, width: int) -> Replace | None:
        """The same for columns ``start:stop`` of a batch of ``width``; None after its end.

        Raises SiteError for values of fewer positions than the longest row has.
        """
        if self.values.ndim < 3 or (given := self.values.shape[1]) == 1:
            return self
        if given < width:
            raise SiteError(
                f"there are values for {given} positions, and a prompt has {width} tokens; give a value for "
                "each, or choose offsets with where"
            )
        if start >= width:
            return None
        chosen = slice(given - width + start, given - width + stop)
        mask = None if self.mask is None else self.mask[:, chosen]
        return Replace(self.values[:, chosen], mask)

    def rows(self, index: Tensor) -> Replace:
        """The same for some rows of the batch."""
        if self.row_count is None:
            return self
        mask = None if self.mask is None else self.mask[index.to(self.mask.device)]
        return Replace(self.values[index.to(self.values.device)], mask)
