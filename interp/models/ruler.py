"""One place in the residual stream, under the names that other tools have for it.

==============  ===================================================================================
ours            ``embed`` (the stream that enters block 0), ``resid_post[i]`` (what block ``i`` gives)
transformers    entry of ``output_hidden_states=True``: ``i + 1``, and 0 for ``embed``; Mamba models
                keep no entry for ``embed``, so that block ``i`` is entry ``i``. The last entry has
                been through the final norm everywhere, and is no place in the stream
persona file    row of a ``[n_blocks + 1, d_model]`` persona vector: transformers' own numbers
heretic         ``direction_index``: ``i`` for block ``i``; it skips the entry of the embedding
TransformerLens ``blocks.i.hook_resid_post``
nnsight         ``model.layers[i].output``, with ``[0]`` where the block returns a tuple
repeng          ``i``: the block after which the vector is added
GGUF            ``direction.i``, added after block ``i``; llama.cpp refuses ``direction.0``
==============  ===================================================================================

What differs between families is listed here and measured for all of them in
``tests/models/test_ruler.py``. A translator raises SiteError, with the reason, where another tool
has no name for a place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from interp.claims import Number
from interp.errors import SiteError
from interp.models.anatomy import Anatomy
from interp.sites import Site

WITHOUT_EMBEDDING_ENTRY = frozenset({"mamba", "mamba2", "falcon_mamba"})
"""Model types whose ``hidden_states`` begin with the output of block 0."""

TUPLE_BLOCKS = frozenset({"bamba", "falcon_h1", "gptj"})
"""Model types whose blocks return a tuple in the transformers that this package is tested with."""

HERETIC_BLOCKS = ("model.language_model.layers", "model.layers")
HERETIC_COMPONENTS = {
    "self_attn.o_proj": "attn.o_proj",
    "self_attn.out_proj": "attn.o_proj",
    "linear_attn.out_proj": "attn.o_proj",
    "conv.out_proj": "attn.o_proj",
    "mlp.down_proj": "mlp.down_proj",
    "feed_forward.w2": "mlp.down_proj",
    "shared_mlp.output_linear": "mlp.down_proj",
}
"""Where heretic 1.4 looks for blocks, and the linear layers that it looks for in each (of which it
wants one in every block), with its name of the component. Compared with heretic itself for every
family: ``tests/integration``."""

STEERED: Mapping[str, frozenset[str]] = {"nemotron_h": frozenset({"mlp", "expert"})}
"""Kinds of the last component after which llama.cpp adds a control vector, where not after every
block: its Nemotron-H does so in feed-forward blocks and passes it over in all others."""

FINAL_NORM = "final norm"
COLUMNS = (
    "transformers", "persona", "heretic", "transformer_lens", "nnsight", "repeng", "gguf",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RulerRow:
    """One line of the ruler. values: tool → its name for the place, None where it has none; why:
    the reason for each None, and what to know about a name that is there."""

    site: str
    values: dict[str, Any]
    why: dict[str, str]


@dataclass(frozen=True, slots=True)
class Ruler:
    """The names of one model's places; ``site`` is ``embed`` or ``resid_post`` (``resid_pre`` too:
    it is the output of the block before). Everything that takes a site raises SiteError for another
    kind, for a block outside the stack, and where the tool cannot name it.
    """

    model_type: str
    blocks: tuple[str, ...]
    final_norm: str
    embeddings: int = 1
    no_heretic: str | None = None
    unsteered: frozenset[int] = frozenset()

    @classmethod
    def of(cls, anatomy: Anatomy) -> Ruler:
        return cls(
            anatomy.model_type,
            anatomy.blocks,
            anatomy.final_norm,
            len(anatomy.embeddings),
            why_not_heretic(anatomy),
            frozenset(b for b in range(anatomy.n_blocks) if not is_steered(anatomy, b)),
        )

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    @property
    def shift(self) -> int:
        """Entry of block 0 in ``hidden_states``: 1 after an embedding, 0 where there is none."""
        return 0 if self.model_type in WITHOUT_EMBEDDING_ENTRY else 1

    # --- transformers, persona files, heretic --------------------------------------------------

    def transformers(self, site: Site) -> int:
        """Index into ``hidden_states``, which has ``n_blocks + 1`` entries."""
        index = self._after(site) + self.shift
        if index < 0:
            raise SiteError(
                f"hidden_states of {self.model_type} begin with the output of block 0 and hold no "
                "embed; read it with a backend's capture"
            )
        if index == self.n_blocks:
            raise SiteError(
                f"the last of {self.n_blocks + 1} hidden_states has been through {self.final_norm}, "
                f"so resid_post[{self.n_blocks - 1}] is not among them; read it with a backend's "
                "capture"
            )
        return index

    def from_transformers(self, index: int) -> Site:
        """The place of an entry; negative ones count from the end."""
        place = index + self.n_blocks + 1 if index < 0 else index
        self._check(place, f"entry {index}", "entries", self.n_blocks)
        if place == self.n_blocks:
            raise SiteError(
                f"entry {index} of hidden_states is the output of {self.final_norm}: no place in "
                f"the stream, and not resid_post[{self.n_blocks - 1}]"
            )
        return self._site(place - self.shift)

    def persona(self, site: Site) -> int:
        """RulerRow of a persona vector file, which is stacked from ``hidden_states`` as they come."""
        return self.transformers(site)

    def from_persona(self, row: int) -> Site:
        """The place of a row. There is no row −1: code that subtracts 1 from row 0 to find a block
        steers the last one."""
        self._check(row, f"row {row}", "rows", self.n_blocks)
        return self.from_transformers(row)

    def heretic(self, site: Site) -> int:
        """``direction_index`` of heretic 1.4, which is 0-based over blocks."""
        if self.no_heretic is not None:
            raise SiteError(self.no_heretic)
        block = self._block(site, "heretic's index 0 is block 0; it has none for embed")
        if block == self.n_blocks - 1:
            raise SiteError(self._heretic_last())
        return block

    def from_heretic(self, index: Number) -> Site:
        """The place that a ``direction_index`` was read at. SiteError for a fraction, at which heretic
        mixes the directions of two blocks, and for the last, which it reads after the final norm."""
        if self.no_heretic is not None:
            raise SiteError(self.no_heretic)
        if index != int(index):
            raise SiteError(
                f"direction_index {index} is no block: heretic mixes the directions of blocks "
                f"{int(index)} and {int(index) + 1}"
            )
        self._check(int(index), f"direction_index {int(index)}", "indices", self.n_blocks - 1)
        if int(index) == self.n_blocks - 1:
            raise SiteError(self._heretic_last())
        return self._site(int(index))

    def _heretic_last(self) -> str:
        last = self.n_blocks - 1
        return (
            f"heretic reads direction_index {last} after {self.final_norm}: it is no direction of "
            f"resid_post[{last}]"
        )

    # --- TransformerLens, nnsight --------------------------------------------------------------

    def transformer_lens(self, site: Site) -> str:
        """Hook name. ``embed`` is ``blocks.0.hook_resid_pre``: ``hook_embed`` lacks learned positions."""
        block = self._after(site)
        return Site.resid_pre(0).hook_name if block < 0 else Site.resid_post(block).hook_name

    def from_transformer_lens(self, name: str) -> Site:
        site = Site.parse(name)
        if site.kind == "embed" and self.embeddings > 1:
            raise SiteError(
                f"hook_embed of {self.model_type} is one of {self.embeddings} embeddings; what "
                "enters block 0 is blocks.0.hook_resid_pre"
            )
        return self._site(self._after(site))

    def nnsight(self, site: Site) -> str:
        """What to write after the nnsight model, inside a trace: ``model.layers[3].output``."""
        block = self._after(site)
        if block < 0:
            return f"{_indexed(self.blocks[0])}.input"
        tuples = "[0]" if self.model_type in TUPLE_BLOCKS else ""
        return f"{_indexed(self.blocks[block])}.output{tuples}"

    def from_nnsight(self, name: str) -> Site:
        known = {self.nnsight(site): site for site in self.sites()}
        if name not in known:
            raise SiteError(f"{name!r} is no place of {self.model_type}; known: {_some(known)}")
        return known[name]

    # --- steering vectors ----------------------------------------------------------------------

    def repeng(self, site: Site) -> int:
        """Layer number of a repeng control vector: the block after which it is added."""
        return self._block(site, "repeng adds a vector after a block; there is none before block 0")

    def from_repeng(self, layer: int) -> Site:
        """The place at which a layer's vector is added; negative numbers count from the end."""
        block = layer + self.n_blocks if layer < 0 else layer
        self._check(block, f"layer {layer}", "layers", self.n_blocks - 1)
        return self._site(block)

    def gguf(self, site: Site) -> str:
        """Tensor name in a control vector for llama.cpp."""
        block = self._block(site, "llama.cpp adds control vectors after blocks, not before block 0")
        if block == 0:
            raise SiteError("llama.cpp refuses direction.0: it cannot steer after block 0")
        if block in self.unsteered:
            raise SiteError(
                f"llama.cpp's {self.model_type} passes over a control vector at block {block}, which "
                "is no feed-forward block"
            )
        return f"direction.{block}"

    def from_gguf(self, name: str) -> Site:
        match = re.fullmatch(r"direction\.(\d+)", name)
        if match is None:
            raise SiteError(f"{name!r} is no tensor of a control vector; they are direction.1 …")
        if int(match[1]) == 0:
            raise SiteError("llama.cpp refuses direction.0: it cannot steer after block 0")
        self._check(int(match[1]), name, "blocks", self.n_blocks - 1)
        return self._site(int(match[1]))

    # --- the table -----------------------------------------------------------------------------

    def sites(self) -> list[Site]:
        """``embed`` and every ``resid_post``."""
        return [self._site(block) for block in range(-1, self.n_blocks)]

    def rows(self) -> list[RulerRow]:
        """``embed``, every block, and the final norm, which is no site but has names all the same."""
        return [*(self._row(site) for site in self.sites()), self._norm_row()]

    def _row(self, site: Site) -> RulerRow:
        values: dict[str, Any] = {}
        why: dict[str, str] = {}
        for column in COLUMNS:
            translate: Callable[[Site], Any] = getattr(self, column)
            try:
                values[column] = translate(site)
            except SiteError as error:
                values[column], why[column] = None, str(error)
        if site.block >= 0:
            why |= self._repeng_reads(site.block)
        return RulerRow(
            "embed" if site.kind == "embed" else f"resid_post[{site.block}]", values, why
        )

    def _repeng_reads(self, block: int) -> dict[str, str]:
        """repeng reads entry ``layer + 1`` and acts on the block ``layer``, which may differ."""
        if block == self.n_blocks - 1:
            return {"repeng": f"added after the block, but read after {self.final_norm}"}
        if self.shift == 0:
            return {"repeng": "added after the block, but read after the next one"}
        return {}

    def _norm_row(self) -> RulerRow:
        values: dict[str, Any] = dict.fromkeys(COLUMNS)
        values |= {
            "transformers": self.n_blocks,
            "persona": self.n_blocks,
            "heretic": None if self.no_heretic else self.n_blocks - 1,
            "transformer_lens": "ln_final.hook_out",
            "nnsight": f"{self.final_norm}.output",
        }
        after = "nothing is added after the final norm"
        why: dict[str, str] = {"repeng": after, "gguf": after}
        why |= {"heretic": self.no_heretic} if self.no_heretic else {}
        return RulerRow(FINAL_NORM, values, why)

    def _site(self, block: int) -> Site:
        return Site.embed() if block < 0 else Site.resid_post(block)

    def _after(self, site: Site) -> int:
        """The block after which a site lies, −1 for before block 0."""
        if site.kind == "embed":
            return -1
        if site.kind not in ("resid_pre", "resid_post"):
            raise SiteError(f"{site} has one name only; the ruler takes embed and resid_post")
        self._check(site.block, str(site), "blocks", self.n_blocks - 1)
        return site.block - (site.kind == "resid_pre")

    def _block(self, site: Site, reason: str) -> int:
        if (block := self._after(site)) < 0:
            raise SiteError(reason)
        return block

    def _check(self, place: int, what: str, of: str, last: int) -> None:
        if not 0 <= place <= last:
            raise SiteError(f"{what} is outside this {self.model_type}: its {of} are 0 … {last}")


