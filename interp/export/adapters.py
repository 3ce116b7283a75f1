"""A LoRA adapter as weight updates: PEFT itself loads it, on a model without values, and its layers are read.

So every rank and alpha pattern, nested target parameter and name that transformers fuses or renames
means what it means to PEFT.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import ExportError
from interp.export.tensors import AGAIN, first_line, read_object, read_tensors
from interp.types import LowRank

Weights = Callable[[str], Tensor | None]

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
LORA = ".lora_"
WRAPPED = ".base_layer"
"""What PEFT puts into the name of a module that it has wrapped."""
ADAPTER = "default"
INITS = (True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of ``init_lora_weights`` with which PEFT loads an adapter as ``W + scale · B A``. The others
(``pissa``, ``olora``, ``corda``, ``loftq``) change the base's own weights, also when they are loaded."""
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
MEND = "merge it with PEFT (merge_and_unload, save_pretrained) and give the merged model"


def read_config(path: Path) -> dict[str, Any]:
    """An adapter's config. Raises ExportError for anything that is not plain LoRA."""
    config = read_object(path / CONFIG, ExportError)
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise ExportError(f"{path / CONFIG} is a {kind!r} adapter; only LORA adapters are read")
    more = [option for option in MORE_THAN_LORA if config.get(option)]
    more += [f"bias={bias}"] if (bias := config.get("bias", "none")) != "none" else []
    if (init := config.get("init_lora_weights", True)) not in INITS:
        more.append(f"init_lora_weights={init}")
    if more:
        raise ExportError(
            f"{path / CONFIG} uses {', '.join(more)}, so that it is more than W + BA; {MEND}"
        )
    return config


