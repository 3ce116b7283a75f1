"""The hook face of edits: operators on what modules give, with no weight touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from interp.edits import Edit
from interp.errors import NotExpressible, SiteError
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.experts import expert_inputs, routed_arguments
from interp.operators import HookOnly, Operator
from interp.sites import Site


def first(output: Any) -> Tensor:
    """The tensor of a module output (transformers modules return tensors or tuples)."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A module's input, however it was passed."""
    return args[0] if args else next(iter(kwargs.values()))


@contextmanager
def hooked(model: nn.Module, anatomy: Anatomy, edit: Edit) -> Iterator[nn.Module]:
    """The model running an edit as forward hooks; no weight is touched, hooks go even after an error."""
    with ExitStack() as stack:
        for writer in anatomy.writers:
            if (operator := edit.writers.get(writer.weight)) is not None:
                handle = _hook_writer(model, writer, operator)
                stack.callback(handle.remove)
        for site, operator in edit.sites.items():
            handle = _hook_site(model, anatomy, site, operator)
            stack.callback(handle.remove)
        yield model


def act_at(
    writer: BoundWriter,
    operator: Operator,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any,
) -> Any:
    """What a writer's module gives once the operator has acted; args and kwargs are the module's own.

    Raises NotExpressible for a constant inside fused experts, whose routing weights would scale it, and
    for a nonlinear operator there, which on the sum of experts is another edit than on each.
    """
    if not writer.fused:
        return operator.act(out, first_argument(args, kwargs) if operator.needs_input else None)
    if operator.homogeneous:
        return operator.act(out)
    if not operator.needs_input or isinstance(operator, HookOnly):
        raise NotExpressible(
            f"{type(operator).__name__} inside fused experts; put it at the residual site instead"
        )
    return operator.act(out, expert_inputs(module, *routed_arguments(args, kwargs)).flatten(1))


def _hook_writer(model: nn.Module, writer: BoundWriter, operator: Operator) -> Any:
    module = model.get_submodule(writer.module)
    return module.register_forward_hook(partial(act_at, writer, operator), with_kwargs=True)


def _hook_site(model: nn.Module, anatomy: Anatomy, site: Site, operator: Operator) -> Any:
    if site.kind == "resid_post":
        block = model.get_submodule(anatomy.blocks[site.block])
        return block.register_forward_hook(
            lambda m, a, out: with_first(out, operator.act(first(out)))
        )
    if site.kind in ("embed", "resid_pre"):
        block = model.get_submodule(anatomy.blocks[max(site.block, 0)])

        def before(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (operator.act(args[0]), *args[1:]), kwargs
            key = next(iter(kwargs))
            return args, {**kwargs, key: operator.act(kwargs[key])}

        return block.register_forward_pre_hook(before, with_kwargs=True)
    raise SiteError(f"an edit cannot be put at {site}; use embed, resid_pre or resid_post")
