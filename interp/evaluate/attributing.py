"""The attribution figure in one call: prompts and a model in, a figure record out."""

from __future__ import annotations

import time
from contextlib import nullcontext

from interp.attribution.direct import attribute, attribution_record
from interp.attribution.openers import Openers, find_openers, openers_from_model
from interp.backends.protocol import Backend, SharedBackend
from interp.data.chat import ChatFormat, encode
from interp.data.prompts import PromptSet
from interp.edits import applied, fingerprint
from interp.fitting import BATCH
from interp.records import FigureRecord, Provenance
from interp.source import code_hash
from interp.types import WeightDelta

MADE_BY = f"{__name__}:attribution_figure"
OPENERS = 3
"""How many first tokens each way make the margin when they come from the model."""


def attribution_figure(
    backend: Backend,
    refuse: PromptSet,
    comply: PromptSet,
    *,
    model: str,
    chat: ChatFormat | None = None,
    openers: Openers | None = None,
    delta: WeightDelta | None = None,
    batch_size: int = BATCH,
) -> FigureRecord:
    """Direct logit attribution of the refusal margin on two classes of prompts.

    openers: from :func:`fit_openers` on other prompts than these, or None for the first tokens of known
    refusals and answers. delta: attribute the edited model.
    """
    started = time.perf_counter()
    pos, neg = (encode(backend.tokenizer, s.prompts, chat) for s in (refuse, comply))
    chosen = openers or find_openers(backend.tokenizer)
    base = fingerprint(backend.model, backend.anatomy)
    edited = applied(backend.model, backend.anatomy, delta) if delta else nullcontext()
    with edited:
        found = attribute(backend, (pos, neg), chosen, batch_size=batch_size)
    provenance = Provenance.collect(
        model,
        fingerprint=base,
        prompts={"refuse": refuse.sha256, "comply": comply.sha256},
        seconds=time.perf_counter() - started,
        device=None if backend_device(backend) == "cpu" else backend_device(backend),
        made_by=MADE_BY,
        code=code_hash(MADE_BY),
    )
    title = "What writes the refusal margin" + (" after the edit" if delta else "")
    return attribution_record(found, len(refuse), provenance, title=title)


def fit_openers(
    backend: Backend,
    refuse: PromptSet,
    comply: PromptSet,
    *,
    chat: ChatFormat | None = None,
    batch_size: int = BATCH,
) -> Openers:
    """The first tokens whose probability differs most between the classes, from fit prompts."""
    pos, neg = (encode(backend.tokenizer, s.prompts, chat) for s in (refuse, comply))
    return openers_from_model(backend, pos, neg, OPENERS, batch_size=batch_size)


def backend_device(backend: Backend) -> str:
    """``cpu``, or the accelerator's own name."""
    import torch

    device = backend.device if isinstance(backend, SharedBackend) else torch.device("cpu")
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
