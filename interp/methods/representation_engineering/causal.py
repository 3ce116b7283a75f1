"""Bypass, induce and KL of every direction by block and position, and the direction they choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from interp.claims import Claim
from interp.data.prompts import SIDES, PromptSet, load_class
from interp.evaluate.causal import (
    DEPTH_LIMIT,
    INDUCE_AT_LEAST,
    KL_LIMIT,
    CausalScore,
    PlacedDirection,
    Trial,
    broken,
    nearest,
    placed_directions,
)
from interp.evaluate.geometry import auroc
from interp.evaluate.scores import generate_and_judge
from interp.lm import LM
from interp.maths import unit
from interp.methods.refusal.attributing import fit_openers
from interp.methods.representation_engineering.paper import KEY
from interp.records import FigureRecord
from interp.series import HeatMap, MapPanel, Names, Reference
from interp.sites import Site
from interp.study import Study
from interp.types import Direction
from interp.watching import counted

PROMPTS = 24
"""Prompts of each class on which directions are tried."""
DENSE = 12
"""In stacks of more blocks every second block is tried."""
RESPONSE = 16
FEWEST = 4
"""If the filter left fewer prompts, all are kept."""
RANDOM = 3
MOST_KL = 1.0
"""End of the colours of KL in nats: some directions break the model, at tens of nats."""
EARLY = 3
"""Blocks before this one are left out of the ranges: there AUROC still rises."""

Kept = tuple[PromptSet, PromptSet, Mapping[str, int]]
"""Refuse prompts that the unedited model refuses, comply prompts that it answers, and counts of both."""
Place = tuple[int, int]
"""Block and position."""

CLAIMS = (
    Claim("ablating the chosen direction lowers the refusal metric of refuse prompts",
          "falls", "/comparisons/metric_unedited_and_ablated",
          source="Arditi et al. 2406.11717, section 3"),
    Claim("some block and position keeps the limits on induce, KL and depth",
          "at least", "/comparisons/within_limits", 1,
          source="Arditi et al. 2406.11717, direction selection"),
    Claim("the input of the next block, their layer, lies in the first 0.8 of the stack",
          "at most", "/comparisons/depth", DEPTH_LIMIT,
          source="Arditi et al. 2406.11717, direction selection"),
    Claim("no random direction changes the metric by more than a quarter as much",
          "at most", "/comparisons/random_share", 0.25),
    Claim("at the chosen position AUROC hardly tells the blocks from 3 on apart",
          "at most", "/comparisons/auroc_spread", 0.1),
    Claim("while bypass over them varies by at least half of what the chosen direction does",
          "at least", "/comparisons/bypass_spread_share", 0.5),
)  # fmt: skip


def causal(study: Study) -> FigureRecord:
    """Three panels over block × position; fitted on the fit split, tried on the select split."""
    lm = study.lm
    (refuse, comply, fitted), (*held, held_counts) = (
        filtered(study, split) for split in ("fit", "select")
    )
    openers = fit_openers(lm, refuse, comply)
    blocks = range(0, lm.n_blocks, 1 if lm.n_blocks <= DENSE else 2)
    found = placed_directions(lm, refuse, comply, blocks=blocks)
    tried = [side.spread(PROMPTS) for side in held]
    trial = Trial.prepare(lm, *tried, openers)
    about = {"fit": [refuse, comply], "tried": tried, "openers": openers.ids}
    scores = _scores(study, trial, found, about)
    chosen = nearest(scores, lm.n_blocks)
    controls = _random_directions(found[scores.index(chosen)])
    random = _scores(study, trial, controls, about, control="random")
    aurocs = _aurocs(trial, found)
    beside = {
        "filter": {"fit": fitted, "select": held_counts},
        "openers": list(openers.positive_words),
        "comparisons": _comparisons(scores, chosen, random, trial, aurocs),
    }
    prompts = {"fit refuse": refuse, "fit comply": comply}
    prompts |= {f"select {side}": part for side, part in zip(SIDES, tried, strict=True)}
    return FigureRecord(
        key=f"{KEY}/bypass_induce_kl",
        title="What a direction does when it is ablated, and when it is added",
        series=_series(scores, trial, aurocs, beside),
        provenance=study.provenance({name: part.sha256 for name, part in prompts.items()}),
        n={side: len(part) for side, part in zip(SIDES, tried, strict=True)},
        claims=CLAIMS,
        caption=_caption(beside, len(blocks), lm.n_blocks),
    )


# --- prompts -----------------------------------------------------------------------------------


def filtered(study: Study, split: str) -> Kept:
    """The behaviour filter: refuse prompts that are refused, comply prompts that are answered."""
    sides = [load_class("capability", side, split=split, limit=study.limit) for side in SIDES]
    refused, others = (
        study.resumed(
            "causal-behaviour", partial(_refused, study.lm, side), prompts=side, tokens=RESPONSE
        )
        for side in sides
    )
    answered = [not flag for flag in others]
    refuse, comply = (behaving(s, keep) for s, keep in zip(sides, (refused, answered), strict=True))
    counts = {
        "refuse asked": len(sides[0]),
        "refused": sum(refused),
        "comply asked": len(sides[1]),
        "answered": sum(answered),
        "kept": len(refuse),
        "comply kept": len(comply),
    }
    return refuse, comply, counts


def _refused(lm: LM, prompts: PromptSet) -> list[bool]:
    return list(generate_and_judge(lm, prompts, tokens=RESPONSE).flagged)


def behaving(prompts: PromptSet, keep: Sequence[bool]) -> PromptSet:
    """The prompts to keep; all of them where fewer than ``FEWEST`` would be left."""
    if sum(keep) < FEWEST:
        return prompts
    return replace(prompts.chosen(keep), source=f"{prompts.source}, filtered by behaviour")


# --- scores ------------------------------------------------------------------------------------


def _scores(
    study: Study,
    trial: Trial,
    found: Sequence[PlacedDirection],
    about: Mapping[str, Any],
    **more: Any,
) -> list[CausalScore]:
    """Every direction's score; each is kept on its own, so that a kill loses one at most."""
    scores = []
    for number, each in enumerate(counted(study.watch, "bypass, induce, KL", found)):
        place = {"block": each.block, "position": each.position, "number": number, **more}
        values = study.resumed(
            "causal-score", lambda d=each: asdict(trial.score(d)), **about, **place
        )
        scores.append(CausalScore(**values))
    return scores


