"""Edits: operators put at writers or at residual sites, as hooks and as weight deltas.

The base model is never changed by a method. :func:`interp.hooking.hooked` runs an edit as forward hooks,
:func:`applied` lends the model with a delta in its weights and gives the old weights back bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import DeltaError, NotExpressible, SiteError
from interp.maths import through_gain
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.quantised import values_of
from interp.operators import Ablation, Addition, HookOnly, Operator
from interp.sites import Site
from interp.types import Coverage, Direction, LowRank, Shift, Update, Vector, WeightDelta

FINGERPRINT_SAMPLES = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """Operators at writers (keyed by weight name) and at residual sites, with the recipe that made them.

    An operator at a writer acts on what that matrix writes; an operator at a site acts on the whole
    stream there, which is a different edit and rarely has a weight form.
    """

    writers: Mapping[str, Operator] = field(default_factory=dict)
    sites: Mapping[Site, Operator] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.writers and not self.sites:
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


# --- the weight face ---------------------------------------------------------------------------


def canonical(param: Tensor, axes: str) -> Tensor:
    """A stored weight as ``[*expert, d_model, d_in]``."""
    return param if axes.endswith("out in") else param.transpose(-1, -2)


def readable(model: nn.Module, name: str) -> Tensor:
    """A parameter in fp32. Raises DeltaError for an offloaded or quantised one."""
    return _readable(model.get_parameter(name), name)


def _readable(param: Tensor, name: str) -> Tensor:
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


def _writer_updates(
    model: nn.Module, anatomy: Anatomy, writer: BoundWriter, operator: Operator
) -> Iterator[tuple[str, Update]]:
    stored = _readable(model.get_parameter(writer.weight), writer.weight)
    weight = canonical(stored, writer.axes)
    bias = None if writer.bias is None else _readable(model.get_parameter(writer.bias), writer.bias)
    if (writer.gain or writer.fused) and operator.bias_update(None, weight) is not None:
        why = "a norm follows the writer" if writer.gain else "routing weights need not sum to 1"
        raise NotExpressible(
            f"{type(operator).__name__} at {writer.name} adds a constant, which has no exact weight form "
            f"there ({why}); use it as a hook"
        )
    change, value = operator.weight_update(weight), operator.bias_update(bias, weight)
    if change is not None:
        change = LowRank(change.b, change.a, writer.axes)
    if value is not None and writer.kind == "embedding":
        # A constant for every token: one rank-1 update of all rows, which the module may scale.
        gain = (writer.scale or 1.0) / anatomy.embed_scale
        ones = torch.ones(1, weight.shape[-1], dtype=value.dtype, device=value.device)
        constant = LowRank(value.unsqueeze(-1) / gain, ones, writer.axes)
        change, value = constant if change is None else change.plus(constant), None
    if change is not None:
        yield writer.weight, change
    if value is not None:
        yield writer.bias or f"{writer.module}.bias", Shift(value)


def _site_as_writer(anatomy: Anatomy, site: Site, operator: Operator) -> tuple[str, Operator]:
    """The writer whose bias is the same edit as an addition at ``site``; NotExpressible otherwise."""
    if isinstance(operator, HookOnly):
        operator.refuse()
    if not isinstance(operator, Addition):
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
    return writer.weight, Addition(operator.vector, operator.coefficient / writer.scale)


def to_delta(
    model: nn.Module,
    anatomy: Anatomy,
    edit: Edit,
    *,
    provenance: Mapping[str, Any] | None = None,
) -> WeightDelta:
    """The weight face of an edit, with fp32 factors on the CPU.

    Raises NotExpressible where an operator has no exact weight form, DeltaError when nothing changes.
    """
    placed = dict(edit.writers)
    if unknown := placed.keys() - {w.weight for w in anatomy.writers}:
        raise DeltaError(
            f"{sorted(unknown)[0]} writes no stream; `interp inspect MODEL` lists what does"
        )
    for site, operator in edit.sites.items():
        name, moved = _site_as_writer(anatomy, site, operator)
        if name in placed:
            raise NotExpressible(
                f"two operators meet at {name}; make a delta of each and compose them"
            )
        placed[name] = moved
    updates: dict[str, Update] = {}
    edited: list[str] = []
    for writer in anatomy.writers:
        if writer.weight not in placed:
            continue
        made = dict(_writer_updates(model, anatomy, writer, placed[writer.weight]))
        updates |= {k: _to_cpu(u) for k, u in made.items()}
        edited += [writer.weight] if made else []
    skipped = {
        w.weight: "no difference between the classes here" if w.weight in placed else "not selected"
        for w in anatomy.writers
        if w.weight not in edited
    }
    skipped |= anatomy.unreached
    embeddings = {w.weight for w in anatomy.embeddings if w.tied}
    return WeightDelta(
        updates=updates,
        base=fingerprint(model, anatomy),
        recipe=dict(edit.recipe),
        exactness="; ".join(sorted({op.exactness for op in placed.values()})),
        coverage=Coverage(tuple(edited), skipped),
        provenance=dict(provenance or {}),
        checkpoint=_checkpoint_names(anatomy, updates),
        untied=bool(embeddings & updates.keys()),
    )


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


def fingerprint(model: nn.Module, anatomy: Anatomy, *, samples: int = FINGERPRINT_SAMPLES) -> str:
    """SHA-256 of the architecture and of samples of every writer, rounded to bf16.

    The rounding makes one checkpoint loaded in fp32 or bf16 give one fingerprint (in fp16 only one that
    is stored in bf16 or fp16); the samples (``samples`` and more a writer, strided) make any low-rank
    edit change it. Scaled float8 counts as the values that it stands for. A model whose writers are quantised
    in another way, or offloaded, gets ``"unverified"``.
    """
    digest = hashlib.sha256(f"{anatomy.model_type}:{anatomy.d_model}:{anatomy.n_blocks}".encode())
    for writer in anatomy.writers:
        values = values_of(model, writer.weight)
        if values is None:
            return "unverified"
        flat = values.reshape(-1)
        step = max(1, flat.numel() // samples)
        sample = flat[::step].to(torch.bfloat16).cpu().contiguous().view(torch.int16)
        digest.update(writer.weight.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def check_base(model: nn.Module, anatomy: Anatomy, delta: WeightDelta) -> None:
    """Raise DeltaError when the delta was made for other weights than these."""
    check_made_for(delta, fingerprint(model, anatomy))


def check_made_for(delta: WeightDelta, actual: str) -> None:
    """Raise DeltaError when the delta was made for a base with another fingerprint."""
    if "unverified" not in (actual, delta.base) and actual != delta.base:
        made_for = delta.provenance.get("model", "another model")
        raise DeltaError(
            f"this delta was made for another base: it expects {delta.base[:12]} ({made_for}), this "
            f"model is {actual[:12]}; open the base it names, in the dtype "
            "it was fitted in, or fit it again here"
        )


@contextmanager
def applied(model: nn.Module, anatomy: Anatomy, delta: WeightDelta) -> Iterator[nn.Module]:
    """The model with the delta in its weights, restored bit for bit on exit (also after an error).

    Raises DeltaError for another base, a missing parameter or a shape that does not fit, before
    anything is changed.
    """
    check_base(model, anatomy, delta)
    undo = apply_(model, anatomy, delta)
    try:
        yield model
    finally:
        undo()


@torch.no_grad()
def apply_(model: nn.Module, anatomy: Anatomy, delta: WeightDelta) -> Callable[[], None]:
    """Write the delta into the model's weights; returns the function that takes it out again."""
    _check_fits(dict(model.named_parameters(remove_duplicate=False)), model, delta)
    undo: list[Callable[[], None]] = []

    @torch.no_grad()
    def revert() -> None:
        for step in reversed(undo):
            step()

    try:
        _write(model, anatomy, delta, undo)
    except BaseException:  # out of memory, or a user's Ctrl-C: the base stays whole
        revert()
        raise
    return revert


