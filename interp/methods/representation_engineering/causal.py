"""Bypass, induce and KL of every direction by block and position, and the direction they choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from interp.attribution.openers import Openers
from interp.claims import Claim
from interp.data.prompts import PromptSet, load_class
from interp.evaluate.causal import (
    DEPTH_LIMIT,
    INDUCE_AT_LEAST,
    KL_LIMIT,
    Candidate,
    CausalScore,
    Trial,
    broken,
    candidates,
    nearest,
)
from interp.evaluate.geometry import auroc
from interp.evaluate.refusal import generate_and_judge
from interp.maths import unit
from interp.methods.refusal.attributing import OPENERS, fit_openers
from interp.methods.representation_engineering.paper import KEY
from interp.records import FigureRecord
from interp.series import HeatMap, MapPanel, Names, Reference
from interp.sites import Site
from interp.study import Study
from interp.types import Direction

PROMPTS = 24
"""Of each class that directions are tried on; minutes grow with it."""
DENSE = 12
"""Blocks up to which every one is tried; of a longer stack, every second."""
RESPONSE = 16
FEWEST = 4
"""Refused prompts without which the filter would leave nothing to fit on; then all are kept."""
RANDOM = 3
MOST_KL = 1.0
"""Nats, where the colours end: some directions break the model, at tens of nats."""
EARLY = 3
"""Blocks before this one are left out of the spreads: there AUROC still rises."""

CLAIMS = (
    Claim(
        "ablating the chosen direction lowers the refusal metric of refuse prompts",
        "falls",
        "/comparisons/metric_unedited_and_ablated",
        source="Arditi et al. 2406.11717, section 3",
    ),
    Claim(
        "some block and position keeps the limits on induce, KL and depth",
        "at least",
        "/comparisons/within_limits",
        1,
        source="Arditi et al. 2406.11717, direction selection",
    ),
    Claim(
        "the input of the next block, their layer, lies in the first 0.8 of the stack",
        "at most",
        "/comparisons/depth",
        DEPTH_LIMIT,
        source="Arditi et al. 2406.11717, direction selection",
    ),
    Claim(
        "no random direction changes the metric by more than a quarter as much",
        "at most",
        "/comparisons/random_share",
        0.25,
    ),
    Claim(
        "at the chosen position AUROC hardly tells the blocks from 3 on apart",
        "at most",
        "/comparisons/auroc_spread",
        0.1,
    ),
    Claim(
        "while bypass over them varies by at least half of what the chosen direction does",
        "at least",
        "/comparisons/bypass_spread_share",
        0.5,
    ),
)


@dataclass(frozen=True, slots=True)
class Kept:
    """Prompts of one split that the unedited model treats as their class says; counts: how many."""

    refuse: PromptSet
    comply: PromptSet
    counts: Mapping[str, int]

    @property
    def hashes(self) -> list[str]:
        return [self.refuse.sha256, self.comply.sha256]


def causal(study: Study) -> FigureRecord:
    """Three panels over block × position; fitted on the fit split, tried on the select split."""
    lm = study.lm
    fitted, held = (_kept(study, split) for split in ("fit", "select"))
    openers = _openers(study, fitted)
    blocks = range(0, lm.n_blocks, 1 if lm.n_blocks <= DENSE else 2)
    found = candidates(lm, fitted.refuse, fitted.comply, blocks=blocks)
    tried = [s.spread(PROMPTS) for s in (held.refuse, held.comply)]
    trial = Trial.prepare(lm, *tried, openers)
    about = {
        "fit": fitted.hashes,
        "tried": [s.sha256 for s in tried],
        "openers": openers.ids,
    }
    scores = _scores(study, trial, found, about)
    chosen = nearest(scores, lm.n_blocks)
    controls = _controls(study, trial, found[scores.index(chosen)], about)
    aurocs = _aurocs(trial, found)
    about_them = {
        "filter": {"fit": fitted.counts, "select": held.counts},
        "openers": list(openers.positive_words),
        "comparisons": _comparisons(scores, chosen, controls, trial, aurocs),
    }
    series = _series(scores, trial, aurocs, _words(trial, found), about_them)
    hashes = {"fit refuse": fitted.refuse, "fit comply": fitted.comply}
    hashes |= {"select refuse": tried[0], "select comply": tried[1]}
    prompts = {name: s.sha256 for name, s in hashes.items()}
    return FigureRecord(
        key=f"{KEY}/bypass_induce_kl",
        title="What a direction does when it is ablated, and when it is added",
        series=series,
        provenance=study.provenance(prompts),
        n={"refuse": len(tried[0]), "comply": len(tried[1])},
        claims=CLAIMS,
        caption=_caption(fitted, held, series, lm.n_blocks),
    )


# --- prompts -----------------------------------------------------------------------------------


def _kept(study: Study, split: str) -> Kept:
    """The behaviour filter: refuse prompts that are refused, comply prompts that are answered."""
    sides = [
        load_class("capability", s, split=split, limit=study.limit) for s in ("refuse", "comply")
    ]
    flags = [_refused(study, s) for s in sides]
    wanted = [flags[0], [not flag for flag in flags[1]]]
    counts = {
        "refuse asked": len(sides[0]),
        "refused": sum(wanted[0]),
        "comply asked": len(sides[1]),
        "answered": sum(wanted[1]),
    }
    kept = [behaving(s, keep) for s, keep in zip(sides, wanted, strict=True)]
    return Kept(kept[0], kept[1], counts | {"kept": len(kept[0]), "comply kept": len(kept[1])})


def _refused(study: Study, prompts: PromptSet) -> list[bool]:
    def ask() -> list[bool]:
        return list(generate_and_judge(study.lm, prompts, tokens=RESPONSE).refused)

    return study.resumed("causal-behaviour", ask, prompts=prompts.sha256, tokens=RESPONSE)


def behaving(prompts: PromptSet, keep: Sequence[bool]) -> PromptSet:
    """The prompts to keep; all of them where fewer than ``FEWEST`` would be left."""
    if sum(keep) < FEWEST:
        return prompts
    chosen = tuple(p for p, kept in zip(prompts.prompts, keep, strict=True) if kept)
    return PromptSet(chosen, f"{prompts.source}, filtered by behaviour")


def _openers(study: Study, fitted: Kept) -> Openers:
    def find() -> dict[str, Any]:
        return asdict(fit_openers(study.lm, fitted.refuse, fitted.comply))

    values = study.resumed("causal-openers", find, prompts=fitted.hashes, k=OPENERS)
    return Openers(**{name: tuple(value) for name, value in values.items()})


# --- scores ------------------------------------------------------------------------------------


def _scores(
    study: Study, trial: Trial, found: Sequence[Candidate], about: Mapping[str, Any], **more: Any
) -> list[CausalScore]:
    """Every candidate's score; each is kept on its own, so that a kill loses one at most."""
    progress = study.watch("bypass, induce, KL", len(found))
    scores = []
    for number, candidate in enumerate(found):
        place = {"block": candidate.block, "position": candidate.position}
        if more:
            place |= {**more, "number": number}
        values = study.resumed(
            "causal-score", lambda c=candidate: asdict(trial.score(c)), **about, **place
        )
        scores.append(CausalScore(**values))
        progress(1)
    return scores


