"""Where a site lies in the transformers model and how its value is read there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from interp.backends.protocol import Positions, take
from interp.hooking import first, first_argument, locate
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.experts import expert_inputs, routed_arguments
from interp.sites import Site

Reader = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor]


@dataclass(frozen=True, slots=True)
class Reading:
    """One site as a module: ``read(module, args, kwargs, output)`` gives the wanted positions.

    before: the value is there before the module runs, and ``read`` gets None as its output.
    """

    path: str
    before: bool
    read: Reader


def reading(anatomy: Anatomy, site: Site, positions: Positions, shape: Sequence[int]) -> Reading:
    """How to read a site of a batch whose ids have ``shape`` ``[batch, seq]``."""

    # Mixture-of-experts modules work on [tokens, d]: the reshape gives them back their rows.
    def given(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Tensor:
        return take(first_argument(args, kwargs).reshape(*shape, -1), positions)

    def result(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Tensor:
        return take(first(out).reshape(*shape, -1), positions)

    at = locate(anatomy, site)
    if at.inside_experts:
        return Reading(at.path, True, _expert_reader(positions, shape))
    if at.before:
        return Reading(at.path, True, given)
    if at.scale != 1.0:
        return Reading(at.path, False, lambda *call: result(*call) * at.scale)
    return Reading(at.path, False, result)


def writer_of(anatomy: Anatomy, site: Site) -> BoundWriter:
    """The writer whose input or output a site is."""
    return next(w for w in anatomy.block_writers if w.name == site.name)


def _expert_reader(positions: Positions, shape: Sequence[int]) -> Reader:
    """Reads ``[batch, (n,) expert · d_in]``, computed for the wanted tokens only."""

    def read(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Tensor:
        hidden, index, weights = (
            take(t.reshape(*shape, -1), positions) for t in routed_arguments(args, kwargs)
        )
        flat = [t.reshape(-1, t.shape[-1]) for t in (hidden, index, weights)]
        return expert_inputs(module, *flat).reshape(*hidden.shape[:-1], -1)

    return read


def writer_sites(writers: Sequence[BoundWriter]) -> list[Site]:
    """The input sites of writers that sit in a block."""
    return [Site.writer_in(w.block, w.name) for w in writers if w.block is not None]