def _write(
    model: nn.Module, anatomy: Anatomy, delta: WeightDelta, undo: list[Callable[[], None]]
) -> None:
    """Write every update, noting in ``undo`` how to take each out before it goes in."""
    if delta.untied:
        undo.append(untie(model, anatomy))
    # Named only now: an unembedding that was just untied is a parameter of its own.
    params = dict(model.named_parameters(remove_duplicate=False))
    for name, update in delta:
        if name not in params:
            undo.append(_new_bias(model, name, update))
            continue
        param = params[name]
        backup = param.detach().clone()
        change = update.value if isinstance(update, Shift) else update.stored()
        # Added in fp32 and rounded once, so that a bf16 model gets the nearest bf16 weights.
        undo.append(partial(_restore, param, backup))
        param.copy_(param.float() + change.to(param.device))


def _restore(param: Tensor, backup: Tensor) -> None:
    param.copy_(backup)


def _check_fits(params: Mapping[str, Tensor], model: nn.Module, delta: WeightDelta) -> None:
    for name, update in delta:
        if name not in params:
            owner, _, leaf = name.rpartition(".")
            known = {n for n, _ in model.named_modules()}
            if isinstance(update, Shift) and leaf == "bias" and owner in known:
                continue
            raise DeltaError(f"this delta edits {name}, which the model does not have")
        _readable(params[name], name)
        shape = tuple(params[name].shape)
        wanted = tuple(update.value.shape) if isinstance(update, Shift) else update.stored_shape
        if shape != wanted:
            raise DeltaError(f"{name}: the delta is for shape {wanted}, the model has {shape}")


def _new_bias(model: nn.Module, name: str, update: Update) -> Callable[[], None]:
    module = model.get_submodule(name.rpartition(".")[0])
    weight: Tensor = module.weight  # type: ignore[assignment]
    value = update.value.to(weight)  # type: ignore[union-attr]
    module.bias = nn.Parameter(value, requires_grad=False)
    return lambda: setattr(module, "bias", None)


def untie(model: nn.Module, anatomy: Anatomy) -> Callable[[], None]:
    """Give the unembedding its own copy of a tied weight, so that an edited embedding stays an embedding."""
    head = model.get_submodule(anatomy.unembed)
    shared = head.weight
    if shared is not model.get_submodule(anatomy.embeddings[0].module).weight:
        return lambda: None
    head.weight = nn.Parameter(shared.detach().clone(), requires_grad=False)
    return lambda: setattr(head, "weight", shared)
