"""Steering the tone of a text: how far a persona's own shift, added to the stream, moves the next word.

Every prompt asks to continue an opening, and the reply already begins with it, so that the last token
is the opening's own. The direction at a block is the mean over stems of the happy persona's stream
minus the sad persona's, at that token. It is added with its own norm, times α, at every position of
prompts with other openings and no persona (the template's default system turn).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from interp.claims import Claim
from interp.data.chat import ChatFormat
from interp.data.tone import SIDES, Tone, load_tone
from interp.estimators import DiffMeans, RandomDirection
from interp.interventions import add
from interp.lm import LM
from interp.methods.representation_engineering.paper import KEY
from interp.records import FigureRecord
from interp.series import Axis, Line, Lines, Places
from interp.study import Study
from interp.types import TokenBatch
from interp.watching import unwatched

REQUEST = "Continue this text: {opening}"
STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
DEPTH = 30
SWEEP = (6, 10, 14, 18, 22, 26)
LATE, EARLY = (22, 26), (10, 14)
"""Blocks of a model with DEPTH blocks; others are steered at the same relative depth."""
RANDOM_AT, RANDOM_DRAWS = 22, 4
RANDOM = "random direction"

Effects = Float[Tensor, "strengths contexts"]

CLAIMS = (
    Claim("at the late blocks α = ±1 moves every context by at least 1 logit, in the right direction",
          "at least", "", 1.0, statistic="tone/late_least_move"),
    Claim("at the two early blocks the mean effect of α = ±1 is reversed",
          "at most", "", 0.0, statistic="tone/early_greatest_move"),
    Claim("a random direction of equal norm moves the mean at most a quarter as far",
          "at most", "", 0.25, statistic="tone/random_share"),
)  # fmt: skip


def tone(study: Study) -> FigureRecord:
    """Effect of a persona's shift on the tone of the next word, by strength and block."""
    material = load_tone()
    stems, contexts = (texts[: study.limit] for texts in (material.stems, material.contexts))
    material = replace(material, stems=stems, contexts=contexts)
    shifts = persona_shifts(study, material)
    effects = _sweep(study, material, shifts)
    places = {block: at_depth(block, len(shifts)) for block in SWEEP}
    prompts = {"tone": material.sha256, "stems": stems, "contexts": contexts}
    return FigureRecord(
        key=f"{KEY}/tone",
        title="A persona's own shift, added at one block",
        series=Lines(
            Places("α, shifts from sad to happy added", values=STRENGTHS),
            Axis("happy minus sad next words, change", "logits"),
            _lines(effects, places),
            beside={
                "late": [f"block {places[b]}" for b in LATE],
                "early": [f"block {places[b]}" for b in EARLY],
                "random_size": _moves(effects[RANDOM]).mean(0).abs().mean().item(),
            },
        ),
        claims=CLAIMS,
        provenance=study.provenance(prompts),
        n={"stems a persona": len(stems), "contexts": len(contexts)},
        intervals=f"least and greatest context; random: of {RANDOM_DRAWS} draws",
        seeds=(0,),
        caption=(
            "Mean log-probability of happy minus of sad words at the next token, relative to α = 0, "
            "on held-out contexts without a persona. The shift is added at every position."
        ),
    )


def at_depth(block: int, n_blocks: int) -> int:
    """The block at the same relative depth in a stack of ``n_blocks``."""
    return min(round(block * n_blocks / DEPTH), n_blocks - 1)


# --- prompts and directions --------------------------------------------------------------------


def continuing(lm: LM, openings: Sequence[str], system: str | None = None) -> TokenBatch:
    """Prompts whose reply has begun with the opening; a system turn or the template's own."""
    each = [
        lm.using(chat=ChatFormat(system=system, prefill=text)).tokens(REQUEST.format(opening=text))
        for text in openings
    ]
    return reduce(TokenBatch.followed_by, each)


def persona_shifts(study: Study, material: Tone) -> Float[Tensor, "blocks d"]:
    """Mean stream under the happy persona minus under the sad one, after every block, last token."""
    batches = (continuing(study.lm, material.stems, material.personas[side]) for side in SIDES)
    positive, negative = (study.lm.residuals(batch)[1:].float() for batch in batches)
    return DiffMeans().fit(positive, negative, True).vector_


# --- effects -----------------------------------------------------------------------------------


def _sweep(
    study: Study, material: Tone, shifts: Float[Tensor, "blocks d"]
) -> dict[int | str, Effects]:
    """Effects by block, and of random directions (mean over contexts, a draw each) under RANDOM."""
    lm = study.lm.using(watch=unwatched)
    words = material.tokens(lm.tokenizer)
    contexts = continuing(lm, material.contexts)
    depths = sorted({at_depth(block, len(shifts)) for block in SWEEP})
    middle = at_depth(RANDOM_AT, len(shifts))
    draws = random_shifts(shifts[middle])
    progress = study.watch("steering", len(depths) + len(draws))

    def effect(block: int, shift: Float[Tensor, " d"]) -> Effects:
        moved = steered(lm, contexts, block, shift, words)
        progress(1)
        return moved

    effects: dict[int | str, Effects] = {block: effect(block, shifts[block]) for block in depths}
    random = [effect(middle, draw).mean(1) for draw in draws]
    return effects | {RANDOM: torch.stack(random, 1)}


def random_shifts(shift: Float[Tensor, " d"]) -> Float[Tensor, "draws d"]:
    """Random directions with the norm of a shift, and a sign that knows nothing of it."""
    zero = torch.zeros_like(shift)[None]
    drawn = [RandomDirection(seed).fit(shift[None], zero).vector_ for seed in range(RANDOM_DRAWS)]
    signs = torch.tensor([1.0, -1.0]).repeat(RANDOM_DRAWS)[:RANDOM_DRAWS]
    return torch.stack(drawn) * signs[:, None]


def steered(
    lm: LM,
    contexts: TokenBatch,
    block: int,
    shift: Float[Tensor, " d"],
    words: Mapping[str, Sequence[int]],
) -> Effects:
    """Change of the tone of the next token at every strength, relative to no shift, in logits.

    The tone is the mean log-probability of the positive words minus that of the negative ones.
    """
    logits = lm.logits(contexts, add(lm.resid_post[block], shift, STRENGTHS))
    logp = logits.double().log_softmax(-1)
    positive, negative = (logp[..., list(words[side])].mean(-1) for side in SIDES)
    tones = positive - negative
    return tones - tones[STRENGTHS.index(0.0)]


# --- the figure --------------------------------------------------------------------------------


def _lines(effects: Mapping[int | str, Effects], places: Mapping[int, int]) -> list[Line]:
    """The control first and in grey; then a line a block."""
    named = [(RANDOM, effects[RANDOM])]
    named += [(f"block {b}", effects[b]) for b in sorted(set(places.values()))]
    return [
        Line(label, values.mean(1), values.amin(1), values.amax(1), theirs=label == RANDOM)
        for label, values in named
    ]


def _moves(effects: Effects) -> Float[Tensor, "2 contexts"]:
    """Effects of α = ±1, in the direction of α."""
    up, down = (effects[STRENGTHS.index(alpha)] for alpha in (1.0, -1.0))
    return torch.stack([up, -down])
