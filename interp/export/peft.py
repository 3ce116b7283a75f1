"""The ``peft`` format: a LoRA adapter that ``PeftModel.from_pretrained`` loads as the exact edit.

Conventions of heretic's adapters: ``r = lora_alpha`` so that the scale is 1, full module names as
targets, keys ``base_model.model.<module>.lora_A.weight [r, d_in]`` and ``lora_B.weight [d_model,
r]``. Factors stay fp32. Fused experts become ``target_parameters``: A ``[expert · r, d_in]`` and B
``[d_model, r · expert]``, in opposite orders.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from interp.errors import ExportError
from interp.export.adapters import CONFIG, PREFIX, TENSORS, WRAPPED, check, read_adapter
from interp.export.exporter import Attached, Base, Exporter
from interp.export.gate import Passed
from interp.export.tensors import first_line, write_tensors
from interp.files import write_json
from interp.models.anatomy import Anatomy
from interp.types import Coverage, LowRank, Shift, WeightDelta

WITHOUT_OUT_PROJ = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
"""Model types on whose ``out_proj`` PEFT 0.21 refuses LoRA, as a module or as a parameter."""


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
            key = f"{PREFIX}{module}{WRAPPED * _wrappers(name, delta, base)}"
            tensors[f"{key}.lora_A.weight"] = a
            tensors[f"{key}.lora_B.weight"] = b
        if update.b.ndim == 3 or _mistaken(module, base):
            parameters.append(f"{module}.{leaf}")
        else:
            modules.append(module)
    conv1d = any(u.axes == "in out" for name, u in delta if name not in embeddings)  # type: ignore[union-attr]
    write_tensors(out / TENSORS, tensors)
    write_json(out / CONFIG, _config(base, rank, modules, parameters, fan_in_fan_out=conv1d))


def _wrappers(name: str, delta: WeightDelta, base: Base) -> int:
    """How many of PEFT's layers lie around the one of a parameter: it wraps the parameters of a module
    one after another, in their order there."""
    module, _, leaf = name.rpartition(".")
    leaves = [n for n, _ in base.model.get_submodule(module).named_parameters(recurse=False)]
    adapted = [n for n in leaves if f"{module}.{n}" in delta.updates]
    return len(adapted) - 1 - adapted.index(leaf)


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


# --- reading ----------------------------------------------------------------------------------------


def _on_base(path: Path, base: Base) -> dict[str, LowRank]:
    return read_adapter(path, base.model, base.name)


def unties(anatomy: Anatomy, updates: Collection[str]) -> bool:
    """Whether updates made one by one reach a tied embedding or unembedding, which then part."""
    tied = {w.weight for w in anatomy.embeddings if w.tied}
    tied |= {f"{anatomy.unembed}.weight"} if tied else set()
    return not tied.isdisjoint(updates)


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


EXPORTER = Exporter(
    name="peft",
    summary="a LoRA adapter for PEFT and vLLM, fused experts included",
    marks=(CONFIG, TENSORS),
    refusal=_refusal,
    write=_write,
    check=check,
    attach=_attach,
    direct=_direct,
    library="PEFT",
    priority=10,
)
