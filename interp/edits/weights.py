"""The weight face of edits: operators as low-rank updates and biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

from interp.edits.applying import fingerprint
from interp.edits.edit import Edit, bound, canonical, readable_parameter
from interp.errors import DeltaError, NotExpressible
from interp.interventions import Interventions
from interp.models.anatomy import Anatomy, BoundWriter
from interp.operators import Addition, Composed, HookOnly, Operator, linear_form, row_count
from interp.sites import Site
from interp.types import Coverage, LowRank, Shift, Update, WeightDelta


def _writer_updates(
    model: nn.Module,
    anatomy: Anatomy,
    writer: BoundWriter,
    operator: Operator | None,
    before: Operator | None = None,
) -> Iterator[tuple[str, Update]]:
    """Updates of a writer's weight and bias. before: operator on what the writer reads."""
    stored = readable_parameter(model.get_parameter(writer.weight), writer.weight)
    weight = canonical(stored, writer.axes)
    bias = _bias(model, writer)
    changes: list[LowRank] = []
    shift = None
    if before is not None:
        change, shift = _input_update(writer, before, weight)
        changes += [] if change is None else [change]
        weight = weight if change is None else weight + change.dense()
        if shift is not None:
            bias = shift if bias is None else bias + shift
    if operator is not None:
        _check_constant(writer, operator, weight)
        change, after = operator.weight_update(weight), operator.bias_update(bias, weight)
        changes += [] if change is None else [change]
        shift = after if shift is None else shift if after is None else shift + after
    yield from _as_updates(anatomy, writer, changes, shift, weight)


def _bias(model: nn.Module, writer: BoundWriter) -> Tensor | None:
    """The bias that the module has: its family's, or one that an applied delta gave it."""
    name = writer.bias or f"{writer.module}.bias"
    owner = model.get_submodule(writer.module)
    new = isinstance(getattr(owner, "bias", None), nn.Parameter) and not writer.fused
    if writer.bias is None and not new:
        return None
    return readable_parameter(model.get_parameter(name), name)


def _check_constant(writer: BoundWriter, operator: Operator, weight: Tensor) -> None:
    """Raise NotExpressible for a constant behind a norm or routing weights."""
    if (writer.gain or writer.fused) and operator.bias_update(None, weight) is not None:
        why = "a norm follows the writer" if writer.gain else "routing weights need not sum to 1"
        raise NotExpressible(
            f"{type(operator).__name__} at {writer.name} adds a constant, which has no exact weight form "
            f"there ({why}); use it as a hook"
        )


def _as_updates(
    anatomy: Anatomy,
    writer: BoundWriter,
    changes: Sequence[LowRank],
    shift: Tensor | None,
    weight: Tensor,
) -> Iterator[tuple[str, Update]]:
    change = None
    for each in changes:
        own = LowRank(each.b, each.a, writer.axes)
        change = own if change is None else change.plus(own)
    if shift is not None and writer.kind == "embedding":
        # A constant for every token: one rank-1 update of all rows, which the module may scale.
        gain = (writer.scale or 1.0) / anatomy.embed_scale
        ones = torch.ones(1, weight.shape[-1], dtype=shift.dtype, device=shift.device)
        constant = LowRank(shift.unsqueeze(-1) / gain, ones, writer.axes)
        change, shift = constant if change is None else change.plus(constant), None
    if change is not None:
        yield writer.weight, change
    if shift is not None:
        yield writer.bias or f"{writer.module}.bias", Shift(shift)


