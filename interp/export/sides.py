"""Two checkpoints of one architecture side by side: which tensors belong together, and as what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.checkpoint import Checkpoint
from interp.models.layout import pieces
from interp.types import Axes


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix (or bias) in both files. base, other: names in the files, None where there is none.
    expert: entry of the first axis, None for the whole. turned: stored as ``[d_in, d_out]``."""

    base: str | None
    other: str | None
    expert: int | None = None
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime parameter as the updates of a delta name it. axes: None for a bias. saved: its names
    in the base's files, one for each expert that is saved apart."""

    name: str
    axes: Axes | None
    parts: tuple[Part, ...]
    saved: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """The two checkpoints."""

    base: Checkpoint
    other: Checkpoint

    def read(self, part: Part) -> tuple[Tensor | None, Tensor | None]:
        """Both sides of a part in canonical orientation and their own dtypes."""
        return (
            self._side(self.base, part.base, part),
            self._side(self.other, part.other, part),
        )

    def _side(self, side: Checkpoint, key: str | None, part: Part) -> Tensor | None:
        if key is None:
            return None
        if part.expert is None:
            value = side.read(key)
        else:
            value = side.rows(key, part.expert, part.expert + 1)[0]
        return value.T if part.turned else value

    def eps(self, part: Part) -> float:
        """Relative spacing of the coarser of the two dtypes."""
        sides = ((self.base, part.base), (self.other, part.other))
        return max(torch.finfo(side.dtype_of(key)).eps for side, key in sides if key is not None)

    def change(self, key: str) -> tuple[float | None, float]:
        """``(‖other − base‖, ‖base‖)`` of a tensor; the first is None where shapes do not fit."""
        sides = [
            side.read(key).double() if key in side.tensors else None
            for side in (self.base, self.other)
        ]
        before, after = sides
        if before is None or after is None:
            return sum(s.norm().item() for s in sides if s is not None), 0.0
        if before.shape != after.shape:
            return None, before.norm().item()
        return (after - before).norm().item(), before.norm().item()

    def own_head(self, side: Checkpoint, anatomy: Anatomy) -> str | None:
        """The unembedding's name in a file; None where it is the embedding, by absence or by value."""
        head = side.find(anatomy.unembed_checkpoint)
        embedding = side.find(anatomy.embeddings[0].checkpoint[0])
        if head is None or embedding is None or not anatomy.tied:
            return head
        same = side.tensors[head].shape == side.tensors[embedding].shape and torch.equal(
            side.read(head), side.read(embedding)
        )
        return None if same else head

    def unties(self, anatomy: Anatomy) -> bool:
        """Whether ``other`` has an unembedding of its own where ``base`` uses the embedding."""
        return (
            self.own_head(self.base, anatomy) is None
            and self.own_head(self.other, anatomy) is not None
        )


def targets(pair: Pair, model: nn.Module, anatomy: Anatomy) -> list[Target]:
    """Everything that a delta can hold: writers, their biases, the unembedding, other linear layers."""
    found = [_writer(pair, w) for w in anatomy.writers]
    head = _unembedding(pair, anatomy)
    found += [head] if head is not None else []
    named = {t.name for t in found} | {f"{anatomy.unembed}.weight"}
    found += _others(pair, model, anatomy, named)
    return found


def _writer(pair: Pair, writer: BoundWriter) -> Target:
    mine, theirs = pieces(pair.base, writer), pieces(pair.other, _resized(writer, pair.other))
    turned = not mine[0].axes.endswith("out in")
    if writer.fused and mine[0].expert is None:
        (a,), (b,) = mine, theirs
        parts = tuple(Part(a.key, b.key, e, turned) for e in range(writer.shape[0]))
    else:
        parts = tuple(Part(a.key, b.key, None, turned) for a, b in zip(mine, theirs, strict=True))
    return Target(writer.weight, writer.axes, parts, writer.checkpoint)


