"""The ``peft`` format: a LoRA adapter that ``PeftModel.from_pretrained`` loads as the exact edit.

Conventions of heretic's adapters: ``r = lora_alpha`` so that the scale is 1, full module names as
targets, keys ``base_model.model.<module>.lora_A.weight [r, d_in]`` and ``lora_B.weight [d_model,
r]``. Factors stay fp32. Fused experts become ``target_parameters``: A ``[expert · r, d_in]`` and B
``[d_model, r · expert]``, in opposite orders.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from interp.errors import ExportError
from interp.export.exporter import Attached, Base, Exporter
from interp.export.gate import Passed
from interp.export.tensors import first_line, read_object, read_tensors, write_tensors
from interp.files import write_json
from interp.models.anatomy import Anatomy
from interp.types import Coverage, LowRank, Shift, WeightDelta

Weights = Callable[[str], Tensor | None]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
WITHOUT_OUT_PROJ = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
"""Model types on whose ``out_proj`` PEFT 0.21 refuses LoRA, as a module or as a parameter."""
KEY = re.compile(r"base_model\.model\.(.+)\.(lora_[AB])\.weight")
EMBEDDING_KEY = re.compile(r"base_model\.model\.(.+)\.lora_embedding_([AB])")
CARRIED = re.compile(r"base_model\.model\.(.+)\.base_layer\.weight")
"""PEFT adds the base's own matrix to an adapter on an embedding or on the unembedding."""
MORE_THAN_LORA = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "megatron_config",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "loftq_config",
    "ensure_weight_tying",
)
"""Options of an adapter with which it is no longer ``W + scale · B A``."""


def _refusal(delta: WeightDelta, base: Base) -> str | None:
    if shifts := [name for name, update in delta if isinstance(update, Shift)]:
        return f"LoRA has no bias updates ({len(shifts)} here, first {shifts[0]})"
    if delta.untied:
        return "it edits a tied embedding; merging an adapter there would edit the unembedding too"
    if base.anatomy.model_type in WITHOUT_OUT_PROJ:
        refused = [name for name, _ in delta if name.endswith("out_proj.weight")]
        if refused:
            return f"PEFT refuses LoRA on out_proj of {base.anatomy.model_type} ({refused[0]})"
    return None


def _write(delta: WeightDelta, base: Base, out: Path, passed: Passed) -> None:
    rank = delta.rank
    embeddings = {w.weight for w in base.anatomy.embeddings}
    tensors: dict[str, Tensor] = {}
    modules, parameters = [], []
    for name, update in delta:
        assert isinstance(update, LowRank)
        module, _, leaf = name.rpartition(".")
        # A rank_pattern would do for PEFT, but not every loader reads it; zero ranks add nothing.
        b = pad(update.b.float(), (0, rank - update.rank))
        a = pad(update.a.float(), (0, 0, 0, rank - update.rank))
        if name in embeddings:
            tensors[f"{PREFIX}{module}.lora_embedding_A"] = a
            tensors[f"{PREFIX}{module}.lora_embedding_B"] = b
        else:
            if update.b.ndim == 3:
                a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b
        if update.b.ndim == 3 or _mistaken(module, base):
            parameters.append(f"{module}.{leaf}")
        else:
            modules.append(module)
    conv1d = any(u.axes == "in out" for name, u in delta if name not in embeddings)  # type: ignore[union-attr]
    write_tensors(out / TENSORS, tensors)
    write_json(out / CONFIG, _config(base, rank, modules, parameters, fan_in_fan_out=conv1d))


def _mistaken(module: str, base: Base) -> bool:
    """Whether PEFT would take a plain module for experts of the old, unfused layout.

    For several families it turns every target that ends in ``down_proj`` into the fused parameter;
    named as a parameter itself, the matrix is adapted as it is.
    """
    fused = {w.weight.rpartition(".")[2] for w in base.anatomy.block_writers if w.fused}
    return module.rpartition(".")[2] in fused