def _input_update(
    writer: BoundWriter, operator: Operator, weight: Tensor
) -> tuple[LowRank | None, Tensor | None]:
    """``ΔW = W (M − I)`` and ``Δb = W c`` of an operator ``a ← M a + c`` on what a writer reads.

    Raises NotExpressible for a constant in fused experts and for an operator that mixes experts.
    """
    if writer.kind == "embedding":
        raise NotExpressible("an embedding reads token ids; edit its output instead")
    experts = weight.shape[0] if writer.fused else 1
    left, right, shift = linear_form(operator, experts * weight.shape[-1])
    moved = None if shift is None else shift.to(weight)
    if not writer.fused:
        change = LowRank(weight @ left.to(weight), right.to(weight)) if len(right) else None
        return change, None if moved is None else weight @ moved
    if moved is not None:
        raise NotExpressible(
            f"{type(operator).__name__} adds a constant to hidden units of {writer.name}, which routing "
            "weights would scale; put it at the output of the component"
        )
    return _expert_input_update(writer, left.to(weight), right.to(weight), weight), None


def _expert_input_update(
    writer: BoundWriter, left: Tensor, right: Tensor, weight: Tensor
) -> LowRank | None:
    """The same for fused experts, from a form over the hidden units of all experts in a row."""
    experts, _, d_in = weight.shape
    reads = right.unflatten(1, (experts, d_in))
    writes = left.T.unflatten(1, (experts, d_in))
    touched = (reads != 0).any(-1) | (writes != 0).any(-1)
    if bool((touched.sum(-1) > 1).any()):
        raise NotExpressible(
            f"this operator mixes hidden units of several experts of {writer.name}; give each its own"
        )
    rank = int(touched.sum(0).max()) if len(right) else 0
    if not rank:
        return None
    b, a = weight.new_zeros(experts, weight.shape[1], rank), weight.new_zeros(experts, rank, d_in)
    for expert in range(experts):
        own = touched[:, expert].nonzero().flatten()
        b[expert, :, : len(own)] = weight[expert] @ writes[own, expert].T
        a[expert, : len(own)] = reads[own, expert]
    return LowRank(b, a, "expert out in")


def _site_as_writer(anatomy: Anatomy, site: Site, operator: Operator) -> tuple[str, Operator]:
    """The writer whose bias is the same edit as an addition at ``site``; NotExpressible otherwise."""
    if isinstance(operator, HookOnly):
        operator.refuse()
    if site.kind == "component":
        raise NotExpressible(
            f"{site} is what a component adds to the stream; put the operator at the outputs of its matrices "
            "(lm.writers), which have weight forms"
        )
    if (constant := _constant(operator, anatomy.d_model)) is None:
        raise NotExpressible(
            f"{type(operator).__name__} at {site} alone has no weight form: the skip path carries the "
            "component past every matrix; put the operator at all writers instead"
        )
    block = site.block if site.kind == "resid_post" else site.block - 1
    if site.kind not in ("resid_post", "resid_pre") or block < 0:
        raise NotExpressible(
            f"addition at {site} has no weight form; use the output of a block (resid_post)"
        )
    writer = anatomy.in_block(block)[-1].writers[-1]
    if writer.scale is None or writer.fused:
        raise NotExpressible(
            f"addition at {site} has no exact weight form: a norm, a gate or routing weights follow "
            f"{writer.name}; use it as a hook"
        )
    return writer.weight, Addition(constant, 1 / writer.scale)


def _constant(operator: Operator, width: int) -> Tensor | None:
    """The vector ``[width]`` that an operator adds; None for an operator that does anything else."""
    try:
        _, right, shift = linear_form(operator, width)
    except NotExpressible:
        return None
    return None if len(right) else shift


def as_edit(model: nn.Module, anatomy: Anatomy, given: Interventions) -> Edit:
    """Interventions as an edit of every position and every row.

    Operators at one site act one after the other (:class:`interp.operators.Composed`). Raises NotExpressible
    where an intervention acts at some positions or rows alone.
    """
    found: dict[str, dict[Any, Operator]] = {"writers": {}, "sites": {}, "inputs": {}}
    writers = {w.name: w for w in anatomy.writers}
    for part in given:
        if part.where != "all":
            raise NotExpressible(
                f"weights act at every position, and this intervention at {part.where!r} alone; use it as a "
                "hook"
            )
        if part.strengths:
            raise NotExpressible("weights have one strength; make a delta for each")
        if row_count(part.operator) is not None:
            raise NotExpressible(
                f"weights are the same for every prompt, and the intervention at {part.site} has a value for "
                "each; use it as a hook"
            )
        kind = {"writer_out": "writers", "writer_in": "inputs"}.get(part.site.kind, "sites")
        writer = writers.get(part.site.name)
        key = part.site if writer is None else writer.weight
        operator = bound(model, writer, part.operator)
        before = found[kind].get(key)
        found[kind][key] = operator if before is None else Composed((before, operator))
    return Edit(**found, recipe=given.recipe)


