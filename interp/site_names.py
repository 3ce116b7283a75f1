"""Names for the sites of a model: its stream, components, writers, heads and neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

from torch import nn

from interp.backends.protocol import Backend, check_sites
from interp.backends.reading import writer_sites
from interp.errors import SiteError
from interp.interventions import Place, SitePart
from interp.models.anatomy import Anatomy
from interp.sites import Site

Given: TypeAlias = Place | str | tuple[str, int] | Sequence[Place | str | tuple[str, int]]
"""A site, a head or neuron, a TransformerLens name, a kind and a block, or several of these."""


class SiteNames:
    """The sites of the model behind ``backend``."""

    backend: Backend

    @property
    def hf(self) -> nn.Module:
        """The transformers model."""
        return self.backend.model

    @property
    def anatomy(self) -> Anatomy:
        """What writes the stream, by name."""
        return self.backend.anatomy

    @property
    def n_blocks(self) -> int:
        return self.anatomy.n_blocks

    @property
    def d_model(self) -> int:
        return self.anatomy.d_model

    @property
    def embed(self) -> Site:
        """The stream that enters block 0."""
        return Site.embed()

    @cached_property
    def resid_pre(self) -> tuple[Site, ...]:
        """The stream before each block."""
        return tuple(Site.resid_pre(i) for i in range(self.n_blocks))

    @cached_property
    def resid_mid(self) -> Mapping[int, Site]:
        """Block → the stream between its mixer and its MLP; parallel blocks have none."""
        has = enumerate(self.anatomy.resid_mid)
        return {i: Site.resid_mid(i) for i, path in has if path is not None}

    @cached_property
    def resid_post(self) -> tuple[Site, ...]:
        """The stream after each block."""
        return tuple(Site.resid_post(i) for i in range(self.n_blocks))

    @cached_property
    def writers(self) -> tuple[Site, ...]:
        """Outputs of all matrices in blocks that write the stream."""
        return tuple(Site.writer_out(w.block or 0, w.name) for w in self.anatomy.block_writers)

    @cached_property
    def writer_inputs(self) -> tuple[Site, ...]:
        """What those matrices read: heads' z, MLP neurons, hidden units of experts, SSM channels."""
        return tuple(writer_sites(self.anatomy.block_writers))

    def components(self, kind: str | None = None) -> tuple[Site, ...]:
        """What components add to the stream: all, or ``attention``, ``mlp``, ``expert`` or ``ssm``."""
        found = [c for c in self.anatomy.components if kind in (None, c.kind)]
        if not found:
            kinds = ", ".join(sorted({c.kind for c in self.anatomy.components}))
            raise SiteError(f"no component of kind {kind!r}; this model has {kinds}")
        return tuple(Site.component(c.name) for c in found)

    def component(self, kind: str, block: int) -> Site:
        """What one component adds to the stream. Raises SiteError where the block has no such component."""
        site = Site.named(kind, block)
        check_sites(self.anatomy, [site])
        return site

    def places(self, given: Given) -> tuple[Place, ...]:
        """Sites and parts of sites, from what a user may call them (:data:`Given`)."""
        if isinstance(given, str):
            return (Site.parse(given),)
        if isinstance(given, Site | SitePart):
            return (given,)
        several = tuple(given)
        if len(several) == 2 and isinstance(several[0], str) and isinstance(several[1], int):
            return (Site.named(several[0], several[1]),)
        return tuple(place for each in several for place in self.places(each))  # type: ignore[arg-type]

    def head(self, block: int, head: int) -> SitePart:
        """A head's z, before the output projection of attention."""
        site, width = self._read_by("attention", block)
        heads = int(getattr(self.hf.config.get_text_config(), "num_attention_heads", 0))
        if not heads or width % heads or not 0 <= head < heads:
            raise SiteError(f"block {block} has heads 0 … {heads - 1}, not {head}")
        size = width // heads
        return SitePart(site, head * size, (head + 1) * size)

    def neuron(self, block: int, neuron: int) -> SitePart:
        """A neuron of a block's MLP, after its nonlinearity and gate."""
        site, width = self._read_by("mlp", block)
        if not 0 <= neuron < width:
            raise SiteError(f"block {block} has neurons 0 … {width - 1}, not {neuron}")
        return SitePart(site, neuron, neuron + 1)

    def _read_by(self, kind: str, block: int) -> tuple[Site, int]:
        """The input of the first writer of a kind in a block, and its width."""
        for writer in self.anatomy.block_writers:
            if writer.block == block and writer.kind == kind and not writer.fused:
                return Site.writer_in(block, writer.name), writer.d_in
        raise SiteError(f"block {block} has no {kind}; `interp inspect MODEL` lists what it has")
