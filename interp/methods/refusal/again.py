"""Fit a least-disturbance edit again, on the requests that it leaves refused, until hardly any is left.

One closed-form edit moves the mean of the refused requests; those far from the mean keep refusing, and a
greater strength would disturb comply prompts by its square. The next edit moves the mean of what is left
alone, on the edited model, and all add up: ranks add, and only as many prompts change as have to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from interp.data.prompts import PromptSet
from interp.edits import applied
from interp.errors import InterpError
from interp.evaluate.refusal import generate_and_judge
from interp.lm import LM
from interp.methods.refusal.delta import as_delta, rebased
from interp.methods.refusal.fit import (
    FEWEST_REFUSED,
    OPENING,
    Fitted,
    Setting,
    build,
    writer_inputs,
)
from interp.methods.refusal.learning import learned
from interp.types import WeightDelta
from interp.watching import within

ASKED = 320
"""Requests of the fit that are asked again at most, spread evenly over it."""
ROUNDS = 2
"""Times that an edit is fitted again at most."""


def finished(
    lm: LM, fitted: Fitted, setting: Setting, *, chosen_on: Sequence[PromptSet] = ()
) -> WeightDelta:
    """The delta that a setting describes, fitted again and learned where it says so, with what
    it was fitted on, and chosen on where it was."""
    delta = as_delta(lm, fitted, build(lm, fitted, setting), chosen_on)
    if setting.again:
        delta = refit_on_remaining(lm, fitted, setting, delta)
    if setting.worth:
        delta = learned(lm, fitted, delta, setting.worth)
    return delta


def refit_on_remaining(
    lm: LM, fitted: Fitted, setting: Setting, delta: WeightDelta, *, rounds: int = ROUNDS
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
    left, watch = fitted.requests.spread(ASKED), lm.watch
    batches = (fitted.requests, fitted.opened.requests)
    strengths = {name: setting.again * getattr(setting, name) for name in ("strength", "opened")}
    weaker = replace(setting, **strengths, again=0.0, worth=0.0)
    for number in range(1, rounds + 1):
        lm = lm.using(watch=within(watch, f"fit again, {number}"))
        with applied(lm.hf, lm.anatomy, delta):
            found = generate_and_judge(lm, batches[0].chosen(left), tokens=OPENING, by=fitted.judge)
            if found.count < FEWEST_REFUSED:
                break
            refused = torch.tensor(found.refused)
            begun = torch.tensor([t.lstrip().startswith(fitted.opener) for t in found.texts])
            places = (left[refused | begun], left[refused])
            rows = [
                writer_inputs(lm, batch.chosen(place))
                for batch, place in zip(batches, places, strict=True)
            ]
            left = places[0]
            harder = replace(fitted, statistics=fitted.statistics.refusing(*rows))
            edit = build(lm, harder, weaker)
            further = lm.to_delta(replace(edit, recipe={**edit.recipe, "fitted_again": number}))
        delta = delta.compose(rebased(further, delta))
    return delta
