"""The shipped pairs cut into fit, select and report by whole topics, once for every seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from interp.data.prompts import PromptSet, Side, load_class, load_pairs
from interp.recipes import LeastDisturbanceEdit
from interp.study import Study

SET = "capability"
BROAD = "broad"
"""Pairs on other topics and in four styles; whatever is dealt, they join fit and select."""
NAMES = ("fit", "select", "report")
SIDES: tuple[Side, Side] = ("refuse", "comply")


@dataclass(frozen=True, slots=True)
class Splits:
    """Both classes of three disjoint splits, ``(refuse, comply)`` each; what joins fit; the pool."""

    fit: tuple[PromptSet, PromptSet]
    select: tuple[PromptSet, PromptSet]
    report: tuple[PromptSet, PromptSet]
    broad: tuple[PromptSet, PromptSet]
    pool: PromptSet

    @property
    def hashes(self) -> dict[str, str]:
        """Name of a class of a split → hash of its prompts."""
        found = {"pool": self.pool.sha256}
        for name in (*NAMES, "broad"):
            for side, part in zip(SIDES, getattr(self, name), strict=True):
                found[f"{name}:{side}"] = part.sha256
        return found


def splits(study: Study, seed: int) -> Splits:
    """Seed 0 gives the shipped split; others deal all topics anew, as many to each split."""
    pairs = load_pairs(SET)
    topics = {name: set(pairs.splits[name]) for name in NAMES}
    if seed:
        dealt = sorted(set.union(*topics.values()))
        random.Random(seed).shuffle(dealt)
        for name in NAMES:
            count = len(topics[name])
            topics[name], dealt = set(dealt[:count]), dealt[count:]
    parts = {}
    for name in NAMES:
        chosen = [p for p in pairs.pairs if p["topic"] in topics[name]][: study.limit]
        where = f"{SET}, seed {seed}: {name}"
        refuse, comply = (
            PromptSet(tuple(p[side] for p in chosen), f"{where} ({side})") for side in SIDES
        )
        parts[name] = (refuse, comply)
    broad, more = (_broad(split, study.limit) for split in ("fit", "select"))
    select = (parts["select"][0].joined(more[0]), parts["select"][1].joined(more[1]))
    # Without any prompt of the pairs, so that one pool serves every seed.
    pool = load_class("answerable", "comply", limit=study.limit)
    held = (pairs.side("comply", "all"), more[1])
    pool = pool.without(*held).spread(LeastDisturbanceEdit().most_pool)
    return Splits(parts["fit"], select, parts["report"], broad, pool)


def _broad(split: str, limit: int | None) -> tuple[PromptSet, PromptSet]:
    refuse, comply = (load_class(BROAD, side, split=split, limit=limit) for side in SIDES)
    return refuse, comply
