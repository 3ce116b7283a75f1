"""llama.cpp's names for the matrices of a model, and what its conversion does to each of them.

Read off llama.cpp of October 2026 (llama-cpp-python 0.3.36): ``conversion/`` says under which name
and in which form a matrix is saved, ``src/models/`` which of them the graph multiplies through
``build_lora_mm``. Only those take an adapter; any other tensor in an adapter file would be loaded
and then passed over in silence, and is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from interp.errors import ExportError
from interp.models.anatomy import Anatomy, BoundWriter
from interp.types import Axes

ARCHITECTURES: Mapping[str, str] = {
    "bamba": "granitehybrid",
    "cohere": "command-r",
    "deepseek_v3": "deepseek2",
    "falcon_h1": "falcon-h1",
    "falcon_mamba": "mamba",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "gpt_neox": "gptneox",
    "gpt_oss": "gpt-oss",
    "granite": "granite",
    "granitemoe": "granitemoe",
    "granitemoehybrid": "granitehybrid",
    "jamba": "jamba",
    "llama": "llama",
    "mamba": "mamba",
    "mamba2": "mamba2",
    "mistral": "llama",
    "mixtral": "llama",
    "nemotron_h": "nemotron_h",
    "olmo": "olmo",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "olmoe": "olmoe",
    "phi": "phi2",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
}
"""Model type of transformers → ``general.architecture`` of the GGUF that llama.cpp makes of it."""

EMBEDDING = "token_embd"
EXPERTS = "ffn_down_exps"
ADAPTED = {"attn_output", "ffn_down", EXPERTS, "ffn_down_shexp", "ssm_out", EMBEDDING}
"""Writers that llama.cpp multiplies (or looks up) with an adapter's share."""

FOLDED = {"falcon_h1"}
"""Model types whose multipliers the conversion folds into the writers: ``W' = scale · W``."""

ONE_EMBEDDING = {"cohere", "gemma", "gemma2"}
"""Model types that llama.cpp always unembeds with the token embedding."""

_V = {"attn_v": "self_attn.v_proj"}
_QKV = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", **_V}
_GATED = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
_FEED_FORWARD = {"ffn_gate": "feed_forward.gate_proj", "ffn_up": "feed_forward.up_proj"}
_MIXER = {"ssm_in": "mixer.in_proj", "ssm_x": "mixer.x_proj", "ssm_dt": "mixer.dt_proj"}
_MAMBA = {"ssm_in": "mamba.in_proj", "ssm_x": "mamba.x_proj", "ssm_dt": "mamba.dt_proj"}
READERS: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("llama", "mistral", "smollm3", "olmo", "granite"), _V | _GATED),
    **dict.fromkeys(("mixtral", "granitemoe"), _V),
    **dict.fromkeys(("qwen2", "qwen3", "olmo2", "olmo3", "cohere", "stablelm"), _QKV | _GATED),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _QKV | _GATED),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"), _QKV),
    "starcoder2": _QKV | {"ffn_up": "mlp.c_fc"},
    "phi": _QKV | {"ffn_up": "mlp.fc1"},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    "jamba": _QKV | _FEED_FORWARD | _MAMBA,
    "bamba": _V | _FEED_FORWARD | {"ssm_in": "mamba.in_proj"},
    "granitemoehybrid": _V | {"ssm_in": "mamba.in_proj"},
    **dict.fromkeys(("mamba", "falcon_mamba"), _MIXER),
    "mamba2": {"ssm_in": "mixer.in_proj"},
}
"""Matrices that only read the stream, where the GGUF holds them exactly as transformers does.

What is missing is changed on the way: ``q`` and ``k`` of llama's relatives are permuted for another
rotary layout, GPT-2's are transposed and GPT-NeoX's are regrouped, MLA is split, fused gates are
taken apart, Falcon-H1's multipliers are folded in.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A parameter in llama.cpp. factor: ``W' = factor · W``; shape: as stored by transformers, None
    for a matrix that only reads (the anatomy does not know it)."""

    tensor: str
    axes: Axes = "out in"
    factor: float = 1.0
    shape: tuple[int, ...] | None = None

    @property
    def embedding(self) -> bool:
        return self.tensor == f"{EMBEDDING}.weight"


