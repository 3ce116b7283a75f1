"""How the weights of a checkpoint are quantised, from its config and the tensors in its files.

Scaled float8 can be read: a weight is its codes times a scale for the tensor, for each row, or for each
block. Every other format is only named, so that an error can say what the files hold and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

FLOAT8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
FLOATS = ("F64", "F32", "F16", "BF16")
WHOLE = ("C64", "C128", "BOOL", "I64", "U64")
"""Dtypes in safetensors of masks and positions; no format packs weights into them."""
SCALES = (
    "{weight}_scale_inv",
    "{weight}_scale",
    "{stem}.scale",
    "{stem}.qscale_weight",
    "{stem}.scale_weight",
)
"""Names of the scale of a float8 weight. All of them multiply, also the one named ``inv``."""
OF_ACTIVATIONS = (
    "input_scale",
    "output_scale",
    "activation_scale",
    "k_scale",
    "v_scale",
    "q_scale",
)
"""Scales of a layer's inputs and outputs, on which its weight does not depend."""
FORMATS = (
    (".quant_state.bitsandbytes__", "bitsandbytes 4-bit"),
    (".SCB", "bitsandbytes 8-bit"),
    (".absmax", "bitsandbytes 4-bit"),
    (".g_idx", "GPTQ"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_global_scale", "NVFP4"),
    (".weight_scale_2", "NVFP4"),
    (".weight_packed", "compressed-tensors"),
    ("_blocks", "MXFP4"),
    (".W_q", "HQQ"),
    ("._data", "quanto"),
    (".weight_qdata", "torchao"),
    (".codebooks", "AQLM"),
    (".centroids", "VPTQ"),
    (".weight_scales", "EETQ"),
)
"""Part of a tensor's name → the format whose files have such tensors."""
TITLES = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "fp8": "float8",
    "fbgemm_fp8": "FBGEMM float8",
    "hqq": "HQQ",
    "mxfp4": "MXFP4",
    "nvfp4": "NVFP4",
    "modelopt": "ModelOpt",
    "auto-round": "AutoRound",
}
SHOWN = ("bits", "num_bits", "w_bit", "type", "format", "quant_algo", "bnb_4bit_quant_type", "strategy",
         "group_size", "weight_block_size", "fmt")  # fmt: skip
"""Settings of a quantisation that an error shows, under the names that they have in the config."""
ADVICE = (
    "give the unquantised checkpoint that it was made from, or dequantise it with its own library"
)