def _random_directions(chosen: PlacedDirection) -> list[PlacedDirection]:
    """Random directions of the chosen one's place and norm."""
    generator, norm = torch.Generator().manual_seed(0), chosen.direction.norm
    vectors = [unit(torch.randn(chosen.raw.shape, generator=generator)) for _ in range(RANDOM)]
    drawn = (Direction(vector, chosen.block, "random", norm) for vector in vectors)
    return [replace(chosen, direction=direction) for direction in drawn]


def _aurocs(trial: Trial, found: Sequence[PlacedDirection]) -> dict[Place, float]:
    """Held-out AUROC of each direction, read where it was fitted."""
    sites = [Site.resid_post(block) for block in dict.fromkeys(each.block for each in found)]
    places = tuple(sorted({each.position for each in found}))
    acts = [trial.lm.activations(b, sites, at=places) for b in (trial.positive, trial.negative)]
    values = {}
    for each in found:
        site, i = Site.resid_post(each.block), places.index(each.position)
        pos, neg = (side[site][:, i].double() @ each.direction.vector.double() for side in acts)
        values[each.block, each.position] = auroc(pos, neg).item()
    return values


def _comparisons(
    scores: Sequence[CausalScore],
    chosen: CausalScore,
    controls: Sequence[CausalScore],
    trial: Trial,
    aurocs: Mapping[Place, float],
) -> dict[str, Any]:
    """Values that the claims and the caption are about."""
    n_blocks = trial.lm.n_blocks
    before, comply = trial.unedited
    effect = before - chosen.bypass
    row = [s for s in scores if s.position == chosen.position]
    late = [s for s in row if s.block >= EARLY] or row
    read = [aurocs[s.block, s.position] for s in late]
    bypass = [s.bypass for s in late]
    random = max(abs(before - s.bypass) for s in controls)
    return {
        "chosen": asdict(chosen) | {"auroc": aurocs[chosen.block, chosen.position]},
        "metric_unedited_and_ablated": [before, chosen.bypass],
        "metric_of_comply_unedited": comply,
        "within_limits": sum(not broken(s, n_blocks) for s in scores),
        "tried": len(scores),
        "largest_induce": asdict(max(scores, key=lambda s: s.induce)),
        "depth": (chosen.block + 1) / n_blocks,
        "random": [asdict(s) for s in controls],
        # A direction that bypasses nothing is no better than any other.
        "random_share": random / effect if effect > 0 else 1.0,
        "auroc_spread": max(read) - min(read),
        "bypass_spread_share": (max(bypass) - min(bypass)) / effect if effect > 0 else 0.0,
    }


