"""Open a model and its tokenizer by name: the embedded one, a local directory, or a hub id."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.architectures import register
from interp.errors import InterpError, InterpWarning, ModelNotFound, UnknownFamily
from interp.files import sha256_text
from interp.models import auto_class, family_of
from interp.models.checkpoint import INDEX, SINGLE, Checkpoint
from interp.models.complete import check_complete, without_report
from interp.models.embedded import ALIAS, cached, embedded_directory
from interp.models.intact import check_model_files, check_tokenizer_files, damaged_tokenizer
from interp.models.quantised import of_config, settings
from interp.models.wheels import WHEEL_MODELS, installed_directory

if TYPE_CHECKING:
    import torch
    from torch import nn

TINY = "tiny:"
ADAPTER = "adapter_config.json"
WITHOUT_ADAPTER = {"subfolder": "no adapter"}
"""Where transformers is told to look for an adapter: it would add one that lies beside a model."""
WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


def resolve(name: str) -> str:
    """A name as transformers takes it: a directory of the cache, a checked local one, or a hub id.

    ``smollm2`` is the embedded model; ``qwen2.5-coder-1.5b`` one that ``interp models --install`` fetches;
    ``tiny:TYPE`` a tiny random model of a family, which speaks bytes.

    Raises ModelNotFound for a missing wheel, a path that is not there, no ``config.json``, no weights, and
    files that are damaged or were never fetched.
    """
    if name == ALIAS:
        return str(embedded_directory())
    if name.startswith(TINY):
        return str(_tiny_directory(name.removeprefix(TINY)))
    if name in WHEEL_MODELS:
        return str(installed_directory(WHEEL_MODELS[name]))
    path = Path(name).expanduser()
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    if not path.is_dir():
        if looks_local and "/" in name:
            raise ModelNotFound(
                f"no directory {name}; give a model directory, a hub id, or {ALIAS!r}"
            )
        if "/" not in name:
            raise ModelNotFound(
                f"no model {name!r}; give {ALIAS!r}, a directory, or a hub id such as org/name"
            )
        return name
    _check_directory(path, name)
    return str(path)


def _check_directory(path: Path, name: str) -> None:
    """Raise ModelNotFound for a directory without a whole model."""
    if not (path / "config.json").is_file():
        hint = ""
        if (path / ADAPTER).is_file():
            hint = " (this is a PEFT adapter: open its base and verify the adapter against it)"
        raise ModelNotFound(
            f"{name} has no config.json{hint}; save a model there with save_pretrained"
        )
    if not any(next(path.glob(glob), None) for glob in WEIGHT_FILES):
        raise ModelNotFound(
            f"{name} has a config but no weights (*.safetensors); "
            "download them with: hf download ORG/NAME --local-dir " + str(path)
        )
    check_model_files(path)


def _tiny_directory(model_type: str) -> Path:
    """A tiny random model of a family in the cache; for trying things out, and for CI."""
    import transformers

    from interp.models.tiny import save_tiny

    family = family_of(model_type)
    sizes = sha256_text(repr(sorted(family.tiny[model_type].items())))[:8]
    name = f"tiny-{model_type}-{sizes}-transformers-{transformers.__version__}"
    return cached(name, lambda folder: save_tiny(model_type, family, folder))


def load_config(name: str, *, trust_remote_code: bool = False, revision: str | None = None) -> Any:
    """A model's config. Raises ModelNotFound or, for a ``model_type`` without anatomy, UnknownFamily."""
    resolved = resolve(name)
    if (Path(resolved) / ADAPTER).is_file():
        warnings.warn(
            f"{name} holds an adapter ({ADAPTER}) beside the weights of a model; the weights are used "
            "and the adapter is ignored (move it to a directory of its own to use it)",
            InterpWarning,
            stacklevel=2,
        )
    with explained(name), readable(name):
        try:
            config = _read_config(resolved, trust_remote_code=trust_remote_code, revision=revision)
        except ValueError as error:
            raise UnknownFamily(
                f"transformers cannot read the config of {name}: {_first_line(str(error))}"
            ) from None
    family_of(config.model_type)
    return config


