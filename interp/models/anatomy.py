"""What writes the residual stream of a model: described per family, never guessed.

A :class:`Family` lists, for one block, the components whose outputs are added to the stream, the
matrices (:class:`Writer`) that produce them, and the parameters that only read it. Binding a family
to a model (:func:`describe`) gives an :class:`Anatomy` of concrete names and shapes; a parameter
that the family does not mention is an :class:`~interp.errors.UndescribedWriter` error.

The identity behind every law in ``tests/laws``:
``resid_post[i] = resid_pre[i] + Σ_c scale_c · output(component c of block i)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from interp.errors import UndescribedWriter, UnknownFamily
from interp.types import Axes

Kind = Literal["embedding", "attention", "mlp", "expert", "ssm"]
When = Callable[[Any, int], bool]
Factor = Callable[[Any], float]
MaybeFactor = Callable[[Any], float | None]
IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id")


def always(config: Any, block: int) -> bool:
    return True


def one(config: Any) -> float:
    return 1.0


def no_factor(config: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Writer:
    """A matrix that writes the stream, as a template relative to its block.

    path: module path (``self_attn.o_proj``). weight, bias: parameter names on that module; a bias
    that the instance lacks is left out. axes: how the weight is stored. saved: checkpoint name
    relative to the saved block prefix, ``{e}`` once per expert; None when it is saved as it is
    named. scale: factor between the writer and the output of its component; for experts, of one
    vector that every expert writes (the sum of the routing weights). ``no_factor`` when it depends
    on the input.
    """

    path: str
    kind: Kind
    axes: Axes = "out in"
    weight: str = "weight"
    bias: str = "bias"
    saved: str | None = None
    when: When = always
    scale: MaybeFactor = one


@dataclass(frozen=True, slots=True)
class Component:
    """One addend of the stream in a block.

    module: path whose output (element 0 of a tuple) is added, times ``scale``. post_norm: path of
    the norm between writer and stream, if any; then ``module`` is that norm and the writer's
    effective direction is ``normalise((offset + gain) ⊙ d)``.
    """

    kind: Kind
    module: str
    writers: tuple[Writer, ...]
    when: When = always
    scale: Factor = one
    post_norm: str | None = None
    post_norm_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class Family:
    """The anatomy of one or more ``model_type``s of transformers.

    readers: globs of parameter names inside a block that only read the stream. outside: globs of
    parameters outside the blocks that do not write it (final norm, unembedding). resid_mid: module
    whose input is the stream between mixer and MLP (None for parallel or single-component blocks;
    ``mid_when`` where the config decides). embed_scale: factor that the model applies to the summed
    outputs of the embedding modules; embed_gain: factor that those modules apply to their own rows.
    logit_scale: factor that the model applies to ``unembed`` output, before ``logit_cap``:
    ``cap · tanh(logits / cap)``. tiny: config values per ``model_type`` for
    :func:`interp.models.tiny_model`. saved_blocks, saved_embeddings, saved_unembed: names in the
    checkpoint when they differ from ``blocks``, ``embeddings`` and ``unembed``. text_types: of a model that
    reads images, the model types that its text stack may have. image_writers: modules that write the
    stream at positions of an image; they are no :class:`Writer`, and no edit reaches them.
    """

    model_types: tuple[str, ...]
    components: tuple[Component, ...]
    readers: tuple[str, ...]
    tiny: Mapping[str, Mapping[str, Any]]
    blocks: str = "model.layers"
    saved_blocks: str | None = None
    embeddings: tuple[str, ...] = ("model.embed_tokens",)
    saved_embeddings: tuple[str, ...] | None = None
    embed_scale: Factor = one
    embed_gain: Factor = one
    final_norm: str = "model.norm"
    final_norm_offset: float = 0.0
    outside: tuple[str, ...] = ("model.norm.*", "lm_head.*")
    unembed: str = "lm_head"
    saved_unembed: str | None = None
    logit_scale: Factor = one
    logit_cap: MaybeFactor = no_factor
    resid_mid: str | None = None
    mid_when: When = always
    text_types: tuple[str, ...] = ()
    image_writers: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class BoundWriter:
    """A writer of a concrete model. Names are runtime names; shape is as stored.

    gain: the post-norm's weight, if any. checkpoint, bias_checkpoint: names in a saved checkpoint,
    one per expert where experts are saved apart. scale: factor with which a vector added to ``W a``
    (of all experts alike) reaches the stream; None when routing, a gate or a post-norm makes it
    depend on the input.
    """

    name: str
    module: str
    weight: str
    bias: str | None
    block: int | None
    kind: Kind
    axes: Axes
    shape: tuple[int, ...]
    gain: str | None = None
    gain_offset: float = 0.0
    tied: bool = False
    checkpoint: tuple[str, ...] = ()
    bias_checkpoint: tuple[str, ...] = ()
    scale: float | None = 1.0

    @property
    def d_in(self) -> int:
        return self.shape[-1] if self.axes.endswith("out in") else self.shape[-2]

    @property
    def d_out(self) -> int:
        return self.shape[-2] if self.axes.endswith("out in") else self.shape[-1]

    @property
    def fused(self) -> bool:
        """True for experts stored as one three-dimensional parameter."""
        return self.axes.startswith("expert")


@dataclass(frozen=True, slots=True)
class BoundComponent:
    """An addend of the stream in a concrete block: runtime module name, factor, its writers."""

    name: str
    module: str
    kind: Kind
    block: int
    scale: float
    writers: tuple[BoundWriter, ...]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Names, shapes and kinds of everything that writes the stream of one model.

    resid_mid: per block, the module whose input is the stream between mixer and MLP, or None.
    unembed_checkpoint: name of the unembedding in a saved checkpoint (absent when tied). image_writers:
    modules that write the stream at positions of an image; image_tokens: ids that stand for one.
    """

    family: Family
    model_type: str
    d_model: int
    blocks: tuple[str, ...]
    embeddings: tuple[BoundWriter, ...]
    components: tuple[BoundComponent, ...]
    final_norm: str
    unembed: str
    logit_scale: float
    tied: bool
    block_kinds: tuple[str, ...] = field(default=())
    embed_scale: float = 1.0
    logit_cap: float | None = None
    resid_mid: tuple[str | None, ...] = ()
    unembed_checkpoint: str = "lm_head.weight"
    image_writers: tuple[str, ...] = ()
    image_tokens: tuple[int, ...] = ()

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    @property
    def writers(self) -> tuple[BoundWriter, ...]:
        """Every writer, embeddings first, then block by block."""
        return self.embeddings + tuple(w for c in self.components for w in c.writers)

    @property
    def block_writers(self) -> tuple[BoundWriter, ...]:
        return tuple(w for c in self.components for w in c.writers)

    @property
    def unreached(self) -> dict[str, str]:
        """Modules that write the stream and that no edit reaches → why."""
        why = "writes at positions of an image, which no edit reaches"
        return dict.fromkeys(self.image_writers, why)

    def in_block(self, block: int) -> tuple[BoundComponent, ...]:
        return tuple(c for c in self.components if c.block == block)

    def writer(self, weight: str) -> BoundWriter:
        return {w.weight: w for w in self.writers}[weight]


