"""Open a model by name behind a backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from interp.backends.protocol import Backend
from interp.errors import InterpError
from interp.models import describe
from interp.models.loading import load

BACKENDS = {
    "hooks": "interp.backends.hooks:HooksBackend",
    "transformer_lens": "interp.backends.transformer_lens:TransformerLensBackend",
    "nnsight": "interp.backends.nnsight:NNsightBackend",
}


def backend_class(name: str) -> Callable[..., Backend]:
    """The class of a backend. Raises InterpError naming those that exist."""
    try:
        module, _, cls = BACKENDS[name].partition(":")
    except KeyError:
        raise InterpError(f"no backend {name!r}; known: {', '.join(BACKENDS)}") from None
    return getattr(importlib.import_module(module), cls)


def open_model(name: str = "smollm2", *, backend: str = "hooks", **options: Any) -> Backend:
    """Open ``smollm2``, a local directory or a hub id behind a backend.

    options go to :func:`interp.models.loading.load`: ``dtype``, ``device_map``, ``quantize``,
    ``revision``, ``trust_remote_code``. Raises ModelNotFound, UnknownFamily, UndescribedWriter, or
    InterpError for a family that the backend does not run, each with the mend.
    """
    make = backend_class(backend)
    model, tokenizer = load(name, **options)
    opened = make(model, tokenizer, describe(model), name)
    opened.loading = {key: value for key, value in options.items() if value is not None}
    return opened


def wrap(model: Any, tokenizer: Any = None, *, backend: str = "hooks", source: str = "") -> Backend:
    """A backend around a model that is already loaded.

    source: directory or hub id of the model; by default the one that transformers loaded it from.
    """
    make = backend_class(backend)
    named = source or getattr(model, "name_or_path", "") or model.config.model_type
    return make(model, tokenizer, describe(model), named)
