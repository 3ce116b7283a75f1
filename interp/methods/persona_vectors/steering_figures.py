"""Figures of steering: trait score by block and strength, controls, reductions, cosines between traits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from interp.backends.steps import Sampling
from interp.claims import Claim
from interp.edits import applied
from interp.errors import NotExpressible
from interp.methods.persona_vectors.activations import conversations
from interp.methods.persona_vectors.edits import steering
from interp.methods.persona_vectors.paper import KEY
from interp.methods.persona_vectors.recipe import SteeringRecipe
from interp.methods.persona_vectors.scoring import Answers
from interp.methods.persona_vectors.studied import (
    Studied,
    about_traits,
    damage,
    steerable,
    studied,
)
from interp.methods.persona_vectors.sweeps import (
    Setting,
    neutral_nll,
    of_equal_damage,
    random_vectors,
    shuffled_vectors,
)
from interp.methods.persona_vectors.vectors import REDUCTIONS, cosines
from interp.records import FigureRecord
from interp.series import (
    Axis,
    BarGroup,
    Bars,
    HeatMap,
    Line,
    Lines,
    MapPanel,
    Mark,
    Names,
    Panel,
    Places,
    Series,
    SmallMultiples,
)
from interp.statistics.persona_vectors import (
    EQUAL_DAMAGE,
    EQUAL_NORM,
    PERSONA,
    SHUFFLED,
    UNSTEERED,
)
from interp.study import Study

SCORE = Axis("trait score", "0–100", limits=(0, 100))
SHARES = (0.5, 1.0, 1.5)
"""Multiples of the chosen setting's norm at which reductions are compared."""
COSINE_DEPTH = 0.65
"""Where vectors of traits are compared, as a share of the stack."""
GREEDY_TOKENS = 24
"""Tokens over which the text of hook and weight diff is compared."""

SWEEP = (
    Claim("in every trait some block and strength raise the score by at least 20 points",
          "at least", "", 20.0, statistic="layer_sweep/least_gain"),
    Claim("in at least two traits of three the best block is neither the first nor the last that is steered",
          "at least", "", 2 / 3, statistic="layer_sweep/inner_peaks"),
)  # fmt: skip
CONTROLS = (
    Claim("in at least three traits steering scores above every control, on questions that chose nothing",
          "at least", "", 3, statistic="steering_controls/traits_above_controls"),
    Claim("the weight diff writes the same greedy text as the hook",
          "at least", "/same_text", 1.0),
)  # fmt: skip
POSITIONS = (
    Claim("at equal norm response_avg scores at least as much as prompt_avg, in the mean",
          "at least", "", 0.0, statistic="positions/response_beyond_prompt_avg"),
    Claim("and as prompt_last",
          "at least", "", 0.0, statistic="positions/response_beyond_prompt_last"),
)  # fmt: skip
COSINES = (
    Claim("two halves of a trait's responses give vectors with a cosine of at least .7",
          "at least", "", 0.7, statistic="persona_cosines/least_split_half"),
    Claim("which is more than that of any two traits",
          "at least", "", 0.0, statistic="persona_cosines/split_half_beyond_others"),
)  # fmt: skip


def _record(
    name: str,
    title: str,
    series: Series,
    study: Study,
    found: Sequence[Studied],
    **more: Any,
) -> FigureRecord:
    """The record of a figure of these traits. more: further fields."""
    first = found[0]
    prompts = {each.trait.name: each.trait.sha256 for each in found}
    n = {
        "traits": len(found),
        "pairs kept, least": min(len(each.pairs[0]) for each in found),
        "questions": len(first.halves[0]),
    }
    seeds = (first.recipe.extraction.seed, first.recipe.evaluation.seed)
    about = {"n": n, "seeds": seeds} | more
    return FigureRecord(f"{KEY}/{name}", title, series, study.provenance(prompts), **about)


# --- trait score by block and strength -----------------------------------------------------------


