"""Checkpoints with biases that their config leaves out: a setting, or another class, gives them.

A delta that adds a constant to what a matrix writes is a new bias. Where the architecture can be saved with
one, every other bias that comes with it is zero, which changes nothing: the result is exact.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import ExportError
from interp.export.exporter import Base
from interp.export.sides import saved_name
from interp.files import write_json
from interp.models.checkpoint import SINGLE, Checkpoint, Stored, read_header
from interp.models.loading import load_tokenizer
from interp.models.skeleton import bare
from interp.types import Shift, WeightDelta

AS_LLAMA = ("mistral", "qwen2")
"""Model types that compute what Llama computes, without the settings that give Llama's matrices biases."""
FULL = "full_attention"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Resaved:
    """How a model is saved so that it has some biases.

    architecture: class of transformers, empty for its own. settings: what is switched on in its config.
    config: what becomes of ``config.json``. new: runtime names and shapes of all biases that come with it.
    """

    architecture: str
    settings: tuple[str, ...]
    config: Mapping[str, Any]
    new: Shapes

    def as_json(self) -> dict[str, Any]:
        return {"class": self.architecture, "settings": self.settings, "new_biases": len(self.new)}


def new_biases(delta: WeightDelta, base: Base) -> list[str]:
    """Biases that a delta adds to modules without one."""
    known = {name for name, _ in base.model.named_parameters(remove_duplicate=False)}
    return [name for name, update in delta if isinstance(update, Shift) and name not in known]


def resaved(base: Base, names: Iterable[str], folder: Path) -> Resaved:
    """How the model in ``folder`` is saved with biases of these names.

    Raises ExportError, which says why, for an architecture that has no exact form with them.
    """
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config: Any = base.model.config
    own, wanted = _shapes(base.model), set(names)
    trust = bool(base.options.get("trust_remote_code"))
    if (found := _switched_on(config, own, wanted, trust)) is not None:
        settings, new = found
        inside = "text_config" if config.get_text_config() is not config else None
        part = stored if inside is None else stored[inside]
        part |= dict.fromkeys(settings, True)
        return Resaved("", settings, stored, new)
    what = (
        f"{config.model_type} has no setting that gives {min(wanted).removesuffix('.bias')} a bias"
    )
    if config.model_type not in AS_LLAMA:
        raise ExportError(f"{what}, and no other class computes the same with one")
    if "auto_map" in stored:
        raise ExportError(
            f"{what}, and code comes with this model that another class would not run"
        )
    if set(getattr(config, "layer_types", None) or [FULL]) != {FULL} or _window(config):
        raise ExportError(
            f"{what}, and Llama, which has biases, has no sliding window as this model has"
        )
    llama = _llama(config)
    if (found := _switched_on(llama, own, wanted, trust)) is None:
        raise ExportError(f"{what}, and neither does Llama")
    settings, new = found
    for name in settings:
        setattr(llama, name, True)
    kept = {key: stored[key] for key in ("dtype", "torch_dtype") if key in stored}
    made = json.loads(llama.to_json_string()) | kept | {"architectures": ["LlamaForCausalLM"]}
    return Resaved("LlamaForCausalLM", settings, made, new)


def _window(config: Any) -> bool:
    return config.model_type == "mistral" and config.sliding_window is not None


def _llama(config: Any) -> Any:
    """The config of the Llama that computes the same; the values that Llama has are taken over."""
    from transformers import AutoConfig, LlamaConfig

    known = {each.name for each in fields(LlamaConfig)} - {"architectures", "transformers_version"}
    values = {key: value for key, value in config.to_dict().items() if key in known}
    return AutoConfig.for_model("llama", **values)


def _switched_on(
    config: Any, own: Shapes, wanted: set[str], trust: bool
) -> tuple[tuple[str, ...], Shapes] | None:
    """Settings with which a class has these biases and all parameters of the model, and its new biases.

    None where it has not, or has other new parameters than biases.
    """

    def built(settings: Iterable[str]) -> Shapes:
        changed = copy.deepcopy(config)
        for name in settings:
            setattr(changed.get_text_config(), name, True)
        return _shapes(bare(changed, trust_remote_code=trust))

    plain, needed = built(()), own.keys() | wanted
    values = config.get_text_config().to_dict().items()
    switches = [name for name, value in values if value is False and "bias" in name]
    chosen = tuple(
        name for name in switches if (built([name]).keys() - plain.keys()) & (needed - plain.keys())
    )
    found = built(chosen) if chosen else plain
    new = {name: shape for name, shape in found.items() if name not in own}
    whole = needed <= found.keys() and all(found[name] == own[name] for name in own)
    return (chosen, new) if whole and all(name.endswith(".bias") for name in new) else None


def _shapes(model: Any) -> Shapes:
    return {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}


def keep_tokenizer(base: Base, folder: Path, out: Path) -> None:
    """Name in ``out`` the tokenizer class with which ``folder`` is read: by itself, another model type means
    another."""
    path = out / "tokenizer_config.json"
    if not path.is_file():
        return
    trust = bool(base.options.get("trust_remote_code"))
    tokenizer = base.tokenizer or load_tokenizer(str(folder), trust_remote_code=trust)
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, settings | {"tokenizer_class": type(tokenizer).__name__})


def stored_biases(
    made: Resaved, delta: WeightDelta, base: Base, checkpoint: Checkpoint, scratch: Path
) -> dict[str, Stored]:
    """The new biases as tensors in a file in ``scratch``, by their names in the checkpoint.

    A bias has the dtype of its matrix and is named beside it. Raises ExportError for a matrix that the files
    lack.
    """
    from safetensors.torch import save_file

    values: dict[str, Tensor] = {}
    for name, shape in made.new.items():
        weight = f"{name.removesuffix('bias')}weight"
        if (key := checkpoint.find(saved_name(base.anatomy, weight))) is None:
            raise ExportError(
                f"{checkpoint.folder} has no {weight}, beside which a bias could be saved"
            )
        update = delta.updates.get(name)
        value = update.value if isinstance(update, Shift) else torch.zeros(shape)
        bias = f"{key.removesuffix('weight')}bias"
        values[bias] = value.to(checkpoint.dtype_of(key)).contiguous()
    path = scratch / SINGLE
    save_file(values, path)
    return read_header(path)