def _resized(writer: BoundWriter, side: Checkpoint) -> BoundWriter:
    """An embedding with as many tokens as a file has, which may be more or fewer than the base's."""
    key = side.find(writer.checkpoint[0])
    if writer.kind != "embedding" or key is None:
        return writer
    return replace(writer, shape=(*side.tensors[key].shape[:1], *writer.shape[1:]))


def _unembedding(pair: Pair, anatomy: Anatomy) -> Target | None:
    """The unembedding, where either file has one of its own; where not, the embedding stands for it."""
    embedding = anatomy.embeddings[0].checkpoint[0]
    sides = (pair.base, pair.other)
    if all(pair.own_head(side, anatomy) is None for side in sides):
        return None
    base, other = (pair.own_head(s, anatomy) or s.find(embedding) for s in sides)
    saved = (anatomy.unembed_checkpoint,)
    return Target(f"{anatomy.unembed}.weight", "out in", (Part(base, other),), saved)


def _others(pair: Pair, model: nn.Module, anatomy: Anatomy, named: set[str]) -> list[Target]:
    """Biases and two-dimensional weights of linear layers that the checkpoint saves one for one."""
    found = []
    seen: set[int] = set()
    modules = dict(model.named_modules(remove_duplicate=False))
    params = dict(model.named_parameters(remove_duplicate=False))
    of_experts = {w.bias for w in anatomy.block_writers if w.fused}
    for name in [*params, *_new_biases(pair, modules, params, anatomy)]:
        owner, _, leaf = name.rpartition(".")
        saved = saved_name(anatomy, name)
        base, other = pair.base.find(saved), pair.other.find(saved)
        param = params.get(name)
        axes = _axes(modules[owner])
        if name in named or (param is not None and id(param) in seen) or (base or other) is None:
            continue
        if name in of_experts or (leaf == "bias" and axes is not None):
            found.append(Target(name, None, (Part(base, other),), (saved,)))
        elif leaf == "weight" and axes is not None and base is not None and other is not None:
            part = Part(base, other, None, not axes.endswith("out in"))
            found.append(Target(name, axes, (part,), (saved,)))
        else:
            continue
        named.add(name)
        seen |= {id(param)} if param is not None else set()
    return found


def _new_biases(
    pair: Pair, modules: dict[str, nn.Module], params: Mapping[str, Tensor], anatomy: Anatomy
) -> Iterator[str]:
    """Biases of linear layers that only ``other`` has: a delta adds them to the module."""
    for path, module in modules.items():
        name = f"{path}.bias"
        new = _axes(module) is not None and name not in params
        if new and pair.other.find(saved_name(anatomy, name)) is not None:
            yield name


def saved_name(anatomy: Anatomy, name: str) -> str:
    """A parameter's name in a checkpoint, where it is saved one for one."""
    family = anatomy.family
    if family.saved_blocks and name.startswith(f"{family.blocks}."):
        return family.saved_blocks + name.removeprefix(family.blocks)
    return name


def _axes(module: nn.Module) -> Axes | None:
    if isinstance(module, nn.Linear):
        return "out in"
    if isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D":
        return "in out"
    return None


def unclaimed(pair: Pair, anatomy: Anatomy, wanted: list[Target]) -> Iterator[tuple[str, str]]:
    """``(name in the files, why there is no update of it)`` for every other tensor."""
    used = {key for t in wanted for p in t.parts for key in (p.base, p.other)}
    # The scales of float8 weights are part of those.
    used |= {scale.key for side in (pair.base, pair.other) for scale in side.scales.values()}
    # A copy of a tied embedding under the name of the unembedding is no tensor of its own.
    used |= {side.find(anatomy.unembed_checkpoint) for side in (pair.base, pair.other)}
    for key in sorted({*pair.base.tensors, *pair.other.tensors} - used):
        shared = key in pair.base.tensors and key in pair.other.tensors
        here = "the base" if key in pair.base.tensors else "the other"
        yield key, "no matrix or bias by itself" if shared else f"only {here} has it"
