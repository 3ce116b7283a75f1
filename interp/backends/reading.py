"""Where a site lies in the transformers model and how its value is read there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from interp.backends.protocol import Positions, take
from interp.hooking import first, first_argument
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

    if site.kind in ("embed", "resid_pre"):
        return Reading(anatomy.blocks[max(site.block, 0)], True, given)
    if site.kind == "resid_post":
        return Reading(anatomy.blocks[site.block], False, result)
    if site.kind == "resid_mid":
        path = anatomy.resid_mid[site.block]
        assert path is not None  # check_sites has seen it
        return Reading(path, True, given)
    if site.kind == "component":
        component = next(c for c in anatomy.components if c.name == site.name)
        return Reading(component.module, False, lambda *call: result(*call) * component.scale)
    writer = writer_of(anatomy, site)
    read = _expert_reader(positions, shape) if writer.fused else given
    return Reading(writer.module, True, read)


def writer_of(anatomy: Anatomy, site: Site) -> BoundWriter:
    """The writer whose input a ``writer_in`` site is."""
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