def _bind_writer(
    model: nn.Module, config: Any, family: Family, comp: Component, writer: Writer, i: int
) -> BoundWriter:
    prefix = f"{family.blocks}.{i}."
    saved = f"{family.saved_blocks or family.blocks}.{i}."
    module = model.get_submodule(prefix + writer.path)
    weight = getattr(module, writer.weight)
    has_bias = getattr(module, writer.bias, None) is not None
    bias = f"{writer.path}.{writer.bias}"
    template = saved + (writer.saved or f"{writer.path}.{writer.weight}")
    experts = range(weight.shape[0]) if "{e}" in template else (0,)
    inner = writer.scale(config)
    routed = inner is None or comp.post_norm is not None
    return BoundWriter(
        name=prefix + writer.path,
        module=prefix + writer.path,
        weight=f"{prefix}{writer.path}.{writer.weight}",
        bias=prefix + bias if has_bias else None,
        block=i,
        kind=writer.kind,
        axes=writer.axes,
        shape=tuple(weight.shape),
        gain=f"{prefix}{comp.post_norm}.weight" if comp.post_norm else None,
        gain_offset=comp.post_norm_offset,
        checkpoint=tuple(template.replace("{e}", str(e)) for e in experts),
        bias_checkpoint=(saved + bias,) if has_bias else (),
        scale=None if routed else inner * comp.scale(config),
    )


def _bind_block(model: nn.Module, config: Any, family: Family, i: int) -> list[BoundComponent]:
    bound = []
    for comp in family.components:
        if not comp.when(config, i):
            continue
        writers = tuple(
            _bind_writer(model, config, family, comp, w, i)
            for w in comp.writers
            if w.when(config, i)
        )
        module = f"{family.blocks}.{i}.{comp.module}"
        model.get_submodule(module)
        name = f"blocks.{i}.{comp.kind}"
        if any(c.name == name for c in bound):
            name += f":{comp.module}"
        bound.append(BoundComponent(name, module, comp.kind, i, comp.scale(config), writers))
    return bound