def architectures(anatomy: Anatomy) -> tuple[str, ...]:
    """The architectures that a GGUF of this model may state, the usual one first.

    Raises ExportError with the reason for a model that llama.cpp cannot run as it is.
    """
    if (reason := why_not(anatomy)) is not None:
        raise ExportError(f"{reason}; use another format")
    usual = ARCHITECTURES[anatomy.model_type]
    experts = any(w.fused for w in anatomy.block_writers)
    if anatomy.model_type == "nemotron_h":
        # A dense one that transformers has saved again states its unused number of experts.
        return ("nemotron_h_moe",) if has_experts(anatomy) else ("nemotron_h", "nemotron_h_moe")
    if anatomy.model_type == "granitemoehybrid" and not any(
        c.kind == "ssm" for c in anatomy.components
    ):
        return ("granitemoe",) if experts else ("granite", "granitemoe")
    return (usual,)


def has_experts(anatomy: Anatomy) -> bool:
    return any(c.kind == "expert" for c in anatomy.components)


def why_not(anatomy: Anatomy) -> str | None:
    """Why llama.cpp cannot run this model as transformers does, None when it can."""
    kind = anatomy.model_type
    if kind not in ARCHITECTURES:
        return f"llama.cpp has no {kind}"
    if kind in ONE_EMBEDDING and not anatomy.tied:
        return f"llama.cpp unembeds {kind} with the embedding, but this model has an own lm_head"
    dense = any(c.kind == "mlp" for c in anatomy.components)
    if kind == "nemotron_h" and dense and has_experts(anatomy):
        return "llama.cpp's nemotron_h has no dense block beside blocks of experts"
    for writer in anatomy.block_writers:
        if _tensor(anatomy, writer) is None:
            return f"llama.cpp's {ARCHITECTURES[kind]} has no tensor for {writer.weight}"
    return None


@cache
def _names(architecture: str, n_blocks: int) -> Any:
    import gguf

    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(known[architecture], n_blocks)


def _map(anatomy: Anatomy) -> Any:
    architecture = ARCHITECTURES[anatomy.model_type]
    if anatomy.model_type == "nemotron_h" and has_experts(anatomy):
        architecture = "nemotron_h_moe"
    return _names(architecture, anatomy.n_blocks)


def _tensor(anatomy: Anatomy, writer: BoundWriter) -> str | None:
    """llama.cpp's name of a writer without ``.weight``; None where it has none."""
    if writer.fused:
        return f"blk.{writer.block}.{EXPERTS}"
    saved = writer.checkpoint[0].removesuffix(".weight")
    name: str | None = _map(anatomy).get_name(saved)
    if anatomy.model_type == "granitemoehybrid" and name and not has_experts(anatomy):
        return name.replace("ffn_down_shexp", "ffn_down")  # without experts nothing is shared
    return name


def places(anatomy: Anatomy) -> dict[str, Place]:
    """Parameter name → where llama.cpp has it, for every matrix that takes an adapter unchanged.

    Raises ExportError for a model that llama.cpp cannot run as it is.
    """
    architectures(anatomy)
    found = {}
    for writer in anatomy.writers:
        name = _tensor(anatomy, writer)
        if name is None or name.rpartition(".")[2] not in ADAPTED:
            continue
        factor = 1.0
        if anatomy.model_type in FOLDED:
            factor = writer.scale or 0.0
        found[writer.weight] = Place(f"{name}.weight", writer.axes, factor, writer.shape)
    for block, prefix in enumerate(anatomy.blocks):
        for stem, path in READERS.get(anatomy.model_type, {}).items():
            found[f"{prefix}.{path}.weight"] = Place(f"blk.{block}.{stem}.weight")
    return found