def to_delta(
    model: nn.Module,
    anatomy: Anatomy,
    edit: Edit | Interventions,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> WeightDelta:
    """The weight face of an edit, with fp32 factors on the CPU.

    Raises NotExpressible where an operator has no exact weight form, DeltaError when nothing changes.
    """
    if isinstance(edit, Interventions):
        edit = as_edit(model, anatomy, edit)
    placed = _at_writers(anatomy, edit)
    updates: dict[str, Update] = {}
    edited: list[str] = []
    for writer in anatomy.writers:
        operator, before = placed.get(writer.weight), edit.inputs.get(writer.weight)
        if operator is None and before is None:
            continue
        made = dict(_writer_updates(model, anatomy, writer, operator, before))
        updates |= {k: _to_cpu(u) for k, u in made.items()}
        edited += [writer.weight] if made else []
    exact = {each.exactness for each in placed.values()}
    exact |= {f"at what a writer reads, {each.exactness}" for each in edit.inputs.values()}
    embeddings = {w.weight for w in anatomy.embeddings if w.tied}
    return WeightDelta(
        updates=updates,
        base=fingerprint(model, anatomy),
        recipe=dict(edit.recipe),
        exactness="; ".join(sorted(exact)),
        coverage=_coverage(anatomy, edited, {*placed, *edit.inputs}),
        provenance=dict(provenance or {}),
        checkpoint=_checkpoint_names(anatomy, updates),
        untied=bool(embeddings & updates.keys()),
    )


def _at_writers(anatomy: Anatomy, edit: Edit) -> dict[str, Operator]:
    """Operators at writers' outputs by weight name, those at sites of the stream among them.

    Raises DeltaError for a name that is no writer's.
    """
    placed = dict(edit.writers)
    if unknown := (placed.keys() | edit.inputs.keys()) - {w.weight for w in anatomy.writers}:
        raise DeltaError(
            f"{sorted(unknown)[0]} writes no stream; `interp inspect MODEL` lists what does"
        )
    for site, operator in edit.sites.items():
        name, moved = _site_as_writer(anatomy, site, operator)
        # The stream after a block comes after everything that acts at the output of its last writer.
        placed[name] = Composed((placed[name], moved)) if name in placed else moved
    return placed


def _coverage(anatomy: Anatomy, edited: Sequence[str], selected: Set[str]) -> Coverage:
    """Which writers an edit changes, and why it leaves the others."""
    skipped = {
        w.weight: "no difference between the classes here"
        if w.weight in selected
        else "not selected"
        for w in anatomy.writers
        if w.weight not in edited
    }
    return Coverage(tuple(edited), skipped | anatomy.unreached)


def _to_cpu(update: Update) -> Update:
    if isinstance(update, Shift):
        return Shift(update.value.float().cpu())
    return LowRank(update.b.float().cpu(), update.a.float().cpu(), update.axes)


def _checkpoint_names(
    anatomy: Anatomy, updates: Mapping[str, Update]
) -> dict[str, tuple[str, ...]]:
    names = {}
    for writer in anatomy.writers:
        if writer.weight in updates:
            names[writer.weight] = writer.checkpoint
        bias = writer.bias or f"{writer.module}.bias"
        if bias in updates:
            stem = writer.checkpoint[0].removesuffix(".weight")
            names[bias] = (f"{stem}.bias",) if writer.checkpoint[0] != stem else (bias,)
    return names
