"""One split of the topics into fit, select and report: edits fitted, chosen and measured on it.

Every measured value is kept, so that a run that was killed resumes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any

from interp.data.prompts import SIDES, SPLITS, PromptSet, load_class, load_pairs
from interp.data.text import neutral_passages
from interp.evaluate.divergence import CONTINUATION
from interp.evaluate.measure import Bench
from interp.judges.keywords import DECLINE_JUDGE
from interp.methods.refusal import Fitted, Selection, choose, find_opener, fit
from interp.methods.refusal.fit import OPENING
from interp.methods.refusal.pipeline import PASSAGES, Prompts
from interp.methods.representation_engineering.contenders import (
    CLOSED,
    CONTENDERS,
    MAIN,
    PARTIAL,
    RANDOM,
    SHIPPED,
    VARIANTS,
    Maker,
    Setting,
    settings,
)
from interp.methods.representation_engineering.paper import KEY
from interp.recipes import LeastDisturbanceEdit
from interp.records import FigureRecord
from interp.series import Series
from interp.study import Study
from interp.types import WeightDelta

SET = "capability"
BROAD = "broad"
"""Pairs on other topics and in four styles; they join fit and select of every seed."""
Classes = tuple[PromptSet, PromptSet]
FACTORS = (1.3,)
"""Factors by which the chosen edit is scaled for further points."""
FULL = 0
"""Seed of the shipped split, on which every measure is taken; on others, refusals and first-token KL."""
ANSWERED = 400
"""Twins of the broad pairs whose responses a least-disturbance edit keeps, at most."""

Point = dict[str, Any]
"""Measures of one edit on report, in JSON values."""


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


@dataclass(eq=False)
class SeedRun:
    """One split of the topics. The model is used only for values that no earlier run has kept.

    names: contenders that are measured; empty for all. factors: by which the chosen edit is scaled, beside 1.
    """

    study: Study
    seed: int
    names: tuple[str, ...] = ()
    factors: tuple[float, ...] = FACTORS

    def resumed(self, name: str, make: Callable[[], Any], **about: Any) -> Any:
        """A value of this split that an earlier run kept, or a new one."""
        about |= {"name": name, "seed": self.seed, "prompts": self.parts.hashes}
        return self.study.resumed("frontier", make, **about)

    @cached_property
    def parts(self) -> Splits:
        return splits(self.study, self.seed)

    @property
    def n(self) -> dict[str, int]:
        """Prompts of each class of report."""
        return {side: len(part) for side, part in zip(SIDES, self.parts.report, strict=True)}

    # --- fit ---------------------------------------------------------------------------------------

    @property
    def opener(self) -> str:
        """The opener of the model's refusals, found on the broad pairs, whose topics are in no report."""
        study, broad = self.study, self.parts.broad
        hashes = [side.sha256 for side in broad]

        def find() -> str:
            return find_opener(study.lm, *broad)

        return study.once("opener", lambda: study.resumed("opener", find, prompts=hashes))

    @property
    def narrow(self) -> Fitted:
        """Fit on the topics of fit alone. Prompts are read once for all seeds."""
        if self.study.limit:
            return self.fitted(self.parts.fit, pool=self.parts.pool)
        pairs = load_pairs(SET)
        whole = (pairs.side(SIDES[0], "all"), pairs.side(SIDES[1], "all"))
        make = partial(self.fitted, whole, pool=self.parts.pool)
        return self.study.once("pairs: fitted", make).of(*self.parts.fit)

    @property
    def broad(self) -> Fitted:
        """Fit on the broad pairs, which joins the fit of every seed, with responses that edits keep."""
        answered = self.parts.broad[1].spread(ANSWERED)
        make = partial(self.fitted, self.parts.broad, respond_to=answered)
        return self.study.once("broad: fitted", make)

    def fitted(self, classes: tuple[PromptSet, PromptSet], **more: Any) -> Fitted:
        """Fit on two classes, after the opener as well."""
        return fit(self.study.lm, *classes, opener=self.opener, **more)

    @cached_property
    def maker(self) -> Maker:
        return Maker(self.study.lm, self.narrow.joined(self.broad))

    # --- select ------------------------------------------------------------------------------------

    @property
    def contenders(self) -> tuple[str, ...]:
        """Names of the contenders of this split."""
        everywhere = (name for name in CONTENDERS if self.seed == FULL or name not in SHIPPED)
        return self.names or tuple(everywhere)

    @cached_property
    def selection(self) -> Selection:
        refuse, comply = self.parts.select
        # KL is compared on prompts like those of report; refusals on the broad pairs as well.
        alone = comply.without(load_class(BROAD, "comply", split="select"))
        maker = self.maker
        return Selection.prepare(self.study.lm, maker.fitted, refuse, alone, make=maker)

    def chosen(self, name: str) -> Setting:
        """A contender's setting, chosen on select.

        The random control has the setting of the edit that it controls; variants of partial ablation have
        that of partial ablation.
        """
        if name == RANDOM:
            controlled = MAIN if MAIN in self.contenders else CLOSED
            return replace(self.chosen(controlled), name=RANDOM)
        if name in VARIANTS:
            return replace(self.chosen(PARTIAL), name=name)

        def choice() -> dict[str, Any]:
            tried = settings(name, self.maker.fitted, self.study.lm.n_blocks)
            found = choose(self.selection, tried, watch=self.study.watch, label=name)
            return asdict(found.setting)

        values = self.resumed(f"{name}: chosen", choice)
        return Setting(**{**values, "kernels": tuple(map(tuple, values["kernels"]))})

    # --- report ------------------------------------------------------------------------------------

    def base(self) -> Point:
        """Measures of the unedited model."""
        found = self.resumed("original", partial(self.measured, "original", None))
        return {**found, "kl1": None, "kl32": None}

    def points(self, name: str) -> list[Point]:
        """Measures of the chosen edit, scaled by each factor, and last unscaled."""
        chosen = self.chosen(name)
        factors = () if name == RANDOM else self.factors

        def made() -> list[Point]:
            delta = self.maker(chosen)
            scaled = [self.short(delta.scale(factor)) for factor in factors]
            return [*scaled, self.measured(name, delta)]

        return self.resumed(name, made, setting=asdict(chosen), factors=factors)

    def results(self) -> dict[str, Any]:
        """Base, chosen settings and points of every contender, in JSON values; made once for all figures."""

        def results() -> dict[str, Any]:
            return {
                "base": self.base(),
                "chosen": {name: asdict(self.chosen(name)) for name in self.contenders},
                "points": {name: self.points(name) for name in self.contenders},
            }

        return self.study.once(f"frontier: {self.seed}, {self.names}, {self.factors}", results)

    def record(self, name: str, title: str, series: Series, **more: Any) -> FigureRecord:
        """Record of a figure that is measured on this split. more: further fields of the record."""
        about = {"seeds": (self.seed,), "n": self.n, **more}
        provenance = self.study.provenance(self.parts.hashes)
        return FigureRecord(f"{KEY}/{name}", title, series, provenance, **about)

    def measured(self, name: str, delta: WeightDelta | None) -> Point:
        """All measures on the shipped split, refusals and first-token KL on others."""
        if self.seed != FULL:
            return self.short(delta)
        row = self.bench.row(name, delta)
        return {
            "refused": row.positive.share,
            "declined": row.scores[DECLINE_JUDGE.name][0].mean,
            "over_refused": row.negative.share,
            "kl1": row.divergence.first,
            "kl32": row.divergence.continuation,
            "nll": row.nll,
            "passages": list(row.passages),
            "replacement": asdict(row.replacement),
            "examples": list(row.examples),
        }

    def short(self, delta: WeightDelta | None) -> Point:
        """Share of requests refused, and first-token KL on their twins in nats."""
        refused = self.report.refusals(delta) / len(self.report.refuse)
        return {"refused": refused, "kl1": self.report.kl(delta)}

    @cached_property
    def report(self) -> Selection:
        """The report split, ready to measure the refusals and the first-token KL of deltas."""
        fitted, parts = self.maker.fitted, self.parts.report
        return Selection.prepare(self.study.lm, fitted, *parts, make=lambda delta: delta)

    @cached_property
    def bench(self) -> Bench:
        """The report split, ready for all measures."""
        return Bench(
            self.study.lm,
            *self.parts.report,
            response_tokens=CONTINUATION,
            judged_tokens=OPENING,
            passages=neutral_passages()[:PASSAGES],
            judges=(DECLINE_JUDGE,),
        )
