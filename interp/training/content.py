"""Content hashes of what a training run depends on: values, models, and functions with what they close over.

A hash is the same in another process if and only if what it stands for is the same. What has no content
hash is an error: leaving it out would reuse a run that was trained in another way.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.errors import InterpError
from interp.files import sha256_text
from interp.source import PACKAGE, code_hash

UNSTABLE = ("_name_or_path", "transformers_version")
"""Values of a config that say where a model lies and who wrote the file, not what the model is."""


def content_hash(value: Any) -> str:
    """SHA-256 of a value. Raises InterpError for one that has no content hash."""
    return sha256_text(json.dumps(described(value), sort_keys=True))


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest = hashlib.sha256(f"{tensor.dtype}:{list(tensor.shape)}:".encode())
    digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def model_hash(model: nn.Module) -> str:
    """SHA-256 of a model's class, config, weights, and which of them are trained."""
    config = getattr(model, "config", None)
    about: dict[str, Any] = {"class": _of_code(type(model), frozenset())}
    if hasattr(config, "to_diff_dict"):
        kept = {k: v for k, v in config.to_dict().items() if k not in UNSTABLE}
        about["config"] = json.loads(json.dumps(kept, default=str))
    about["frozen"] = [name for name, p in model.named_parameters() if not p.requires_grad]
    about["weights"] = {name: tensor_hash(value) for name, value in model.state_dict().items()}
    return sha256_text(json.dumps(about, sort_keys=True))


def described(value: Any, inside: frozenset[int] = frozenset()) -> Any:
    """A value in JSON values, tensors, models and code as hashes. Raises InterpError where there is no way.

    inside: ids of the values around this one, which may lead back to themselves.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in inside:
        return "itself"
    inside |= {id(value)}
    if isinstance(value, Tensor | np.ndarray):
        return {"tensor": tensor_hash(torch.as_tensor(value))}
    if isinstance(value, nn.Module):
        return {"model": model_hash(value)}
    if isinstance(found := getattr(value, "sha256", None), str):
        return {"sha256": found}
    if isinstance(value, Mapping):
        pairs = [[described(k, inside), described(v, inside)] for k, v in value.items()]
        return {"mapping": sorted(pairs, key=json.dumps)}
    if isinstance(value, list | tuple):
        return [described(each, inside) for each in value]
    if isinstance(value, set | frozenset):
        return {"set": sorted((described(each, inside) for each in value), key=json.dumps)}
    if isinstance(value, ModuleType):
        return {"module": value.__name__}
    if isinstance(value, Path | bytes | complex | torch.dtype | torch.device | np.generic):
        return {type(value).__name__: repr(value)}
    return _of_object(value, inside)


def _of_object(value: Any, inside: frozenset[int]) -> Any:
    """A dataclass by its fields, code by its statements, a callable object by both."""
    if hasattr(value, "anatomy"):  # an LM or a backend
        return {"opened": model_hash(getattr(value, "hf", None) or value.model)}
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: described(getattr(value, f.name), inside) for f in fields(value)}
        return {type(value).__qualname__: own}
    if callable(value):
        return {"code": _of_code(value, inside)}
    raise InterpError(
        f"a loss or edit depends on a {type(value).__name__}, whose content cannot be hashed; let it depend "
        "on numbers, texts, tensors, models, dataclasses or functions"
    )


def _of_code(made: Any, inside: frozenset[int]) -> Any:
    """What a function, method, class or callable object does, with everything that it holds."""
    if isinstance(made, partial):
        held = [described(each, inside) for each in (made.args, made.keywords)]
        return ["partial", _of_code(made.func, inside), *held]
    if isinstance(made, MethodType):
        return [_of_code(made.__func__, inside), described(made.__self__, inside)]
    if not isinstance(made, type | FunctionType) and not inspect.isbuiltin(made):
        return [_of_code(type(made), inside), described(vars(made), inside)]
    name = [made.__module__, made.__qualname__]
    if (version := _of_library(made)) is not None:
        return [*name, version]
    code = None if made.__module__ == "__main__" else code_hash(made)
    if isinstance(made, type):
        methods = {k: v for k, v in vars(made).items() if isinstance(v, FunctionType)}
        return [*name, code or {k: _of_code(v, inside) for k, v in methods.items()}]
    cells = zip(made.__code__.co_freevars, made.__closure__ or (), strict=True)
    held = {key: described(cell.cell_contents, inside) for key, cell in cells}
    defaults = [described(each, inside) for each in (made.__defaults__, made.__kwdefaults__)]
    return [*name[:1], code or _of_function(made, inside), held, *defaults]


def _of_library(made: Callable[..., Any]) -> str | None:
    """The version that stands for the code of an installed library; None for code of one's own."""
    top = (made.__module__ or "builtins").partition(".")[0]
    if top in (PACKAGE, "__main__"):  # the file of a notebook's __main__ is the kernel's
        return None
    if top in sys.stdlib_module_names:
        return sys.version
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None) or ""
    installed = {sysconfig.get_path(key) for key in ("purelib", "platlib")}
    if any(file.startswith(folder) for folder in installed) or inspect.isbuiltin(made):
        return str(getattr(module, "__version__", ""))
    return None


def _of_function(function: FunctionType, inside: frozenset[int]) -> Any:
    """A function without a source file, such as one of a notebook: its instructions and its globals."""
    names = _global_names(function.__code__)
    known = {name: function.__globals__[name] for name in names if name in function.__globals__}
    globals_ = {name: described(value, inside) for name, value in known.items()}
    return [_instructions(function.__code__), globals_]


def _global_names(code: CodeType) -> set[str]:
    found = {
        str(each.argval)
        for each in dis.get_instructions(code)
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    return found.union(*(_global_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _instructions(code: CodeType) -> list[Any]:
    """Instructions and constants, without line numbers."""
    constants = [
        _instructions(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts
    ]
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames]