# --- the picture -------------------------------------------------------------------------------


def _series(
    scores: Sequence[CausalScore],
    trial: Trial,
    aurocs: Mapping[Place, float],
    beside: Mapping[str, Any],
) -> HeatMap:
    """Panels of bypass, induce and KL: positions by blocks."""
    by_place = {(s.block, s.position): s for s in scores}
    blocks, positions = (sorted(set(values)) for values in zip(*by_place, strict=True))
    words = [trial.lm.tokenizer.decode([int(trial.positive.ids[0, p])]) for p in positions]
    labels = [f"{p} {word}".replace("\n", "\\n") for p, word in zip(positions, words, strict=True)]

    def rows(measure: str) -> list[list[float | None]]:
        return [[getattr(by_place.get((b, p)), measure, None) for b in blocks] for p in positions]

    refuse, comply = trial.unedited
    # One class gap beyond what the classes have unedited, the same for both panels.
    gap = max(abs(refuse - comply), 1.0)
    ends = [min(refuse, comply) - gap, max(refuse, comply) + gap]

    def panel(label: str, unit: str, title: str, limits: list[float], mark: Reference) -> MapPanel:
        values = rows(label.lower())
        return MapPanel(label, values, unit, title, limits=limits, reference=mark)

    unedited = [Reference(value, "unedited") for value in trial.unedited]
    ablated, limit = "direction ablated", Reference(KL_LIMIT, "limit")
    panels = [
        panel("bypass", "log-odds", f"refuse prompts, {ablated}", ends, unedited[0]),
        panel("induce", "log-odds", "comply prompts, difference added", ends, unedited[1]),
        panel("KL", "nats", f"comply prompts, {ablated}", [0.0, MOST_KL], limit),
    ]
    return HeatMap(
        columns=Names("block whose output is read", list(map(str, blocks))),
        rows=Names("position", labels),
        panels=panels,
        beside={"auroc": [[aurocs.get((b, p)) for b in blocks] for p in positions], **beside},
    )


def _caption(beside: Mapping[str, Any], tried: int, n_blocks: int) -> str:
    fitted, held = beside["filter"]["fit"], beside["filter"]["select"]
    openers, found = ", ".join(beside["openers"]), beside["comparisons"]
    place = found["chosen"]
    chosen = "Chosen" if found["within_limits"] else "None keeps all limits; the nearest"
    return (
        f"Fitted on {fitted['kept']} of {fitted['refuse asked']} refuse prompts of the fit split (the model "
        f"refuses {fitted['refused']}), tried on at most {PROMPTS} a class of the select split (it refuses "
        f"{held['refused']} of {held['refuse asked']}). They are benign requests that a text model cannot "
        f"fulfil, none for harm. Log-odds of {openers} as first token. {tried} of {n_blocks} blocks. "
        f"{chosen}: block {place['block']} (layer {place['block'] + 1} in the paper), position "
        f"{place['position']}. Limits: induce ≥ {INDUCE_AT_LEAST:g}, KL ≤ {KL_LIMIT:g}, layer < "
        f"{DEPTH_LIMIT:g} of the stack. Values beyond a bar have its end's colour."
    )
