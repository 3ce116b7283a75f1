"""TransformerLens: the same model as a ``TransformerBridge``, read at its own hook points.

The bridge rewires the module tree it is given, so it gets a twin of the model's: weights and
forward hooks are shared, and an edit of ``model`` edits ``bridge``. Compatibility mode stays off:
folding and centring would change the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from interp.backends.generation import greedy
from interp.backends.hooks import HooksBackend
from interp.backends.protocol import (
    AnyEdit,
    Positions,
    SharedBackend,
    in_order,
    kept_logits,
    model_inputs,
    take,
)
from interp.backends.reading import writer_of
from interp.backends.steps import Steps
from interp.backends.support import require_support
from interp.backends.twin import twin
from interp.edits import Edit
from interp.errors import InterpError, SiteError
from interp.hooking import check_edit_site, counting, hooked, intervened, place
from interp.interventions import Interventions
from interp.models.anatomy import Anatomy
from interp.sites import Site
from interp.types import Ids, TokenBatch

SAME = 0.05
"""Relative: half precision stays far below, a skipped norm or a wrong head count far above."""


class TransformerLensBackend(SharedBackend):
    """TransformerBridge; see :class:`interp.backends.Backend` for what the methods return.

    bridge: the ``TransformerBridge``, to go on with in TransformerLens. model: the transformers
    model as it was given, with the same weights.
    """

    name: ClassVar[str] = "transformer_lens"

    def __init__(self, model: nn.Module, tokenizer: Any, anatomy: Anatomy, source: str) -> None:
        require_support(self.name, anatomy.model_type)
        super().__init__(model, tokenizer, anatomy, source)
        self.bridge: Any = build_bridge(model, tokenizer, anatomy, source)
        self._names = {id(point): name for name, point in self.bridge.hook_dict.items()}
        modules = self.bridge.modules()
        self._wrappers = {id(m.original_component): m for m in modules if _wraps(m)}

    def _capture(
        self, batch: TokenBatch, sites: Sequence[Site], positions: Positions
    ) -> dict[Site, Tensor]:
        found: dict[Site, Tensor] = {}
        hooks = [self._hook(site, found, positions, batch.ids.shape) for site in sites]
        # A stop at the number of blocks is none: then at least most of the unembedding is spared.
        options = model_inputs(self.model, batch) | kept_logits(self.model, -1)
        stop = max(max(site.block, 0) for site in sites) + 1
        with self.bridge.hooks(fwd_hooks=hooks):
            self._run(options, return_type=None, stop_at_layer=stop)
        return in_order(found, sites, "; use backend='hooks'")

    def _both(self, batch: TokenBatch, sites: Sequence[Site]) -> tuple[Tensor, dict[Site, Tensor]]:
        found: dict[Site, Tensor] = {}
        hooks = [self._hook(site, found, None, batch.ids.shape) for site in sites]
        with self.bridge.hooks(fwd_hooks=hooks):
            logits = self._run(model_inputs(self.model, batch)).cpu()
        return logits, in_order(found, sites, "; use backend='hooks'")

    def _run(self, options: dict[str, Any], **more: Any) -> Any:
        ids = options.pop("input_ids")
        return self.bridge(ids, use_cache=False, **options, **more)

    def _hook(
        self, site: Site, found: dict[Site, Tensor], positions: Positions, shape: torch.Size
    ) -> tuple[str, Callable[..., None]]:
        point, scale = self._point(site)

        def keep(value: Tensor, hook: Any) -> None:
            found[site] = (take(value.reshape(*shape, -1), positions) * scale).cpu()

        return self._names[id(point)], keep

    def _point(self, site: Site) -> tuple[Any, float]:
        """The hook point of a site and the factor between it and the site."""
        anatomy = self.anatomy
        if site.kind in ("embed", "resid_pre"):
            return self._within(anatomy.blocks[max(site.block, 0)], "hook_in", site), 1.0
        if site.kind == "resid_post":
            return self._within(anatomy.blocks[site.block], "hook_out", site), 1.0
        if site.kind == "resid_mid":
            return self._within(anatomy.resid_mid[site.block] or "", "hook_in", site), 1.0
        if site.kind == "component":
            component = next(c for c in anatomy.components if c.name == site.name)
            return self._within(component.module, "hook_out", site), component.scale
        writer = writer_of(anatomy, site)
        if site.kind == "writer_out":
            return self._within(writer.module, "hook_out", site), 1.0
        if writer.fused:  # the hook point there is the experts' common input
            raise _no_hook_point(site, anatomy)
        return self._within(writer.module, "hook_in", site), 1.0

    def _within(self, path: str, hook: str, site: Site) -> Any:
        """The hook point on what the bridge put at ``path``; SiteError where it put nothing."""
        module: Any = self.bridge.original_model
        for part in path.split("."):
            module = getattr(module, part)
        # A bridge of joint attention holds the output projection beside the module, not in its place.
        module = self._wrappers.get(id(module), module)
        point = vars(module)["_modules"].get(hook)
        if id(point) not in self._names:
            raise _no_hook_point(site, self.anatomy)
        return point

    @contextmanager
    def editing(self, edit: AnyEdit) -> Iterator[None]:
        """The bridge and the transformers model with an edit in place; at sites, at the bridge's hook points.

        A hook on the transformers block would act after ``hook_resid_pre`` has been read.
        """
        if isinstance(edit, Interventions):
            with self._intervening(edit):
                yield
            return
        if not isinstance(edit, Edit) or not edit.sites:
            with super().editing(edit):
                yield
            return
        hooks = []
        for site, operator in edit.sites.items():
            check_edit_site(site)
            hooks.append(self._acting(site, operator.act))
        there = Edit(sites=edit.sites)
        rest = Edit(edit.writers, inputs=edit.inputs) if edit.writers or edit.inputs else None
        with (
            super().editing(rest),
            hooked(self.model, self.anatomy, there, alone=True),
            self.bridge.hooks(fwd_hooks=hooks),
        ):
            yield

    @contextmanager
    def _intervening(self, edit: Interventions) -> Iterator[None]:
        """Interventions at inputs and components as hooks of the bridge, the others as hooks of transformers.

        The bridge calls modules of writers, and not always those of components.
        """
        with (
            self._running(edit) as run,
            counting(self.model, self.anatomy, run),
            ExitStack() as stack,
        ):
            for site, at, act in intervened(self.model, self.anatomy, edit, run):
                bridged = at.before or site.kind == "component"
                if bridged and not at.inside_experts and self.reaches(site):
                    stack.enter_context(self.bridge.hooks(fwd_hooks=[self._acting(site, act)]))
                    stack.callback(place(self.model, at, act, alone=True).remove)
                else:
                    stack.callback(place(self.model, at, act).remove)
            yield

    def reaches(self, site: Site) -> bool:
        """Whether the bridge has a hook point for a site."""
        try:
            self._point(site)
        except SiteError:
            return False
        return True

    def _acting(self, site: Site, act: Callable[..., Tensor]) -> tuple[str, Callable[..., Tensor]]:
        point, _ = self._point(site)
        return self._names[id(point)], lambda value, hook: act(value)

    def _logits(self, batch: TokenBatch, positions: Positions) -> Tensor:
        options = model_inputs(self.model, batch) | kept_logits(self.model, positions)
        return take(self._run(options), positions).cpu()

    def _generate(self, batch: TokenBatch, tokens: int, pad: int, steps: Steps) -> Ids:
        return greedy(self.bridge.original_model, batch, tokens, pad, steps)


def _wraps(module: nn.Module) -> bool:
    return getattr(module, "original_component", None) is not None


def _no_hook_point(site: Site, anatomy: Anatomy) -> SiteError:
    return SiteError(
        f"TransformerLens has no hook point for {site} in {anatomy.model_type}; use backend='hooks'"
    )


def build_bridge(model: nn.Module, tokenizer: Any, anatomy: Anatomy, source: str) -> Any:
    """A ``TransformerBridge`` over the weights of ``model``, which is left as it was.

    Raises InterpError for a model that the bridge cannot hold or computes differently, NotFinite.
    """
    placed = {str(p.device) for p in model.parameters()}
    if len(placed) > 1:
        raise _not_bridged(model, f"it is on several devices ({', '.join(sorted(placed))})")
    expected = HooksBackend(model, None, anatomy, source).logits(_few_tokens(), None, None)
    try:
        bridge = _bridged(model, tokenizer, anatomy, source or anatomy.model_type)
        gap = _gap(bridge, expected)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _not_bridged(model, f"{type(error).__name__}: {error}") from error
    if not gap < SAME:
        raise _not_bridged(model, f"the bridge's logits are off by {gap:.1%}")
    return bridge


def _bridged(model: nn.Module, tokenizer: Any, anatomy: Anatomy, name: str) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    rewired: Any = twin(model)
    # The bridge takes a missing type for rotary embeddings; transformers takes it for none.
    if getattr(rewired.config, "position_embedding_type", "") is None:
        rewired.config.position_embedding_type = "nope"
    try:
        return build_bridge_from_module(
            rewired,
            type(model).__name__,
            hf_config=rewired.config,
            # The bridge adds tokens and may change the padding side.
            tokenizer=deepcopy(tokenizer),
            model_name=name,
        )
    finally:
        # The bridge trades a missing unembedding bias for a buffer of its own: the slot comes back.
        model.get_submodule(anatomy.unembed)._parameters.setdefault("bias", None)


def _few_tokens() -> TokenBatch:
    ids = torch.arange(1, 4).unsqueeze(0)
    return TokenBatch(ids, torch.ones_like(ids))


@torch.no_grad()
def _gap(bridge: Any, expected: Tensor) -> float:
    """Relative distance between the bridge's logits for three tokens and the model's.

    Adapters are written for the usual configs of a family; unusual ones may compute something else.
    """
    device = next(bridge.parameters()).device
    actual = bridge(_few_tokens().ids.to(device), use_cache=False).cpu().double()
    return ((actual - expected.double()).norm() / expected.double().norm()).item()


def _not_bridged(model: nn.Module, why: str) -> InterpError:
    first_line = why.splitlines()[0].rstrip(": ")
    return InterpError(
        f"TransformerLens cannot run this {type(model).__name__} ({first_line}); "
        "use backend='hooks' or 'nnsight'"
    )
