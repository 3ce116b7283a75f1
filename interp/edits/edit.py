"""Edits as operators: what each writer, each writer's input and each site gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from interp.errors import DeltaError, SiteError
from interp.interventions import StreamAblation
from interp.maths import through_gain
from interp.models.anatomy import Anatomy, BoundWriter
from interp.operators import Ablation, Addition, Graded, Operator
from interp.sites import Site
from interp.types import Direction, Vector


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """Operators at writers (keyed by weight name) and at residual sites, with the recipe that made them.

    An operator at a writer acts on what that matrix writes; an operator at a site acts on the whole
    stream there, which is a different edit and rarely has a weight form. inputs: operators on what a writer
    reads (heads of z, MLP neurons, hidden units of all experts in a row).
    """

    writers: Mapping[str, Operator] = field(default_factory=dict)
    sites: Mapping[Site, Operator] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Operator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.writers and not self.sites and not self.inputs:
            raise DeltaError(
                "this edit matched no writer; name blocks and kinds that `interp inspect MODEL` lists"
            )


def select_writers(
    anatomy: Anatomy,
    blocks: Sequence[int] | None = None,
    *,
    embeddings: bool = False,
) -> list[BoundWriter]:
    """Writers of the given blocks (None: all). Raises SiteError for a block outside the stack."""
    wanted = range(anatomy.n_blocks) if blocks is None else blocks
    if outside := [b for b in wanted if not 0 <= b < anatomy.n_blocks]:
        raise SiteError(
            f"block {outside[0]} is outside this model: blocks are 0 … {anatomy.n_blocks - 1}"
        )
    chosen = [w for w in anatomy.block_writers if w.block in set(wanted)]
    return ([*anatomy.embeddings] if embeddings else []) + chosen


def writer_unit(model: nn.Module, writer: BoundWriter, direction: Vector) -> Vector:
    """The direction to act on at the writer's output, seen through its post-norm gain if it has one."""
    gain = None
    if writer.gain is not None:
        gain = model.get_parameter(writer.gain).detach().to(direction.device)
    return through_gain(direction, gain, writer.gain_offset)


def ablation(
    model: nn.Module,
    anatomy: Anatomy,
    direction: Direction | Mapping[int, Direction],
    *,
    strength: float | Mapping[int, float] = 1.0,
    blocks: Sequence[int] | None = None,
    embeddings: bool = False,
) -> Edit:
    """Directional ablation in every writer of ``blocks``; with ``embeddings`` nothing of it is left.

    direction and strength may be given per block (embeddings then take block 0's).
    """
    operators: dict[str, Operator] = {}
    for writer in select_writers(anatomy, blocks, embeddings=embeddings):
        block = writer.block or 0
        chosen = direction if isinstance(direction, Direction) else direction[block]
        amount = strength if isinstance(strength, int | float) else strength[block]
        unit = writer_unit(model, writer, chosen.vector.float())
        operators[writer.weight] = Ablation(unit, float(amount))
    recipe = {
        "method": "ablation",
        "strength": strength if isinstance(strength, int | float) else dict(strength),
        "blocks": list(range(anatomy.n_blocks) if blocks is None else blocks),
        "embeddings": embeddings,
    }
    return Edit(operators, recipe=recipe)


def steering(site: Site, vector: Vector, coefficient: float = 1.0) -> Edit:
    """Add ``coefficient · vector`` to the stream at one site, at every position."""
    return Edit(
        sites={site: Addition(vector, coefficient)},
        recipe={"method": "addition", "site": site.hook_name, "coefficient": coefficient},
    )


def bound(
    model: nn.Module, writer: BoundWriter | None, operator: Operator | StreamAblation
) -> Operator:
    """The operator in the coordinates of its site."""
    if isinstance(operator, Graded):
        return Graded(bound(model, writer, operator.operator), operator.coefficients)
    if not isinstance(operator, StreamAblation):
        return operator
    if writer is None:
        return operator.through(lambda unit: unit)
    return operator.through(lambda unit: writer_unit(model, writer, unit))


def canonical(param: Tensor, axes: str) -> Tensor:
    """A stored weight as ``[*expert, d_model, d_in]``."""
    return param if axes.endswith("out in") else param.transpose(-1, -2)


def readable(model: nn.Module, name: str) -> Tensor:
    """A parameter in fp32. Raises DeltaError for an offloaded or quantised one."""
    return readable_parameter(model.get_parameter(name), name)


def readable_parameter(param: Tensor, name: str) -> Tensor:
    if param.is_meta:
        raise DeltaError(
            f"{name} is offloaded; load the model without disk or meta offload to edit it"
        )
    if not param.is_floating_point() or param.dtype.itemsize == 1:
        raise DeltaError(
            f"{name} is quantised ({param.dtype}); fit on the quantised model with hooks, or load the "
            "unquantised base to make a weight delta"
        )
    return param.detach().float()
