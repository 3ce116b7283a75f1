"""Names for the sites of a model: its stream, components, writers, heads and neurons."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from torch import nn

from interp.backends.protocol import Backend, all_sites, check_sites
from interp.backends.reading import writer_sites
from interp.errors import SiteError
from interp.models.anatomy import Anatomy
from interp.places import Heads, Place, SitePart, site_of
from interp.sites import Site

Named: TypeAlias = Place | str | tuple[str, int]
"""A site, a head or neuron, a TransformerLens name, or a kind and a block: ``("resid_post", 5)``, or
``("z", -1)`` for the last block."""

Given: TypeAlias = Named | Sequence[Named]
"""One of :data:`Named`, or several."""

COMPONENTS = ("attention", "mlp", "expert", "ssm")
_INPUTS = {"attention": "attn.hook_z", "mlp": "mlp.hook_post"}
_SHORT = {"z": "attn.hook_z", "post": "mlp.hook_post"}


@dataclass(frozen=True)
class HookPoints:
    """TransformerLens names of the sites of one model.

    heads: attention heads of every block; 0 for a model without attention.
    """

    anatomy: Anatomy
    heads: int

    @cached_property
    def by_name(self) -> Mapping[str, Place]:
        """Places by name: stream, components, ``attn.hook_z`` and, without experts, ``mlp.hook_post``."""
        found: dict[str, Place] = {site.hook_name: site for site in all_sites(self.anatomy)}
        for component in self.anatomy.components:
            writer, *others = component.writers
            if component.kind not in _INPUTS or others or writer.fused:
                continue
            place: Place = Site.writer_in(component.block, writer.name)
            if component.kind == "attention":
                if not self.heads or writer.d_in % self.heads:
                    continue
                place = Heads(place, self.heads, writer.d_in // self.heads)
            found[f"blocks.{component.block}.{_INPUTS[component.kind]}"] = place
        return found

    def place(self, given: Named) -> Place:
        """The site, or the part of one, that a name means. Raises SiteError with the names that exist."""
        if isinstance(given, Place):
            return given
        name = given if isinstance(given, str) else self._name(*given)
        if (found := self.by_name.get(name)) is not None:
            return found
        # Errors and recipes have names for what matrices read and write, too.
        for writer in self.anatomy.block_writers:
            for site in (
                Site.writer_in(writer.block or 0, writer.name),
                Site.writer_out(writer.block or 0, writer.name),
            ):
                if name == site.hook_name:
                    return site
        pattern = "; for attention patterns: lm.attention(prompts, block)"
        raise SiteError(
            f"no site named {name!r}; {self._known(name)}{pattern if 'pattern' in name else ''}"
        )

    def _name(self, kind: str, block: int) -> str:
        """The name of a kind of site in a block."""
        if kind == "embed":
            return "hook_embed"
        block += self.anatomy.n_blocks if block < 0 else 0
        if kind in COMPONENTS:
            return Site.component(f"blocks.{block}.{kind}").hook_name
        return f"blocks.{block}.{_SHORT.get(kind, f'hook_{kind}')}"

    def _known(self, name: str) -> str:
        """The names that exist in the block of a name, or what blocks exist."""
        found = re.match(r"blocks\.(-?\d+)\.", name)
        block, last = int(found[1]) if found else 0, self.anatomy.n_blocks - 1
        if not 0 <= block <= last:
            return f"blocks are 0 … {last}"
        here = [known for known in self.by_name if known.startswith(f"blocks.{block}.")]
        return f"there are hook_embed, and in block {block} {', '.join(here)}"


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
        """Number of blocks."""
        return self.anatomy.n_blocks

    @property
    def d_model(self) -> int:
        """Width of the stream."""
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
        """Inputs of all matrices in blocks that write the stream, as ``writers`` orders them.

        They are heads' z, MLP neurons, hidden units of experts (all experts in a row), and SSM channels.
        """
        return tuple(writer_sites(self.anatomy.block_writers))

    def components(self, kind: str | None = None) -> tuple[Site, ...]:
        """Outputs of components, as added to the stream, in order of blocks.

        kind: ``attention``, ``mlp``, ``expert`` or ``ssm``; None for all. Raises SiteError for a kind that
        the model does not have.
        """
        found = [c for c in self.anatomy.components if kind in (None, c.kind)]
        if not found:
            kinds = ", ".join(sorted({c.kind for c in self.anatomy.components}))
            raise SiteError(f"no component of kind {kind!r}; this model has {kinds}")
        return tuple(Site.component(c.name) for c in found)

    def component(self, kind: str, block: int) -> Site:
        """Output of one component, as added to the stream. Raises SiteError where the block has none."""
        site = Site.component(f"blocks.{block}.{kind}")
        check_sites(self.anatomy, [site])
        return site

    @cached_property
    def hook_points(self) -> HookPoints:
        """TransformerLens names of sites; ``list(lm.hook_points.by_name)`` has them all."""
        config = self.hf.config.get_text_config()
        return HookPoints(self.anatomy, int(getattr(config, "num_attention_heads", None) or 0))

    def places(self, given: Given) -> tuple[Place, ...]:
        """Sites and parts of sites by the names that a user may give (:data:`Given`).

        ``attn.hook_z`` is :class:`interp.places.Heads`, with values ``[…, head, d_head]``. Raises SiteError
        with the names that exist.
        """
        if isinstance(given, str | Place):
            return (self.hook_points.place(given),)
        several = tuple(given.values() if isinstance(given, Mapping) else given)
        if len(several) == 2 and isinstance(several[0], str) and isinstance(several[1], int):
            return (self.hook_points.place((several[0], several[1])),)
        return tuple(place for each in several for place in self.places(each))  # type: ignore[arg-type]

    def _cached_places(
        self, names_filter: Given | Callable[[str], bool] | None
    ) -> tuple[Place, ...]:
        """Places that ``names_filter`` means. Raises SiteError where there are none."""
        named = self.hook_points.by_name
        if names_filter is None:
            return tuple(p for p in named.values() if self.backend.reaches(site_of(p)))
        if not callable(names_filter):
            return self.places(names_filter)
        if not (found := tuple(place for name, place in named.items() if names_filter(name))):
            raise SiteError(f"no site matches names_filter; the names are {', '.join(named)}")
        return found

    def head(self, block: int, head: int) -> SitePart:
        """One head's z, before the output projection of attention. Raises SiteError without such a head."""
        heads = self.hook_points.place(("z", block))
        assert isinstance(heads, Heads)
        if not 0 <= head < heads.count:
            raise SiteError(f"block {block} has heads 0 … {heads.count - 1}, not {head}")
        return SitePart(heads.site, head * heads.size, (head + 1) * heads.size)

    def neuron(self, block: int, neuron: int) -> SitePart:
        """One neuron of a block's MLP, after nonlinearity and gate. Raises SiteError where there is none."""
        site, width = self._read_by("mlp", block)
        if not 0 <= neuron < width:
            raise SiteError(f"block {block} has neurons 0 … {width - 1}, not {neuron}")
        return SitePart(site, neuron, neuron + 1)

    def _read_by(self, kind: str, block: int) -> tuple[Site, int]:
        """Input of the first writer of a kind in a block, and its width. Raises SiteError without one."""
        for writer in self.anatomy.block_writers:
            if writer.block == block and writer.kind == kind and not writer.fused:
                return Site.writer_in(block, writer.name), writer.d_in
        raise SiteError(f"block {block} has no {kind}; `interp inspect MODEL` lists what it has")