def _read_config(name: str, **options: Any) -> Any:
    """The config of transformers' class for it, or of one of :mod:`interp.architectures`."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, **options)
    except ValueError:  # among others, a model_type that transformers does not have
        register()
        return AutoConfig.from_pretrained(name, **options)


def load(
    name: str = ALIAS,
    *,
    dtype: str | None = None,
    device_map: str | None = None,
    quantize: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """``(model, tokenizer)``; the tokenizer is None where the directory has none.

    dtype: ``float32``, ``bfloat16``, ``float16`` or None (as stored). device_map: ``auto`` and friends
    through accelerate. quantize: ``4bit`` or ``8bit`` through bitsandbytes.
    Raises ModelNotFound, UnknownFamily.
    """
    config = load_config(name, trust_remote_code=trust_remote_code, revision=revision)
    options: dict[str, Any] = {
        "config": config,
        "dtype": _dtype(dtype) if dtype else "auto",
        "trust_remote_code": trust_remote_code,
        "revision": revision,
        "adapter_kwargs": WITHOUT_ADAPTER,
    }
    if device_map is not None:
        options["device_map"] = device_map
    if quantize is not None:
        options["quantization_config"] = _quantization(quantize)
    return _load_model(name, options), load_tokenizer(
        name, revision=revision, trust_remote_code=trust_remote_code
    )


def _load_model(name: str, options: dict[str, Any]) -> nn.Module:
    """The model with every weight from its files, in eval mode."""

    nobody_watches = bool(os.environ.get("CI")) or not os.isatty(2)
    packed = of_config(options["config"].to_dict())
    with explained(name), readable(name), without_bars(nobody_watches), without_report():
        try:
            _check_declared(name, options["config"])
            model, info = auto_class(options["config"]).from_pretrained(
                resolve(name), **options, output_loading_info=True, ignore_mismatched_sizes=True
            )
            check_complete(name, model, info)
        except Exception as error:
            if packed is None:
                raise
            own = isinstance(error, InterpError)  # then the names say less than the config
            why = "" if own else f" (transformers: {_first_line(str(error))})"
            raise ModelNotFound(packed.explain(name) + why) from error
    if packed is not None and getattr(model, "hf_quantizer", None) is None:
        _give_one_dtype(model)
    return model.eval()


def _give_one_dtype(model: nn.Module) -> None:
    """Cast the parameters of a dequantised model to the dtype in its config.

    transformers gives that dtype to the dequantised weights alone; the others stay as they are stored, and
    the first matrix product fails.
    """
    for param in model.parameters():
        if param.is_floating_point() and not param.is_meta:
            param.data = param.data.to(model.config.dtype)


def _check_declared(name: str, config: Any) -> None:
    """Raise ModelNotFound for quantised files whose config does not say so: transformers takes the codes
    for weights."""
    folder = Path(resolve(name))
    if settings(config.to_dict()) or not any((folder / f).is_file() for f in (SINGLE, INDEX)):
        return
    if (packed := Checkpoint.open(folder).quantisation) is not None:
        raise ModelNotFound(f"{packed.explain(name)} (its config.json has no quantization_config)")


def _dtype(name: str) -> torch.dtype:
    import torch

    found = getattr(torch, name, None)
    if not (isinstance(found, torch.dtype) and found.is_floating_point and found.itemsize > 1):
        raise ModelNotFound(f"no dtype {name!r}; use float32, bfloat16 or float16")
    return found


def load_tokenizer(
    name: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer, set to left padding with a pad token; None for a directory without one.

    Raises ModelNotFound for one that cannot be read, naming the file where it is known.
    """
    from transformers import AutoTokenizer

    resolved = resolve(name)
    path = Path(resolved)
    if path.is_dir() and not any(
        (path / f).is_file()
        for f in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    ):
        return None
    if path.is_dir():
        check_tokenizer_files(path)
    with explained(name):
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                resolved, revision=revision, trust_remote_code=trust_remote_code
            )
        except OSError:
            if not path.is_dir():
                raise
            raise damaged_tokenizer(path, "a file is missing") from None
        except Exception as error:  # each kind of damage is another error
            raise damaged_tokenizer(path, _first_line(str(error)) or type(error).__name__) from None
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer("a", add_special_tokens=False).input_ids:
        raise ModelNotFound(
            f"the tokenizer of {name} has no token for any text; copy its files again"
        )
    return tokenizer


def _quantization(kind: str) -> Any:
    import importlib.util

    from transformers import BitsAndBytesConfig

    if kind not in ("4bit", "8bit"):
        raise ModelNotFound(f"quantize must be 4bit or 8bit, got {kind!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelNotFound(
            "4-bit and 8-bit loading needs bitsandbytes; run: pip install bitsandbytes"
        )
    return BitsAndBytesConfig(load_in_4bit=kind == "4bit", load_in_8bit=kind == "8bit")


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn the hub's many errors into one that says what to do."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        yield
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{name} is gated: accept its licence on the hub, then run: hf auth login"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        text = str(error)
        if "gated" in text.lower():
            raise ModelNotFound(
                f"{name} is gated: accept its licence on the hub, then run: hf auth login"
            ) from error
        if Path(name).expanduser().is_dir():
            raise ModelNotFound(f"cannot read the model in {name}: {_first_line(text)}") from error
        raise ModelNotFound(
            f"cannot get {name} from the hub (offline, gated or no such id); where there is a network "
            f"run: hf auth login && hf download {name}"
        ) from error


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what libraries raise for damaged weights, impossible configs and options into ModelNotFound."""
    try:
        yield
    except (InterpError, OSError):
        raise
    except Exception as error:
        why = _first_line(str(error)) or type(error).__name__
        if isinstance(error, KeyError):
            why = f"transformers knows no {error}"
        raise ModelNotFound(f"cannot load {name}: {why}") from error


def _first_line(text: str) -> str:
    """The first line that says something: one that ends with a colon goes on in the next."""
    first, _, rest = text.strip().partition("\n")
    return f"{first} {_first_line(rest)}" if first.endswith(":") and rest else first


@contextmanager
def without_bars(when: bool = True) -> Iterator[None]:
    """transformers' own bars off, if ``when``; the user's setting is put back afterwards."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    if when:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
