"""Fit a least-disturbance edit again, on the requests that it leaves refused, until hardly any is left.

One closed-form edit moves the mean of the refused requests; those far from the mean keep refusing, and a
greater strength would disturb comply prompts by its square. The next edit moves the mean of what is left
alone, on the edited model, and all add up: ranks add, and only as many prompts change as have to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from interp.backends.hooks import writer_sites
from interp.backends.protocol import Backend
from interp.data.prompts import PromptSet
from interp.edits import applied, to_delta
from interp.errors import InterpError
from interp.evaluate.refusal import generate_and_judge
from interp.fitting import BATCH, capture
from interp.methods.refusal.delta import as_delta, rebased
from interp.methods.refusal.fit import (
    FEWEST_REFUSED,
    OPENING,
    Fitted,
    Setting,
    build,
)
from interp.methods.refusal.learning import learned
from interp.types import TokenBatch, WeightDelta
from interp.watching import Watch, unwatched

ASKED = 320
"""Requests of the fit that are asked again at most, spread evenly over it."""
ROUNDS = 2
"""Times that an edit is fitted again at most."""


def finished(
    backend: Backend,
    fitted: Fitted,
    setting: Setting,
    model_name: str,
    *,
    chosen_on: Sequence[PromptSet] = (),
    batch_size: int = BATCH,
    watch: Watch = unwatched,
) -> WeightDelta:
    """The delta that a setting describes, fitted again and learned where it says so, with what
    it was fitted on, and chosen on where it was."""
    delta = as_delta(backend, fitted, build(backend, fitted, setting), model_name, chosen_on)
    common: dict[str, Any] = {"batch_size": batch_size, "watch": watch}
    if setting.again:
        delta = refit_on_remaining(backend, fitted, setting, delta, **common)
    if setting.worth:
        delta = learned(backend, fitted, delta, setting.worth, **common)
    return delta


def refit_on_remaining(
    backend: Backend,
    fitted: Fitted,
    setting: Setting,
    delta: WeightDelta,
    *,
    rounds: int = ROUNDS,
    batch_size: int = BATCH,
    watch: Watch = unwatched,
) -> WeightDelta:
    """``delta`` and the edits that ``setting`` describes fitted on it, at ``setting.again`` of the strengths.

    At the first token the next edit moves the mean of those whose response still begins with the opener,
    refused or not; after the opener, that of those still refused. Ends after ``rounds``, or where fewer
    than ``FEWEST_REFUSED`` of the requests that are asked again are refused. The comply side stays that of
    the unedited model, from which a least-disturbance edit hardly moves it. InterpError for a fit that has
    not read what follows an opener, or does not know its requests.
    """
    if fitted.requests is None or fitted.opened is None or fitted.opened.requests is None:
        raise InterpError("fitting again needs the opener of a refusal; give `opener` to fit")
    left = fitted.requests.spread(ASKED)
    batches = (fitted.requests, fitted.opened.requests)
    weaker = replace(
        setting,
        strength=setting.again * setting.strength,
        opened=setting.again * setting.opened,
        again=0.0,
        worth=0.0,
    )
    for number in range(rounds):
        with applied(backend.model, backend.anatomy, delta):
            progress = watch(f"fit again, {number + 1}: responses", len(left))
            found = generate_and_judge(
                backend,
                batches[0].chosen(left),
                tokens=OPENING,
                by=fitted.judge,
                batch_size=2 * batch_size,
                progress=progress,
            )
            if found.count < FEWEST_REFUSED:
                break
            refused = torch.tensor(found.refused)
            begun = torch.tensor([t.lstrip().startswith(fitted.opener) for t in found.texts])
            places = (left[refused | begun], left[refused])
            rows = [
                _inputs(backend, batch.chosen(place), batch_size)
                for batch, place in zip(batches, places, strict=True)
            ]
            left = places[0]
            harder = replace(fitted, statistics=fitted.statistics.refusing(*rows))
            edit = build(backend, harder, weaker)
            edit = replace(edit, recipe={**edit.recipe, "fitted_again": number + 1})
            further = to_delta(backend.model, backend.anatomy, edit)
        delta = delta.compose(rebased(further, delta))
    return delta


def _inputs(backend: Backend, batch: TokenBatch, batch_size: int) -> dict[str, torch.Tensor]:
    """Inputs of every writer at the last token, ``{name: [n, d_in]}``."""
    sites = writer_sites(backend.anatomy.block_writers)
    found = capture(backend, batch, sites, batch_size=batch_size)
    return {site.name: rows for site, rows in found.items()}