def _config(
    base: Base, rank: int, modules: list[str], parameters: list[str], *, fan_in_fan_out: bool
) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.options.get("revision"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": modules,
        "target_parameters": parameters or None,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


# --- reading -----------------------------------------------------------------------------------


def read_config(path: Path) -> dict[str, Any]:
    """An adapter's config. Raises ExportError for anything that is not plain LoRA."""
    config = read_object(path / CONFIG, ExportError)
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise ExportError(f"{path / CONFIG} is a {kind!r} adapter; only LORA adapters are read")
    more = [option for option in MORE_THAN_LORA if config.get(option)]
    more += ["bias"] if config.get("bias", "none") != "none" else []
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        more.append("init_lora_weights")  # these rewrite the base's weights when they are loaded
    if more:
        raise ExportError(
            f"{path / CONFIG} uses {', '.join(more)}, so that it is more than W + BA; merge it "
            "with PEFT and verify the merged model"
        )
    return config


def read_peft(path: Path | str) -> dict[str, LowRank]:
    """Runtime weight name → update of a LoRA adapter, scale included, unused zero ranks dropped.

    Fused experts come as ``expert out in``, a Conv1D as PEFT's own ``fan_in_fan_out`` says. Raises
    ExportError for a missing or damaged file, keys that are no LoRA factors, or shapes that do not
    fit.
    """
    folder = Path(path)
    config = read_config(folder)
    tensors = read_tensors(folder / TENSORS, ExportError)
    pairs: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if CARRIED.fullmatch(key):
            continue
        plain, embedding = KEY.fullmatch(key), EMBEDDING_KEY.fullmatch(key)
        match = plain or embedding
        if match is None:
            raise ExportError(f"{folder / TENSORS}: {key} is no LoRA factor of a module")
        pairs.setdefault((match[1], plain is None), {})[match[2][-1]] = value.float()
    if not pairs:
        raise ExportError(f"{folder / TENSORS} is empty; export again")
    found = {}
    for (module, embedding), pair in pairs.items():
        try:
            name, update = _update(config, module, pair, embedding)
        except (KeyError, ValueError, RuntimeError, TypeError, ZeroDivisionError) as cause:
            raise ExportError(
                f"{folder}: the factors of {module} do not fit ({first_line(cause)})"
            ) from None
        found[name] = update
    return found


def _update(
    config: Mapping[str, Any], module: str, pair: Mapping[str, Tensor], embedding: bool
) -> tuple[str, LowRank]:
    a, b = pair["A"], pair["B"]
    rank = _patterned(config.get("rank_pattern"), module, config["r"])
    alpha = _patterned(config.get("alpha_pattern"), module, config["lora_alpha"])
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    leaf = _parameter(config, module)
    experts, left = divmod(a.shape[0], rank)
    if left or (experts > 1 and leaf is None):
        raise ValueError(f"A has {a.shape[0]} rows for rank {rank}")
    axes: Any = "in out" if embedding or config.get("fan_in_fan_out") else "out in"
    if experts > 1:
        a = a.reshape(experts, rank, -1)
        b = b.reshape(b.shape[0], rank, experts).permute(2, 0, 1)
        axes = "expert out in"
    b = b if scale == 1.0 else b * scale
    return f"{module}.{leaf or 'weight'}", LowRank(b.contiguous(), a.contiguous(), axes).trimmed()


def _patterned(patterns: Any, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _parameter(config: Mapping[str, Any], module: str) -> str | None:
    """The leaf of the target parameter on a module, None when the module itself is the target."""
    for target in config.get("target_parameters") or ():
        owner, _, leaf = target.rpartition(".")
        if module == owner or module.endswith(f".{owner}"):
            return leaf
    return None


def _on_base(path: Path, base: Base) -> dict[str, LowRank]:
    return on_base(path, base.model, base.name)


def on_base(
    path: Path, model: nn.Module, base_name: str, weight: Weights | None = None
) -> dict[str, LowRank]:
    """The updates with the axes of the base's modules. Raises ExportError for another base.

    weight: gives the base's own value of a parameter where ``model`` is a skeleton without any.
    """
    params = dict(model.named_parameters(remove_duplicate=False))
    updates = read_peft(path)
    if unmatched := [name for name in updates if name not in params]:
        raise ExportError(
            f"{path} does not fit {base_name}: {len(unmatched)} of its {len(updates)} targets are "
            f"not in the base ({', '.join(unmatched[:3])}); give the base it was made for"
        )
    for key, value in read_tensors(path / TENSORS, ExportError).items():
        if (match := CARRIED.fullmatch(key)) is None:
            continue
        if not _same((weight or params.get)(f"{match[1]}.weight"), value):
            raise ExportError(
                f"{path} carries its own {match[1]}, which is not that of {base_name}; merge it "
                "with PEFT and verify the merged model"
            )
    placed = {}
    for name, update in updates.items():
        placed[name] = replace(update, axes=_axes(model, name, update))
        shape = placed[name].stored_shape
        if shape != tuple(params[name].shape):
            raise ExportError(
                f"{path} was made for another base: it adapts {name} as {shape}, {base_name} has "
                f"{tuple(params[name].shape)}; give the base it was made for"
            )
    return placed


def unties(anatomy: Anatomy, updates: Collection[str]) -> bool:
    """Whether updates made one by one reach a tied embedding or unembedding, which then part."""
    tied = {w.weight for w in anatomy.embeddings if w.tied}
    tied |= {f"{anatomy.unembed}.weight"} if tied else set()
    return not tied.isdisjoint(updates)


def _same(param: Tensor | None, carried: Tensor) -> bool:
    if param is None or param.shape != carried.shape:
        return False
    return torch.equal(param.detach().cpu(), carried.to(param.dtype))


def _axes(model: nn.Module, name: str, update: LowRank) -> Any:
    module = model.get_submodule(name.rpartition(".")[0])
    if update.b.ndim == 3:
        return "expert in out" if getattr(module, "is_transposed", False) else "expert out in"
    stored_transposed = isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D"
    return "in out" if stored_transposed else "out in"


def _direct(path: Path, base: Base) -> WeightDelta:
    """The weight edit that the adapter's factors stand for."""
    updates = _on_base(path, base)
    return WeightDelta(
        updates=updates,
        base="unverified",
        recipe={"adapter": str(path)},
        exactness="W + BA",
        coverage=Coverage(tuple(updates), {}),
        untied=unties(base.anatomy, updates),
    )


def _attach(path: Path, base: Base | None, options: Mapping[str, Any]) -> Attached:
    from peft import PeftModel

    assert base is not None
    _on_base(path, base)
    with warnings.catch_warnings():
        # PEFT warns about fan_in_fan_out and tied weights; the comparison of logits decides.
        warnings.simplefilter("ignore")
        try:
            # PEFT puts its layers into the base model itself, which then runs with the adapter.
            PeftModel.from_pretrained(base.model, str(path))
        except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as cause:
            raise ExportError(
                f"PEFT does not load {path} on {base.name}: {first_line(cause)}; "
                "export it as delta or merged"
            ) from cause
    base.model.eval()
    return Attached(base.backend)


def _check(path: Path) -> None:
    read_peft(path)


EXPORTER = Exporter(
    name="peft",
    summary="a LoRA adapter for PEFT and vLLM, fused experts included",
    marks=(CONFIG, TENSORS),
    refusal=_refusal,
    write=_write,
    check=_check,
    attach=_attach,
    direct=_direct,
    priority=10,
)