def _controls(
    study: Study, trial: Trial, chosen: Candidate, about: Mapping[str, Any]
) -> list[CausalScore]:
    """Random directions in the chosen one's place, of its norm."""
    generator, block = torch.Generator().manual_seed(0), chosen.block
    drawn = [unit(torch.randn(chosen.raw.shape, generator=generator)) for _ in range(RANDOM)]
    norm = chosen.direction.norm
    found = [Candidate(block, chosen.position, Direction(v, block, "random", norm)) for v in drawn]
    return _scores(study, trial, found, about, control="random")


def _aurocs(trial: Trial, found: Sequence[Candidate]) -> dict[tuple[int, int], float]:
    """Held-out AUROC of each direction, read where it was fitted."""
    sites = [Site.resid_post(b) for b in dict.fromkeys(c.block for c in found)]
    places = tuple(sorted({c.position for c in found}))
    acts = [trial.lm.activations(b, sites, at=places) for b in (trial.refuse, trial.comply)]
    read = {}
    for c in found:
        u, i = c.direction.vector.double(), places.index(c.position)
        pos, neg = (a[Site.resid_post(c.block)][:, i].double() @ u for a in acts)
        read[c.block, c.position] = auroc(pos, neg).item()
    return read


def _comparisons(
    scores: Sequence[CausalScore],
    chosen: CausalScore,
    controls: Sequence[CausalScore],
    trial: Trial,
    aurocs: Mapping[tuple[int, int], float],
) -> dict[str, Any]:
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


