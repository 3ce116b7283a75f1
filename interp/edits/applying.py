"""A delta in a model's weights, taken out again bit for bit, and the fingerprint that names a base."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from interp.edits.edit import readable_parameter
from interp.errors import DeltaError
from interp.models.anatomy import Anatomy
from interp.models.quantised import values_of
from interp.types import Shift, Update, WeightDelta

FINGERPRINT_SAMPLES = 4096


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
        readable_parameter(params[name], name)
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
