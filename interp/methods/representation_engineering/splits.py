"""The shipped pairs split into fit, select and report by whole topics, once for every seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from interp.data.prompts import SIDES, SPLITS, PromptSet, load_class, load_pairs
from interp.methods.refusal.pipeline import Prompts
from interp.recipes import LeastDisturbanceEdit
from interp.study import Study

SET = "capability"
BROAD = "broad"
"""Pairs on other topics and in four styles; they join fit and select of every seed."""
Classes = tuple[PromptSet, PromptSet]


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits(Prompts):
    """Three disjoint splits, a pool of answerable prompts, and the broad pairs that join fit."""

    broad: Classes
    pool: PromptSet


def splits(study: Study, seed: int) -> Splits:
    """The shipped split for seed 0; others shuffle the topics, and give as many to each split."""
    pairs = load_pairs(SET)
    topics = {name: set(pairs.splits[name]) for name in SPLITS}
    if seed:
        shuffled = sorted(set.union(*topics.values()))
        random.Random(seed).shuffle(shuffled)
        for name in SPLITS:
            count = len(topics[name])
            topics[name], shuffled = set(shuffled[:count]), shuffled[count:]
    parts: dict[str, Classes] = {}
    for name in SPLITS:
        chosen = [p for p in pairs.pairs if p["topic"] in topics[name]][: study.limit]
        source = f"{SET}, seed {seed}: {name}"
        refuse, comply = (
            PromptSet(tuple(p[side] for p in chosen), f"{source} ({side})") for side in SIDES
        )
        parts[name] = (refuse, comply)
    broad, more = (_broad(split, study.limit) for split in ("fit", "select"))
    refuse, comply = (a.joined(b) for a, b in zip(parts["select"], more, strict=True))
    parts["select"] = (refuse, comply)
    # Without any prompt of the pairs, so that one pool serves every seed.
    pool = load_class("answerable", "comply", limit=study.limit)
    pool = pool.without(pairs.side("comply", "all"), more[1])
    pool = pool.spread(LeastDisturbanceEdit().most_pool)
    return Splits(**parts, broad=broad, pool=pool)


def _broad(split: str, limit: int | None) -> Classes:
    refuse, comply = (load_class(BROAD, side, split=split, limit=limit) for side in SIDES)
    return refuse, comply