def _words(trial: Trial, found: Sequence[Candidate]) -> dict[int, str]:
    """Position → the template's token there."""
    ids = trial.refuse.ids[0]
    places = sorted({c.position for c in found})
    return {p: trial.lm.tokenizer.decode([int(ids[p])]).replace("\n", "\\n") for p in places}


def _series(
    scores: Sequence[CausalScore],
    trial: Trial,
    aurocs: Mapping[tuple[int, int], float],
    words: Mapping[int, str],
    beside: Mapping[str, Any],
) -> HeatMap:
    by_place = {(s.block, s.position): s for s in scores}
    blocks = sorted({s.block for s in scores})

    def rows(value: Any) -> list[list[Any]]:
        return [[value((b, p)) if (b, p) in by_place else None for b in blocks] for p in words]

    unedited, given = trial.unedited, "direction ablated"
    span = _span(*unedited)
    panels = [
        MapPanel(
            "bypass",
            rows(lambda at: by_place[at].bypass),
            "log-odds",
            f"refuse prompts, {given}",
            limits=span,
            reference=Reference(unedited[0], "unedited"),
        ),
        MapPanel(
            "induce",
            rows(lambda at: by_place[at].induce),
            "log-odds",
            "comply prompts, difference added",
            limits=span,
            reference=Reference(unedited[1], "unedited"),
        ),
        MapPanel(
            "KL",
            rows(lambda at: by_place[at].kl),
            "nats",
            f"comply prompts, {given}",
            limits=(0.0, MOST_KL),
            reference=Reference(KL_LIMIT, "limit"),
        ),
    ]
    return HeatMap(
        columns=Names("block whose output is read", [str(b) for b in blocks]),
        rows=Names("position", [f"{p} {word}" for p, word in words.items()]),
        panels=panels,
        beside={"auroc": rows(aurocs.get), **beside},
    )


def _span(refuse: float, comply: float) -> list[float]:
    """Ends of the colours: one class gap beyond what the classes have unedited, the same for both."""
    gap = max(abs(refuse - comply), 1.0)
    return [min(refuse, comply) - gap, max(refuse, comply) + gap]


def _caption(fitted: Kept, held: Kept, series: HeatMap, n_blocks: int) -> str:
    part, found = fitted.counts, series.beside["comparisons"]
    openers = ", ".join(series.beside["openers"])
    place, tried = found["chosen"], len(series.columns.names)
    chosen = "Chosen" if found["within_limits"] else "None keeps all limits; the nearest"
    return (
        f"Fitted on {part['kept']} of {part['refuse asked']} refuse prompts of the fit split (the model "
        f"refuses {part['refused']}), tried on at most {PROMPTS} a class of the select split (it refuses "
        f"{held.counts['refused']} of {held.counts['refuse asked']}). They are benign requests that a text "
        f"model cannot fulfil, none for harm. Log-odds of {openers} as first token. "
        f"{tried} of {n_blocks} blocks. {chosen}: block {place['block']} (layer {place['block'] + 1} "
        f"in the paper), position {place['position']}. Limits: induce ≥ {INDUCE_AT_LEAST:g}, "
        f"KL ≤ {KL_LIMIT:g}, layer < {DEPTH_LIMIT:g} of the stack. Values beyond a bar have its end's "
        "colour."
    )
