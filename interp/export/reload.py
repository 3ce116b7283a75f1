"""``python -m interp.export.reload SCRATCH``: open an export from its files and give its logits."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from interp.backends.hooks import HooksBackend
from interp.backends.limits import vocabulary
from interp.edits import fingerprint
from interp.errors import ExportError, InterpError
from interp.export.exchange import REPLY, Reply, Request
from interp.export.exporter import Base, Exporter, dtype_of, exporter_named, open_base
from interp.export.probe import probe_batch
from interp.export.tensors import first_line
from interp.files import write_json
from interp.types import TokenBatch


def answer(request: Request) -> Reply:
    """The logits that a request asks for. Raises the InterpError of whatever does not fit."""
    exporter = exporter_named(request.format)
    path = Path(request.path)
    logits: dict[str, Tensor] = {}
    base, batch, found, tokens = None, request.batch, "", 0
    if request.compare or not exporter.standalone:
        base = open_base(request.base, request.options)
        found = _check_fingerprint(request, base)
        batch = batch or probe_batch(base.backend)
        if request.compare:
            logits |= _of_the_base(request, exporter, base, batch)
        if exporter.standalone:
            tokens = vocabulary(base.anatomy)
            base = None  # two whole models need not be in memory
    attached = exporter.attach(path, base, request.options)
    backend = attached.backend
    batch = batch or probe_batch(backend)
    if exporter.standalone and not request.foreign:
        _check_tokens(request, backend, batch, tokens)
    logits["export"] = backend.logits(batch, attached.edit).float()
    return Reply(logits, dtype_of(backend.model), found)


def _check_fingerprint(request: Request, base: Base) -> str:
    found = fingerprint(base.model, base.anatomy)
    known = request.fingerprint or "unverified"
    if "unverified" not in (found, known) and found != known:
        raise ExportError(
            f"{request.path} was made for another base: it expects {known[:12]}, "
            f"{request.base} is {found[:12]}; give the base it was made for"
        )
    return found


def _of_the_base(
    request: Request, exporter: Exporter, base: Base, batch: TokenBatch
) -> dict[str, Tensor]:
    found = {"base": base.backend.logits(batch).float()}
    if request.direct and exporter.direct is not None:
        delta = exporter.direct(Path(request.path), base)
        found["direct"] = base.backend.logits(batch, delta).float()
    return found


def _check_tokens(request: Request, backend: HooksBackend, batch: TokenBatch, tokens: int) -> None:
    """A whole model brings its own vocabulary and tokenizer; both must be the base's."""
    own = vocabulary(backend.anatomy)
    if tokens not in (0, own):
        raise ExportError(
            f"{request.path} has {own} tokens and {request.base} has {tokens}; give the base that "
            "it was made from"
        )
    if not torch.equal(probe_batch(backend).ids, batch.ids):
        raise ExportError(
            f"the tokenizer in {request.path} gives other ids than the base's; export again"
        )


def main(folder: Path) -> int:
    request = Request.load(folder)
    torch.set_num_threads(request.threads)
    try:
        answer(request).save(folder)
    except InterpError as error:
        write_json(folder / REPLY, {"error": type(error).__name__, "message": str(error)})
    except Exception as error:  # a library's own error: one line for whoever exports
        message = f"{request.path} does not reload: {type(error).__name__}: {first_line(error)}"
        write_json(folder / REPLY, {"error": "ExportError", "message": message})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
