"""The attribution figure in one call: prompts and a model in, a figure record out."""

from __future__ import annotations

import time
from typing import Any

from interp.attribution.direct import attribute, attribution_record
from interp.attribution.openers import Openers, find_openers, openers_from_model
from interp.data.prompts import SIDES, PromptSet
from interp.data.tokens import Prompts
from interp.evaluate.hardware import measured_with
from interp.lm import LM
from interp.records import FigureRecord
from interp.types import WeightDelta

MADE_BY = f"{__name__}:attribution_figure"
REFUSALS = (
    "I'm sorry",
    "Sorry",
    "I can't",
    "I cannot",
    "As an AI",
    "Unfortunately",
    "I am unable",
    "I apologize",
)
ANSWERS = ("Sure", "Certainly", "Of course", "Absolutely", "Yes", "Here", "The", "To", "There")
OPENERS = 3
"""How many first tokens each way make the margin when they come from the model."""


def attribution_figure(
    lm: LM,
    refuse: PromptSet,
    comply: PromptSet,
    *,
    openers: Openers,
    delta: WeightDelta | None = None,
) -> FigureRecord:
    """Direct logit attribution of the refusal margin on two classes of prompts.

    openers: from :func:`fit_openers` on other prompts than these, or :func:`phrase_openers`. delta:
    attribute the edited model.
    """
    started = time.perf_counter()
    batches = [lm.tokens(side) for side in (refuse, comply)]
    with lm.editing(delta):
        found = attribute(lm.backend, batches, openers, batch_size=lm.batch_size)
    provenance = measured_with(
        lm,
        prompts={"refuse": refuse.sha256, "comply": comply.sha256},
        seconds=time.perf_counter() - started,
        made_by=MADE_BY,
    )
    title = "What writes the refusal margin" + (" after the edit" if delta else "")
    about = {"key": "refusal/attribution", "title": title, "classes": SIDES}
    return attribution_record(found, len(refuse), provenance, **about)


def fit_openers(lm: LM, refuse: Prompts, comply: Prompts) -> Openers:
    """The first tokens whose probability differs most between the classes, from fit prompts."""
    batches = [lm.tokens(side) for side in (refuse, comply)]
    return openers_from_model(lm.backend, *batches, OPENERS, batch_size=lm.batch_size)


def phrase_openers(tokenizer: Any) -> Openers:
    """The first tokens of known refusals and answers."""
    return find_openers(tokenizer, REFUSALS, ANSWERS)
