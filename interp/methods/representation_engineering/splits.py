"""The shipped pairs cut into fit, select and report by whole topics, once for every seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from interp.data.prompts import PromptSet, load_class, load_pairs
from interp.study import Study

SET = "capability"
NAMES = ("fit", "select", "report")


@dataclass(frozen=True, slots=True)
class Splits:
    """Both classes of three disjoint splits, ``(refuse, comply)`` each, and the pool."""

    fit: tuple[PromptSet, PromptSet]
    select: tuple[PromptSet, PromptSet]
    report: tuple[PromptSet, PromptSet]
    pool: PromptSet

    @property
    def hashes(self) -> dict[str, str]:
        """Name of a class of a split → hash of its prompts."""
        found = {"pool": self.pool.sha256}
        for name in NAMES:
            for side, part in zip(("refuse", "comply"), getattr(self, name), strict=True):
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
    parts = []
    for name in NAMES:
        chosen = [p for p in pairs.pairs if p["topic"] in topics[name]][: study.limit]
        where = f"{SET}, seed {seed}: {name}"
        parts.append(
            tuple(PromptSet(tuple(p[side] for p in chosen), f"{where} ({side})")
                  for side in ("refuse", "comply"))
        )  # fmt: skip
    # Without any prompt of the pairs, so that one pool serves every seed.
    pool = load_class("answerable", "comply", limit=study.limit)
    return Splits(*parts, pool=pool.without(pairs.side("comply", "all")))
