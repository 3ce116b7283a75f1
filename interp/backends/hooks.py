"""The fast path: plain PyTorch hooks on the transformers model.

Only the wanted positions are kept, the forward pass stops after the last wanted site, and the
unembedding runs only for positions whose logits are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

from torch import Tensor, nn

from interp.backends.generation import greedy
from interp.backends.prefix import after_prefix, hoist, supports_prefix
from interp.backends.protocol import (
    Positions,
    SharedBackend,
    in_order,
    kept_logits,
    model_inputs,
    take,
)
from interp.backends.reading import Reading, reading, writer_sites
from interp.backends.steps import Steps
from interp.sites import Site
from interp.types import Ids, TokenBatch

__all__ = ["HooksBackend", "writer_sites"]


class _Stop(Exception):
    """Raised by the last wanted hook: nothing after it is worth computing."""


class HooksBackend(SharedBackend):
    """Plain hooks; see :class:`interp.backends.Backend` for what the methods return."""

    name: ClassVar[str] = "hooks"

    def _capture(
        self, batch: TokenBatch, sites: Sequence[Site], positions: Positions
    ) -> dict[Site, Tensor]:
        found: dict[Site, Tensor] = {}
        inputs = self._inputs(batch, positions)
        shape = inputs["input_ids"].shape
        wanted = {s: reading(self.anatomy, s, positions, shape) for s in sites}
        with ExitStack() as stack:
            for site, place in wanted.items():
                self._listen(stack, site, place, found, len(wanted))
            with suppress(_Stop):
                self.model(**inputs)
        return in_order(found, wanted)

    def _both(self, batch: TokenBatch, sites: Sequence[Site]) -> tuple[Tensor, dict[Site, Tensor]]:
        found: dict[Site, Tensor] = {}
        with ExitStack() as stack:
            for site in sites:
                place = reading(self.anatomy, site, None, batch.ids.shape)
                self._listen(stack, site, place, found)
            inputs = model_inputs(self.model, batch) | {"use_cache": False}
            logits = self.model(**inputs).logits.cpu()
        return logits, in_order(found, sites)

    def _inputs(self, batch: TokenBatch, positions: Positions) -> dict[str, Any]:
        """Forward arguments; a prefix that all rows share has run already and is in the cache.

        ``positions`` are kept out of the prefix, so that hooks see them; an edit that is in place
        acts on the prefix, too.
        """
        if positions is not None and self._shares_prefix:
            keep = -min((positions,) if isinstance(positions, int) else positions)
            if (hoisted := hoist(batch, keep)) is not None:
                return after_prefix(self.model, hoisted)
        return model_inputs(self.model, batch) | {"use_cache": False}

    @property
    def _shares_prefix(self) -> bool:
        """Whether a prefix may run once for all rows; interventions treat rows and columns apart."""
        return not self._runs and supports_prefix(self.model, self.anatomy)

    def _listen(
        self,
        stack: ExitStack,
        site: Site,
        place: Reading,
        found: dict[Site, Tensor],
        wanted: int | None = None,
    ) -> None:
        """Hook the module that has one site; the hook that reads the last of ``wanted`` stops the pass."""
        module = self.model.get_submodule(place.path)

        def keep(m: nn.Module, args: Any, kwargs: Any, out: Any = None) -> None:
            found[site] = place.read(m, args, kwargs, out).cpu()
            if len(found) == wanted:
                raise _Stop

        register = (
            module.register_forward_pre_hook if place.before else module.register_forward_hook
        )
        stack.callback(register(keep, with_kwargs=True).remove)

    def _logits(self, batch: TokenBatch, positions: Positions) -> Tensor:
        inputs = self._inputs(batch, positions) | kept_logits(self.model, positions)
        return take(self.model(**inputs).logits, positions).cpu()

    def _generate(self, batch: TokenBatch, tokens: int, pad: int, steps: Steps) -> Ids:
        shared = hoist(batch) if self._shares_prefix else None
        return greedy(self.model, shared or batch, tokens, pad, steps)
