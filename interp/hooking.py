"""The hook face of edits and interventions: operators on what modules take and give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.edits import Edit, bound, canonical
from interp.errors import NotExpressible, SiteError
from interp.interventions import Intervention, Interventions, Where, at_offsets
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.experts import expert_inputs, routed_arguments
from interp.operators import HookOnly, Operator, at_columns
from interp.places import Place, site_of
from interp.sites import Site
from interp.types import TokenBatch

Act = Callable[..., Tensor]
"""``act(value, inputs=None)``: what an intervention makes of the value of its site."""


def first(output: Any) -> Tensor:
    """The tensor of a module output (transformers modules return tensors or tuples)."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A module's input, however it was passed."""
    return args[0] if args else next(iter(kwargs.values()))


# --- where a site lies ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Location:
    """The module at which a site is read and edited.

    before: the site is the module's input, else its output. scale: factor between that value and the site.
    writer: the writer whose input or output the site is.
    """

    path: str
    before: bool
    scale: float = 1.0
    writer: BoundWriter | None = None

    @property
    def inside_experts(self) -> bool:
        """Whether the site is between the two projections of fused experts, where no module is."""
        return self.before and self.writer is not None and self.writer.fused


def locate(anatomy: Anatomy, site: Site) -> Location:
    """The module of a site. SiteError for a site that the model does not have."""
    if site.kind in ("embed", "resid_pre"):
        return Location(anatomy.blocks[max(site.block, 0)], True)
    if site.kind == "resid_post":
        return Location(anatomy.blocks[site.block], False)
    if site.kind == "resid_mid":
        path = anatomy.resid_mid[site.block]
        if path is None:
            raise SiteError(f"{site}: block {site.block} has no stream between mixer and MLP")
        return Location(path, True)
    if site.kind == "component":
        component = next(c for c in anatomy.components if c.name == site.name)
        return Location(component.module, False, component.scale)
    writer = next(w for w in anatomy.writers if w.name == site.name)
    return Location(writer.module, site.kind == "writer_in", 1.0, writer)


# --- edits: every position, every row --------------------------------------------------------------


@contextmanager
def hooked(
    model: nn.Module, anatomy: Anatomy, edit: Edit, *, alone: bool = False
) -> Iterator[nn.Module]:
    """The model running an edit as forward hooks; no weight is touched, hooks go even after an error.

    alone: twins of the model, which share its hooks, run unedited.
    """
    with ExitStack() as stack:
        for writer in anatomy.writers:
            if (operator := edit.writers.get(writer.weight)) is not None:
                module = model.get_submodule(writer.module)
                hook = _own(module, partial(act_at, writer, operator), alone)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for at, act in edit_acts(anatomy, edit):
            stack.callback(place(model, at, act, alone=alone).remove)
        yield model


def edit_acts(anatomy: Anatomy, edit: Edit) -> list[tuple[Location, Act]]:
    """What an edit does at inputs of writers and at residual sites: locations and functions."""
    inputs = [
        (Location(w.module, True, 1.0, w), _without_inputs(edit.inputs[w.weight]))
        for w in anatomy.writers
        if w.weight in edit.inputs
    ]
    for site in edit.sites:
        check_edit_site(site)
    return inputs + [(locate(anatomy, s), _without_inputs(o)) for s, o in edit.sites.items()]


def _without_inputs(operator: Operator) -> Act:
    return lambda value, inputs=None: operator.act(value)


def check_edit_site(site: Site) -> None:
    """Raise SiteError for a site at which an Edit holds no operator."""
    if site.kind not in ("embed", "resid_pre", "resid_post"):
        raise SiteError(f"an edit cannot be put at {site}; use embed, resid_pre or resid_post")


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


# --- interventions: chosen positions and rows ----------------------------------------------------


