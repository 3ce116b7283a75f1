"""What a finetune or its data moves along a vector (2507.21509, §4.2, §6.1, I)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import PersonaError
from interp.lm import LM
from interp.methods.persona_vectors.data import StyledData
from interp.methods.persona_vectors.vectors import projection
from interp.sites import Site

Means = Float[Tensor, "rows d_model"]
Vector = Float[Tensor, " d_model"]


def prompt_ends(lm: LM, prompts: Sequence[str], site: Site) -> Means:
    """Activations at the last token of every prompt."""
    return lm.activations(list(prompts), site)[site].float()


def response_means(lm: LM, prompts: Sequence[str], responses: Sequence[str], site: Site) -> Means:
    """Mean activations over the tokens of every response."""
    found = lm.activations(
        list(prompts), site, at="response", reduce="mean", responses=list(responses)
    )
    return found[site].float()


def moved(before: Means, after: Means, vector: Vector) -> float:
    """``(mean after − mean before) · v̂``.

    The finetuning shift, for ends of evaluation prompts of the base model and of a finetune. The projection
    difference ΔP of training data, for response means of the base model's own answers and of the data's. Its
    cheap proxy, for prompt ends and the data's response means.
    """
    return float(projection(after.double().mean(0) - before.double().mean(0), vector))


def without_highest(
    data: StyledData, values: Float[Tensor, " rows"], quantile: float
) -> StyledData:
    """The rows whose value is at most the ``quantile`` of all values, for training on the rest.

    Raises PersonaError for a quantile outside 0 to 1 and for other than one value per row.
    """
    if not 0 <= quantile <= 1 or values.shape != (len(data),):
        raise PersonaError(
            f"a filter needs one value for each of {len(data)} rows and a quantile from 0 to 1, not "
            f"{list(values.shape)} and {quantile:g}"
        )
    limit = torch.quantile(values.float(), quantile)
    return data.chosen((values <= limit).nonzero().flatten().tolist())