@runtime_checkable
class Held(Protocol):
    """What has to be known of a tensor in a file: the dtype as safetensors writes it, and the shape."""

    @property
    def code(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale of a float8 weight of some shape.

    key: its name in the files. grid: how many values it has along each axis of the weight. blocks: how
    many entries of that axis share one.
    """

    key: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    blocks: tuple[int, ...]

    def of_rows(self, scale: Tensor, start: int, stop: int) -> Tensor:
        """fp32 scale of the entries ``start:stop`` of the first axis, ready to multiply."""
        found = _values(scale).reshape(self.grid)
        for axis, (size, block) in enumerate(zip(self.shape, self.blocks, strict=True)):
            first, last = (0, size) if axis else (start, stop)
            found = found.index_select(axis, torch.arange(first, last) // block)
        return found

    def at(self, scale: Tensor, places: Tensor) -> Tensor:
        """fp32 scale at places of the flattened weight."""
        index = torch.unravel_index(places, self.shape)
        blocks = tuple(i // block for i, block in zip(index, self.blocks, strict=True))
        return _values(scale).reshape(self.grid)[blocks]


def _values(scale: Tensor) -> Tensor:
    # Powers of two are also stored as the bytes of their exponents, without a dtype of their own.
    return (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How a checkpoint is quantised.

    how: the format and its settings. example: a tensor that shows it, empty where the files were not
    seen. scales: float8 weight → its scale. opaque: tensors whose values cannot be read.
    """

    how: str
    example: str = ""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    opaque: frozenset[str] = frozenset()

    def explain(self, name: str) -> str:
        """The text of an error: that the weights of ``name`` are quantised, how, and what to do."""
        shown = f"; the files hold {self.example}" if self.example else ""
        return f"the weights of {name} are quantised ({self.how}{shown}); {ADVICE}"


def settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes a quantisation; empty where there is none."""
    for part in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config", "quantization"):
            found = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(found, Mapping) and found:
                return found
    return {}


def quantisation(tensors: Mapping[str, Held], config: Mapping[str, Any]) -> Quantisation | None:
    """How these tensors are quantised; None for plain floating-point values, whatever the config says.

    A float8 weight without scale is plain where neither the config nor a tensor beside it speaks of
    a quantisation.
    """
    chosen = settings(config)
    float8 = [name for name, held in tensors.items() if held.code in FLOAT8]
    found = {name: _scale(name, tensors, chosen) for name in float8}
    scales = {name: scale for name, scale in found.items() if scale is not None}
    if chosen.get("transform_config"):  # the weights are rotated, too
        scales = {}
    keys = {scale.key for scale in scales.values()}
    opaque = {
        name
        for name in float8
        if name not in scales and name not in keys and (chosen or _beside(name, tensors))
    }
    opaque |= {n for n, held in tensors.items() if n not in keys and _is_packed(n, held)}
    if not scales and not opaque:
        return None
    example = next((n for n in tensors if n in (opaque or scales)), "")
    kind = _format(tensors) if opaque else "scaled float8"
    return Quantisation(_how(chosen, kind), example, scales, frozenset(opaque))


def of_config(config: Mapping[str, Any]) -> Quantisation | None:
    """What a config says by itself, for files that are not here or in another format."""
    chosen = settings(config)
    return Quantisation(_how(chosen, "a format that it does not name")) if chosen else None


def values_of(model: nn.Module, name: str) -> Tensor | None:
    """A parameter's values in its model, those of scaled float8 in bf16; None where they cannot be read
    (packed, offloaded, or float8 without its scale)."""
    param = model.get_parameter(name).detach()
    if param.is_meta or not param.is_floating_point():
        return None
    if param.dtype.itemsize > 1:
        return param
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    found = (getattr(module, f"{leaf}{end}", None) for end in ("_scale_inv", "_scale"))
    scale = next((s.detach() for s in found if isinstance(s, Tensor)), None)
    if scale is None:
        return None
    chosen = {"weight_block_size": getattr(module, "block_size", None)}
    fitted = _fitted(name, tuple(param.shape), tuple(scale.shape), chosen)
    if fitted is None:
        return None
    return (param.float() * fitted.of_rows(scale, 0, len(param))).bfloat16()


def _is_packed(name: str, held: Held) -> bool:
    if held.code in FLOATS or held.code in FLOAT8:
        return False
    if name.endswith(".weight"):
        return True
    if held.code in WHOLE:
        return False
    # Older files hold a causal mask under the name of a bias.
    return len(held.shape) > 1 and not name.endswith((".bias", "position_ids"))


def _format(names: Iterable[str]) -> str:
    names = list(names)
    kinds = (kind for part, kind in FORMATS if any(_has(name, part) for name in names))
    return next(kinds, "a format that its names do not tell")


def _has(name: str, part: str) -> bool:
    return part in name if part.endswith("__") else name.endswith(part)


def _how(chosen: Mapping[str, Any], kind: str) -> str:
    method = str(chosen.get("quant_method", "")).lower()
    if method == "bitsandbytes":
        kind = "bitsandbytes 4-bit" if chosen.get("load_in_4bit") else "bitsandbytes 8-bit"
    shown = dict(_shown(chosen))
    details = [f"{key} {value}" for key, value in shown.items()]
    return ", ".join(
        [TITLES.get(method, kind if method in ("", "bitsandbytes") else method), *details]
    )


def _shown(chosen: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    groups = chosen.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        yield from _shown(weights if isinstance(weights, Mapping) else {})
    for key in SHOWN:
        value = chosen.get(key)
        if isinstance(value, list | tuple):
            yield key, "×".join(map(str, value))
        elif value is not None:
            yield key, str(value)


def _beside(name: str, tensors: Mapping[str, Held]) -> list[str]:
    """Other tensors of the same layer from which the value of a weight may depend."""
    stem = name.removesuffix(".weight")
    found = [n for n in tensors if n.startswith((f"{stem}.", f"{stem}_"))]
    return [n for n in found if n not in (name, f"{stem}.bias") and not n.endswith(OF_ACTIVATIONS)]


def _scale(name: str, tensors: Mapping[str, Held], chosen: Mapping[str, Any]) -> Scale | None:
    """The scale of a float8 weight; None where there is none, or something more than it."""
    stem = name.removesuffix(".weight")
    beside = _beside(name, tensors)
    known = {text.format(weight=name, stem=stem) for text in SCALES}
    if len(beside) != 1 or beside[0] not in known:
        return None
    return _fitted(beside[0], tensors[name].shape, tensors[beside[0]].shape, chosen)


def _fitted(
    key: str, shape: tuple[int, ...], grid: tuple[int, ...], chosen: Mapping[str, Any]
) -> Scale | None:
    """A scale with the blocks of its weight; None where the two shapes do not fit."""
    if all(n == 1 for n in grid):
        grid = ()
    if len(grid) < len(shape) and grid == shape[: len(grid)]:  # one a tensor, a row or an expert
        grid = (*grid, *(1,) * (len(shape) - len(grid)))
    if len(grid) != len(shape):
        return None
    given = chosen.get("weight_block_size")
    given = given if isinstance(given, list | tuple) and len(given) <= len(shape) else ()
    given = tuple(n if isinstance(n, int) and n > 0 else 0 for n in given)
    wanted = (*(0,) * (len(shape) - len(given)), *given)
    blocks = [_block(n, g, w) for n, g, w in zip(shape, grid, wanted, strict=True)]
    if any(block is None for block in blocks):
        return None
    return Scale(key, shape, grid, tuple(block or 1 for block in blocks))


def _block(size: int, count: int, wanted: int) -> int | None:
    """How many entries of an axis share a value of the scale, None where the sizes do not say."""
    if wanted and -(-size // wanted) == count:
        return wanted
    return size // count if count and size % count == 0 else None