def read_stored(path: Path) -> dict[str, Tensor]:
    """The tensors of an adapter by their names in its file.

    Raises ExportError for a missing, damaged or empty file, and for one whose pickle holds more than
    tensors.
    """
    if not (path / TENSORS).is_file() and (path / PICKLED).is_file():
        found = _unpickled(path / PICKLED)
    else:
        found = read_tensors(path / TENSORS, ExportError)
    if not found:
        raise ExportError(f"{path} is empty: its file holds no tensor; {AGAIN}")
    return found


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:  # damaged pickles raise errors of many kinds
        raise ExportError(
            f"{file} is damaged, or holds more than tensors ({first_line(cause)}); save it with "
            "safetensors where it was made"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ExportError(f"{file} holds no tensors by name; give an adapter that PEFT saved")
    return found


def check(path: Path) -> None:
    """Raise ExportError for what can be told without a base: another method, no or damaged tensors."""
    read_config(path)
    bad = [
        name
        for name, value in read_stored(path).items()
        if not bool(value.float().isfinite().all())
    ]
    if bad:
        raise ExportError(f"{path}: {bad[0]} is not finite; train or export it again")


def read_adapter(
    path: Path | str, model: nn.Module, base_name: str, weight: Weights | None = None
) -> dict[str, LowRank]:
    """Runtime weight name → update of an adapter of ``model``, scale included, zero ranks dropped.

    model: of transformers; only its class, config and shapes count, so that a skeleton will do.
    weight: gives the base's own value of a parameter where ``model`` has none.
    Raises ExportError for damaged files, for an adapter that is more than LoRA, and for another base.
    """
    folder = Path(path)
    check(folder)
    params = dict(model.named_parameters(remove_duplicate=False))
    _check_carried(folder, weight or params.get, base_name)
    twin = _twin(model)
    found = {}
    for name, layer in _layers(folder, twin, base_name):
        param = params.get(name)
        if param is None:
            raise ExportError(f"{folder} adapts {name}, which {base_name} does not have")
        update = _update(name, layer, param, model.get_submodule(name.rpartition(".")[0]))
        if update.stored_shape != tuple(param.shape):
            raise ExportError(
                f"{folder} adapts {name} as {update.stored_shape}, {base_name} has "
                f"{tuple(param.shape)}; give the base it was made for"
            )
        found[name] = update
    return found


def _twin(model: nn.Module) -> nn.Module:
    """A model of the same class and config, whose parameters have shapes and share one stored zero."""
    with torch.device("meta"):
        twin = type(model)(copy.deepcopy(model.config))
    made: dict[int, nn.Parameter] = {}
    for module in twin.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            zero = torch.zeros(()).expand(param.shape)
            module._parameters[name] = made.setdefault(
                id(param), nn.Parameter(zero, requires_grad=False)
            )
    return twin.eval()


def _layers(folder: Path, twin: nn.Module, base_name: str) -> Iterator[tuple[str, Any]]:
    """``(runtime weight name, PEFT's layer)`` of everything that the adapter changes."""
    from peft.tuners.lora.layer import LoraLayer

    wrapped = _loaded(folder, twin, base_name)
    for path, layer in wrapped.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            leaf = getattr(layer, "parameter_name", "weight")
            yield f"{path.replace(WRAPPED, '')}.{leaf}", layer


def _loaded(folder: Path, twin: nn.Module, base_name: str) -> Any:
    """The twin with the adapter in it. Raises ExportError unless each tensor of the file has its place,
    and each place its tensor: PEFT itself goes on without either."""
    from peft import LoraConfig, PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = LoraConfig.from_pretrained(str(folder))
            config.init_lora_weights = True  # the file's values replace those of any start
            options: dict[str, Any] = {"low_cpu_mem_usage": True, "torch_device": "cpu"}
            wrapped = PeftModel.from_pretrained(twin, str(folder), config=config, **options)  # type: ignore[arg-type]
            result = wrapped.load_adapter(str(folder), ADAPTER, **options)
        except Exception as cause:  # of many kinds, for what a config or a file may hold
            raise ExportError(
                f"PEFT does not load {folder} on {base_name}: {_reason(cause)}; copy the adapter again, "
                "or give the base it was made for"
            ) from cause
    if unknown := result.unexpected_keys:
        raise ExportError(
            f"{folder} does not fit {base_name}: {len(unknown)} of its {len(read_stored(folder))} tensors "
            f"have no place there ({_shown(unknown)}); give the base it was made for"
        )
    if missing := result.missing_keys:
        raise ExportError(
            f"{folder} lacks {len(missing)} of the factors that its config names ({_shown(missing)}); {AGAIN}"
        )
    return wrapped


def _shown(keys: list[str]) -> str:
    return ", ".join(key.removeprefix(PREFIX).replace(f".{ADAPTER}.", ".") for key in keys[:3])


def _reason(cause: BaseException) -> str:
    lines = [line.strip() for line in str(cause).splitlines()]
    return next((line for line in lines if "mismatch" in line), first_line(cause))


def _update(name: str, layer: Any, param: Tensor, module: nn.Module) -> LowRank:
    """The factors of one of PEFT's layers."""
    if ADAPTER in layer.lora_embedding_A:
        a, b = layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
    else:
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    if a.ndim != 2 or param.ndim not in (2, 3):
        raise ExportError(f"the adapter changes {name}, a convolution; {MEND}")
    a, b = a.detach().float(), b.detach().float() * float(layer.scaling[ADAPTER])
    axes: Any = _axes(module, param)
    if param.ndim == 3:
        a = a.reshape(len(param), -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, len(param)).permute(2, 0, 1)
    elif hasattr(layer, "parameter_name") and axes == "in out":
        a, b = b.T, a.T  # a parameter is adapted as it is stored
    return LowRank(b.contiguous(), a.contiguous(), axes).trimmed()


def _axes(module: nn.Module, param: Tensor) -> str:
    if param.ndim == 3:
        return "expert in out" if getattr(module, "is_transposed", False) else "expert out in"
    stored_transposed = isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D"
    return "in out" if stored_transposed else "out in"


def _check_carried(folder: Path, weight: Weights, base_name: str) -> None:
    """Raise ExportError for weights beside the factors that are not the base's own.

    PEFT saves the whole embedding and unembedding with an adapter on one of them, and loads them.
    """
    for key, value in read_stored(folder).items():
        if LORA in key or not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX).replace(WRAPPED, "")
        own = weight(name)
        if own is None:
            raise ExportError(
                f"{folder} holds {name}, which is no LoRA factor and not in {base_name}; {MEND}"
            )
        if own.shape != value.shape or not torch.equal(own.detach().cpu(), value.to(own.dtype)):
            raise ExportError(
                f"{folder} carries its own {name}, which is not that of {base_name}; {MEND}"
            )