def is_steered(anatomy: Anatomy, block: int) -> bool:
    """Whether llama.cpp adds a control vector after a block."""
    kinds = STEERED.get(anatomy.model_type)
    return kinds is None or anatomy.in_block(block)[-1].kind in kinds


def why_not_heretic(anatomy: Anatomy) -> str | None:
    """Why heretic 1.4 does not load a model, None if it does."""
    if anatomy.family.blocks not in HERETIC_BLOCKS:
        return (
            f"heretic does not load {anatomy.model_type}: it looks for blocks at {HERETIC_BLOCKS[-1]}, "
            f"they are at {anatomy.family.blocks}"
        )
    for i, block in enumerate(anatomy.blocks):
        names = [w.name for c in anatomy.in_block(i) for w in c.writers]
        if not any(f"{block}.{known}" in names for known in HERETIC_COMPONENTS):
            return (
                f"heretic does not load {anatomy.model_type}: it knows no writer of block {i} "
                f"({', '.join(n.removeprefix(block + '.') for n in names)})"
            )
    return None


def _indexed(path: str) -> str:
    """``model.layers.3`` as Python reads it: ``model.layers[3]``."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", path)


def _some(names: Any) -> str:
    shown = list(names)
    return ", ".join(shown if len(shown) < 5 else [*shown[:2], "…", shown[-1]])
