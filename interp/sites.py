"""Names for places in the residual stream, and their TransformerLens hook names.

Block ``i`` is 0-based; ``resid_post[i]`` is the output of block ``i``; ``embed`` is the stream that
enters block 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from interp.errors import SiteError

SiteKind = Literal[
    "embed", "resid_pre", "resid_mid", "resid_post", "component", "writer_in", "writer_out"
]

_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
}
_COMPONENT_HOOKS = {"attention": "hook_attn_out", "mlp": "hook_mlp_out"}


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """One place to read or edit. ``name`` is the component or writer name for the last three kinds."""

    kind: SiteKind
    block: int = -1
    name: str = ""

    @classmethod
    def embed(cls) -> Site:
        return cls("embed")

    @classmethod
    def resid_pre(cls, block: int) -> Site:
        return cls("resid_pre", block)

    @classmethod
    def resid_mid(cls, block: int) -> Site:
        return cls("resid_mid", block)

    @classmethod
    def resid_post(cls, block: int) -> Site:
        return cls("resid_post", block)

    @classmethod
    def component(cls, name: str) -> Site:
        """What a component adds to the stream, scale included (``blocks.3.attention``)."""
        return cls("component", int(name.split(".")[1]), name)

    @classmethod
    def writer_in(cls, block: int, name: str) -> Site:
        """The input activations ``a`` of a writer ``y = W a`` (fused experts: weighted, concatenated)."""
        return cls("writer_in", block, name)

    @classmethod
    def writer_out(cls, block: int, name: str) -> Site:
        """What a writer's module gives, before any norm, gate or factor between it and the stream."""
        return cls("writer_out", block, name)

    @property
    def hook_name(self) -> str:
        """The name that a TransformerLens user knows (``blocks.3.hook_resid_post``)."""
        if self.kind == "embed":
            return "hook_embed"
        if self.kind in _HOOKS:
            return f"blocks.{self.block}.{_HOOKS[self.kind]}"
        if self.kind == "component":
            kind = self.name.split(".", 2)[2]
            return f"blocks.{self.block}.{_COMPONENT_HOOKS.get(kind, f'hook_{kind}_out')}"
        return f"{self.name}.hook_{self.kind.removeprefix('writer_')}"

    @classmethod
    def parse(cls, hook_name: str) -> Site:
        """The site of a TransformerLens hook name. Raises SiteError with the names that exist."""
        if hook_name == "hook_embed":
            return cls.embed()
        match = re.fullmatch(r"blocks\.(\d+)\.hook_(.+)", hook_name)
        if match:
            block, what = int(match[1]), match[2]
            if f"hook_{what}" in _HOOKS.values():
                return cls(what, block)  # type: ignore[arg-type]
            for kind, hook in _COMPONENT_HOOKS.items():
                if hook == f"hook_{what}":
                    return cls("component", block, f"blocks.{block}.{kind}")
            if what.endswith("_out"):
                return cls("component", block, f"blocks.{block}.{what.removesuffix('_out')}")
        raise SiteError(
            f"no site named {hook_name!r}; known: hook_embed, blocks.{{i}}.hook_resid_pre|_mid|_post, "
            "blocks.{i}.hook_attn_out|_mlp_out|_expert_out|_ssm_out"
        )

    def __str__(self) -> str:
        return self.hook_name