@dataclass(slots=True)
class Run:
    """Which columns of a batch the current forward pass computes; counted at the token embedding.

    offsets: those at which interventions act. prompt_end: column after the last prompt token of every row;
    None outside calls that know the prompts. width: columns of the batch. start, shape: first column and
    shape ``[row, position]`` of the current pass. With a cache of keys and values a pass computes the new
    columns alone.
    """

    offsets: tuple[int, ...] = ()
    prompt_end: Tensor | None = None
    width: int = 0
    start: int = 0
    shape: tuple[int, ...] = (0, 0)

    def begin(self, batch: TokenBatch) -> None:
        """Expect the first pass of a batch. SiteError for an offset before the start of a prompt."""
        shortest = int((batch.lengths - batch.ids.shape[1] + batch.prompt_end).min())
        if self.offsets and (first := min(self.offsets)) < -shortest:
            raise SiteError(
                f"where={first} lies before a prompt of {shortest} tokens; −1 is the last prompt token"
            )
        self.prompt_end, self.width = batch.prompt_end, batch.ids.shape[1]
        self.start, self.shape = 0, (0, 0)

    def end(self) -> None:
        """Forget the batch: what runs next may be another."""
        self.prompt_end = None

    def count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the pass that begins; a hook of the token embedding."""
        ids = first_argument(args, kwargs)
        self.start += self.shape[1]
        self.shape = tuple(ids.shape[:2])

    def selected(self, where: Where, device: torch.device) -> Tensor | None:
        """Which ``[row, position]`` of the current pass ``where`` means; None for all of them."""
        if where == "all":
            return None
        if self.prompt_end is None:
            raise SiteError(
                f"where={where!r} needs to know where prompts end; run the model through the LM, not "
                "directly"
            )
        columns = torch.arange(self.start, self.start + self.shape[1], device=device)
        offsets = columns - self.prompt_end.to(device).unsqueeze(-1)
        return at_offsets(where, offsets)


def acting(part: Intervention, operator: Operator, run: Run, scale: float = 1.0) -> Act:
    """The function that an intervention puts at its site."""

    def act(value: Tensor, inputs: Tensor | None = None) -> Tensor:
        selected = run.selected(part.where, value.device)
        if selected is not None and not selected.any():
            return value
        width = run.width if run.prompt_end is not None else run.shape[1]
        own = at_columns(operator, run.start, run.start + run.shape[1], width)
        if own is None:
            return value
        whole = _with_rows(value, run) * scale
        given = _with_rows(inputs, run) if inputs is not None and operator.needs_input else None
        edited = _acted(part, own, whole, given)
        if selected is not None:
            edited = torch.where(selected.unsqueeze(-1), edited, whole)
        return (edited / scale).reshape(value.shape)

    return act


def _with_rows(value: Tensor, run: Run) -> Tensor:
    """``[row, position, d]``; modules of experts see ``[tokens, d]``."""
    return value if value.ndim == 3 else value.reshape(*run.shape, -1)


def _acted(part: Intervention, operator: Operator, value: Tensor, inputs: Tensor | None) -> Tensor:
    """What the operator makes of ``[row, position, d]``. SiteError for tensors that do not fit."""
    why = ""
    try:
        edited = operator.act(value, inputs)
        if edited.shape == value.shape:
            return edited
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        why = f" ({error})"
    raise SiteError(
        f"the tensors of {type(operator).__name__} do not fit {part.site}, whose value is "
        f"[row, position, d] = {list(value.shape)}{why}"
    )


def intervened(
    model: nn.Module, anatomy: Anatomy, edit: Interventions, run: Run
) -> list[tuple[Site, Location, Act]]:
    """Sites, where they lie, and functions to put there, in that order.

    What acts on hidden units of the same experts is one function, and comes first: each such function adds
    what it changes to the output of the experts.
    """
    places, inside = [], {}
    for part in edit:
        at, act = _intervened(model, anatomy, part, run)
        if at.inside_experts:
            inside.setdefault(part.site, (at, []))[1].append(act)
        else:
            places.append((part.site, at, act))
    return [(site, at, _in_turn(acts)) for site, (at, acts) in inside.items()] + places


def _in_turn(acts: Sequence[Act]) -> Act:
    def act(value: Tensor, inputs: Tensor | None = None) -> Tensor:
        for each in acts:
            value = each(value, inputs)
        return value

    return act


def _intervened(
    model: nn.Module, anatomy: Anatomy, part: Intervention, run: Run
) -> tuple[Location, Act]:
    """Where an intervention acts, and how.

    Raises NotExpressible for a constant or a nonlinear operator inside fused experts: routing weights would
    scale the constant, and hidden units of an expert that a token is not routed to do not exist.
    """
    at = locate(anatomy, part.site)
    operator = bound(model, at.writer, part.operator)
    if at.writer is not None and at.writer.fused and not operator.homogeneous:
        raise NotExpressible(
            f"{type(operator).__name__} inside fused experts; put it at the residual site instead"
        )
    return at, acting(part, operator, run, at.scale)


@contextmanager
def counting(model: nn.Module, anatomy: Anatomy, run: Run) -> Iterator[None]:
    """``run`` counts the columns of every forward pass while the context lasts."""
    module = model.get_submodule(anatomy.embeddings[0].module)
    handle = module.register_forward_pre_hook(run.count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def intervening(
    model: nn.Module, anatomy: Anatomy, edit: Interventions, run: Run
) -> Iterator[nn.Module]:
    """The model running interventions as forward hooks; hooks go even after an error."""
    with counting(model, anatomy, run), ExitStack() as stack:
        for _, at, act in intervened(model, anatomy, edit, run):
            stack.callback(place(model, at, act).remove)
        yield model


# --- reading with gradients ----------------------------------------------------------------------


@contextmanager
def recording(
    model: nn.Module, anatomy: Anatomy, places: Sequence[Place], shape: Sequence[int]
) -> Iterator[dict[Place, Tensor]]:
    """Activations by place of the pass that runs inside, ``[row, position, …]``.

    The rest of the pass is computed from them, so that gradients of the output with respect to each exist.

    shape: ``[row, position]`` of the pass.
    """
    found: dict[Place, Tensor] = {}

    def record(at: Location, given: Place, value: Tensor, inputs: Tensor | None = None) -> Tensor:
        whole = value.reshape(*shape, -1) * at.scale
        own = whole if isinstance(given, Site) else given.take(whole)
        found[given] = own if own.requires_grad else own.requires_grad_()
        if not isinstance(given, Site):
            own = given.put(whole, own)
        return (own / at.scale).reshape(value.shape)

    with ExitStack() as stack:
        for given in places:
            at = locate(anatomy, site_of(given))
            stack.callback(place(model, at, partial(record, at, given)).remove)
        yield found


# --- putting a function at a location ------------------------------------------------------------


def place(model: nn.Module, at: Location, act: Act, *, alone: bool = False) -> Any:
    """Register ``act`` at a location of the transformers model; returns the handle that removes it.

    alone: twins of the model, which share its hooks, run unedited.
    """
    module = model.get_submodule(at.path)
    if at.before and not at.inside_experts:
        hook = _own(module, partial(_before, act), alone)
        return module.register_forward_pre_hook(hook, with_kwargs=True)
    after = partial(inside_experts, at, act) if at.inside_experts else partial(_after, act)
    return module.register_forward_hook(_own(module, after, alone), with_kwargs=True)


def _own(owner: nn.Module, hook: Callable[..., Any], alone: bool) -> Callable[..., Any]:
    """The hook; with ``alone`` it leaves modules of twins as they are."""
    if not alone:
        return hook
    return lambda module, *call: hook(module, *call) if module is owner else None


def _before(act: Act, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (act(args[0]), *args[1:]), kwargs
    key = next(iter(kwargs))
    return args, {**kwargs, key: act(kwargs[key])}


def _after(
    act: Act, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> Any:
    return with_first(out, act(first(out), first_argument(args, kwargs)))


def inside_experts(
    at: Location,
    act: Act,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any,
) -> Any:
    """The experts' output with their hidden units edited: every expert's projection of what changes."""
    assert at.writer is not None
    hidden = expert_inputs(module, *routed_arguments(args, kwargs))
    moved = act(hidden.flatten(1)).view_as(hidden) - hidden
    weight = canonical(_weight(module, at.writer), at.writer.axes)
    return with_first(out, first(out) + torch.einsum("tef,edf->td", moved, weight.to(moved)))


def _weight(module: nn.Module, writer: BoundWriter) -> Tensor:
    """The writer's weight, from its module."""
    return module.get_parameter(writer.weight.removeprefix(f"{writer.module}."))