def layer_sweep(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Trait score by steered block, one line a strength (Figures 3 and 13)."""
    found, failed = studied(study, recipe)
    panels, beside = [], about_traits(found, failed)
    for each in found:
        base, swept = each.sweep()
        panels.append(Panel(each.trait.name, _by_block(each, base, swept)))
        beside["traits"][each.trait.name] |= {
            "nll_unsteered": base.nll,
            "nll_rise": [damage(base, answers) for answers in swept],
            "examples": [base.responses[0], *(answers.responses[0] for answers in swept)],
        }
    series = SmallMultiples(panels, share=("x", "y"), beside=beside)
    return _record(
        "layer_sweep", "Trait score by steered block", series, study, found,
        claims=SWEEP,
        intervals="95 % t over answers",
        caption=(
            "α v added after one block at all positions; dashed: unsteered. Half of the evaluation "
            "questions, which choose block and α for the other cards."
        ),
    )  # fmt: skip


def _by_block(each: Studied, base: Answers, swept: Sequence[Answers]) -> Lines:
    strengths = each.recipe.strengths
    lines = []
    for k, strength in enumerate(strengths):
        own = swept[k :: len(strengths)]
        ends = [answers.interval or (None, None) for answers in own]
        low, high = zip(*ends, strict=True)
        scores = [answers.score for answers in own]
        lines.append(Line(f"α = {strength:g}", scores, low, high))
    blocks = [site.block for site in each.sites]
    marks = [] if base.score is None else [Mark("y", base.score, "unsteered")]
    return Lines(Places("block", values=blocks), SCORE, lines, marks)


# --- controls --------------------------------------------------------------------------------------


def steering_controls(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Trait scores of the chosen settings beside random and shuffled vectors, on questions of their own."""
    found, failed = steerable(study, recipe)
    rows: dict[str, list[tuple[float, float, float] | None]] = {}
    beside = about_traits(found, failed) | {"same_text": []}
    for each in found:
        measured = each.study.resumed(
            "persona_controls", partial(_controls, each), trait=each.trait.sha256, recipe=recipe
        )
        for label, answers in measured["answers"].items():
            own = [Answers.from_json(a) for a in answers]
            rows.setdefault(label, []).append(_summary(own))
        beside["same_text"].append(measured["same_text"])
        beside["traits"][each.trait.name] |= measured["about"]
    groups = []
    for label, values in rows.items():
        mean, low, high = zip(*(value or (None, None, None) for value in values), strict=True)
        groups.append(BarGroup(label, mean, low, high))
    names = Names("trait", [each.trait.name for each in found])
    return _record(
        "steering_controls", "Steering beside its controls", Bars(names, SCORE, groups, beside=beside),
        study, found,
        claims=CONTROLS,
        intervals=f"95 % t over answers; of {recipe.controls} random and {recipe.shuffles} shuffled vectors "
        "the least and the greatest mean",
        caption=(
            "Questions that chose neither block nor strength. Equal damage: random directions scaled until "
            "neutral text is as unlikely as under the persona vector."
        ),
    )  # fmt: skip


def _controls(each: Studied) -> dict[str, Any]:
    """Answers under the chosen setting and under its controls, in JSON values."""
    chosen, recipe, lm = each.chosen(), each.recipe, each.lm
    nll = neutral_nll(lm, chosen)
    random = [
        replace(chosen, vector=vector, vector_name=f"random {i}")
        for i, vector in enumerate(random_vectors(chosen.vector, recipe.controls))
    ]
    damaging = [of_equal_damage(lm, setting, nll) for setting in random]
    shuffled = [
        replace(chosen, vector=vector, vector_name=f"shuffled {i}")
        for i, vector in enumerate(shuffled_vectors(each.differences(chosen.site), recipe.shuffles))
    ]
    groups = {PERSONA: [chosen], EQUAL_NORM: random, EQUAL_DAMAGE: damaging, SHUFFLED: shuffled}
    settings = [setting for group in groups.values() for setting in group]
    base, *found = each.answered("persona_controlled", settings, each.halves[1])
    measured, left = {UNSTEERED: [base.as_json()]}, iter(found)
    for label, group in groups.items():
        measured[label] = [next(left).as_json() for _ in group]
    about = {
        "block": chosen.site.block,
        "coefficient": chosen.coefficient,
        "share_of_stream": float(chosen.coefficient * chosen.vector.norm() / _stream(each, chosen)),
        "neutral_nll": nll,
        "neutral_nll_unsteered": neutral_nll(lm, None),
    }
    return {"answers": measured, "same_text": same_text(each, chosen), "about": about}


def _stream(each: Studied, setting: Setting) -> torch.Tensor:
    """Norm of the mean activation of a response without the trait, mean over responses."""
    _, rows = each.pairs
    found = each.lm.activations(
        conversations(each.lm, rows), setting.site, at="response", reduce="mean"
    )
    return found[setting.site].float().norm(dim=-1).mean()


def same_text(each: Studied, setting: Setting) -> float | None:
    """Share of questions to which hook and weight diff write the same greedy text; None without a diff."""
    lm, questions = each.lm, list(each.halves[1])
    edit = steering(each.persona, setting.site, setting.coefficient)
    try:
        delta = lm.to_delta(edit)
    except NotExpressible:
        return None
    greedy = {"tokens": GREEDY_TOKENS, "sampling": Sampling(temperature=0.0)}
    hooked = lm.generate(questions, edit, **greedy).texts
    with applied(lm.hf, lm.anatomy, delta):
        written = lm.generate(questions, **greedy).texts
    return sum(a == b for a, b in zip(hooked, written, strict=True)) / len(questions)


def _summary(group: Sequence[Answers]) -> tuple[float, float, float] | None:
    """Mean with its interval; of several vectors the mean of their means, with the least and greatest."""
    means = [answers.score for answers in group if answers.score is not None]
    if not means:
        return None
    mean = sum(means) / len(means)
    if len(group) > 1:
        return mean, min(means), max(means)
    low, high = group[0].interval or (mean, mean)
    return mean, low, high


# --- reductions at equal norm ----------------------------------------------------------------------


def positions(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Trait score of the three reductions at equal steering norm (Figure 11)."""
    found, failed = steerable(study, recipe)
    panels = []
    for each in found:
        chosen = each.chosen()
        norm = float(chosen.coefficient * chosen.vector.norm())
        settings = []
        for name in REDUCTIONS:
            vector = each.persona.using(name).at(chosen.site)
            unit = norm / float(vector.norm())
            settings += [
                Setting(chosen.site, vector, float(f"{s * unit:.4g}"), name) for s in SHARES
            ]
        base, *swept = each.answered("persona_positions", settings, each.halves[1])
        lines = []
        for i, name in enumerate(REDUCTIONS):
            own = swept[i * len(SHARES) : (i + 1) * len(SHARES)]
            low, high = zip(*(a.interval or (None, None) for a in own), strict=True)
            lines.append(Line(name, [a.score for a in own], low, high))
        marks = [] if base.score is None else [Mark("y", base.score, UNSTEERED)]
        x = Places("norm of what is added", values=[s * norm for s in SHARES])
        panels.append(Panel(each.trait.name, Lines(x, SCORE, lines, marks)))
    series = SmallMultiples(panels, share=("y",), beside=about_traits(found, failed))
    return _record(
        "positions", "Reductions compared at equal norm", series, study, found,
        claims=POSITIONS,
        intervals="95 % t over answers",
        caption="Vectors of one block, scaled to one norm; questions that chose neither block nor strength.",
    )  # fmt: skip


# --- cosines ---------------------------------------------------------------------------------------


def persona_cosines(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Cosines between the vectors of traits at one block, and of two halves of each (Figure 20)."""
    found, failed = studied(study, recipe)
    lm = found[0].lm
    site = lm.resid_post[round(COSINE_DEPTH * lm.n_blocks) - 1]
    between = cosines([each.persona for each in found], site)
    halves = []
    for each in found:
        rows = each.differences(site)
        one, other = rows[::2].mean(0), rows[1::2].mean(0)
        halves.append(float(torch.cosine_similarity(one, other, dim=0)))
    labels = [each.trait.name for each in found]
    values = [[round(float(v), 4) for v in row] for row in between]
    names = Names("trait", labels)
    panel = MapPanel("cosine", values, map="diverging", limits=(-1, 1))
    series = HeatMap(
        names, names, [panel],
        beside=about_traits(found, failed) | {"split_half": halves, "block": site.block},
    )  # fmt: skip
    return _record(
        "cosines", "Cosines between traits", series, study, found,
        claims=COSINES,
        caption=f"At the output of block {site.block}. Between two random directions: about "
        f"{lm.d_model ** -0.5:.2f}.",
    )  # fmt: skip