def _bind_embeddings(
    model: nn.Module, family: Family, config: Any, tied: bool
) -> tuple[BoundWriter, ...]:
    saved = family.saved_embeddings or family.embeddings
    scale = family.embed_scale(config) * family.embed_gain(config)
    return tuple(
        _bind_embedding(model, path, name, scale, tied and k == 0)
        for k, (path, name) in enumerate(zip(family.embeddings, saved, strict=True))
    )


def _bind_embedding(
    model: nn.Module, path: str, saved: str, scale: float, tied: bool
) -> BoundWriter:
    weight = model.get_submodule(path).weight
    return BoundWriter(
        name=path,
        module=path,
        weight=f"{path}.weight",
        bias=None,
        block=None,
        kind="embedding",
        axes="in out",
        shape=tuple(weight.shape),
        tied=tied,
        checkpoint=(f"{saved}.weight",),
        scale=scale,
    )


def _bind_mid(family: Family, config: Any, i: int) -> str | None:
    if family.resid_mid is None or not family.mid_when(config, i):
        return None
    return f"{family.blocks}.{i}.{family.resid_mid}"


def is_tied(model: nn.Module, family: Family) -> bool:
    """Whether the unembedding is the very parameter of the token embedding, whatever the config."""
    unembed = model.get_submodule(family.unembed)
    return unembed.weight is model.get_submodule(family.embeddings[0]).weight


def unclaimed(
    model: nn.Module, family: Family, components: tuple[BoundComponent, ...]
) -> list[str]:
    """Parameters that the description mentions neither as writer nor as reader."""
    claimed = {name for c in components for w in c.writers for name in (w.weight, w.bias)}
    claimed |= {f"{path}.weight" for path in family.embeddings}
    missing = []
    prefix = family.blocks + "."
    for name, _ in model.named_parameters(remove_duplicate=False):
        if name in claimed:
            continue
        if name.startswith(prefix):
            local = name[len(prefix) :].split(".", 1)[1]
            known = any(fnmatchcase(local, glob) for glob in family.readers)
        else:
            known = any(fnmatchcase(name, glob) for glob in family.outside)
        if not known:
            missing.append(name)
    return missing


def _text_config(family: Family, config: Any) -> Any:
    """The config of the text stack: ``config`` itself, or a part of it in a model that reads images."""
    text = config.get_text_config()
    if family.text_types and text.model_type not in family.text_types:
        raise UnknownFamily(
            f"a {config.model_type} model with a text stack of type {text.model_type!r} is not "
            f"described, only {' or '.join(family.text_types)}; add it in interp/models/multimodal.py"
        )
    return text


def bind(model: nn.Module, family: Family, config: Any) -> Anatomy:
    """Bind a family's description to a model (weights may be on the meta device).

    Raises UndescribedWriter when the model holds a parameter that the family does not describe,
    UnknownFamily for a text stack that it does not describe.
    """
    whole, config = config, _text_config(family, config)
    blocks = model.get_submodule(family.blocks)
    names = tuple(f"{family.blocks}.{i}" for i in range(len(blocks)))  # type: ignore[arg-type]
    components = tuple(c for i in range(len(names)) for c in _bind_block(model, config, family, i))
    if missing := unclaimed(model, family, components):
        raise UndescribedWriter(
            f"{whole.model_type}: {len(missing)} parameter(s) are described neither as writer nor "
            f"as reader of the residual stream, first {missing[0]!r}; add them to the family that "
            f"lists {whole.model_type!r} in interp/models/"
        )
    tied = is_tied(model, family)
    embeddings = _bind_embeddings(model, family, config, tied)
    kinds = tuple("+".join(c.kind for c in components if c.block == i) for i in range(len(names)))
    return Anatomy(
        family=family,
        model_type=whole.model_type,
        d_model=embeddings[0].shape[-1],
        blocks=names,
        embeddings=embeddings,
        components=components,
        final_norm=family.final_norm,
        unembed=family.unembed,
        logit_scale=family.logit_scale(config),
        tied=tied,
        block_kinds=kinds,
        embed_scale=family.embed_scale(config),
        logit_cap=family.logit_cap(config),
        resid_mid=tuple(_bind_mid(family, config, i) for i in range(len(names))),
        unembed_checkpoint=f"{family.saved_unembed or family.unembed}.weight",
        image_writers=family.image_writers,
        image_tokens=_image_tokens(whole) if family.image_writers else (),
    )


def _image_tokens(config: Any) -> tuple[int, ...]:
    """Ids that a processor puts where an image or a video goes."""
    found = (getattr(config, name, None) for name in IMAGE_TOKENS)
    return tuple(dict.fromkeys(i for i in found if i is not None))
