"""Open a model by name as an :class:`interp.lm.LM`."""

from __future__ import annotations

from typing import Any

from interp.backends.opening import open_model as open_backend
from interp.data.chat import ChatFormat
from interp.lm import BATCH, LM
from interp.watching import Watch, unwatched


def open_model(
    name: str = "smollm2",
    *,
    backend: str = "hooks",
    chat: ChatFormat | None = ChatFormat(),  # noqa: B008 (frozen)
    batch_size: int = BATCH,
    watch: Watch = unwatched,
    **loading: Any,
) -> LM:
    """The model behind a name as an :class:`LM`: ``smollm2``, a directory or a hub id.

    backend: ``hooks``, ``transformer_lens`` or ``nnsight``. loading: ``dtype``, ``device_map``, ``quantize``,
    ``revision``, ``trust_remote_code``. Errors: see :func:`interp.backends.open_model`.
    """
    opened = open_backend(name, backend=backend, **loading)
    return LM(opened, chat, batch_size, watch)
