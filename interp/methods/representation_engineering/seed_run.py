"""One deal of the topics into fit, select and report: edits fitted, chosen and measured on it.

Everything measured is kept as it goes, so that a run that was killed goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from interp.data.prompts import PromptSet, load_class, load_pairs
from interp.data.text import neutral_passages
from interp.evaluate.divergence import CONTINUATION, first_log_probs, kl_nats
from interp.evaluate.measure import Bench
from interp.evaluate.neutral import passage_nats
from interp.evaluate.refusal import generate_and_judge, generate_ids, judge
from interp.evaluate.replacement import Replacement
from interp.judges.keywords import DECLINES, KeywordJudge
from interp.methods.refusal import (
    Fitted,
    Selection,
    choose,
    find_opener,
    fit,
)
from interp.methods.refusal.fit import OPENING
from interp.methods.refusal.pipeline import PASSAGES
from interp.methods.representation_engineering.contenders import (
    ANSWERED,
    CLOSED,
    MAIN,
    MAKERS,
    PARTIAL,
    RANDOM,
    SHIPPED,
    VARIANTS,
    Candidate,
    Maker,
    candidates,
)
from interp.methods.representation_engineering.splits import BROAD, SET, SIDES, Splits, splits
from interp.study import Study
from interp.types import Ids, WeightDelta

FACTORS = (1.3,)
"""The chosen edit times these, beside itself."""
FULL = 0
"""The shipped split, where whole rows are measured; elsewhere refusals and first-token KL are."""
WHOLE = (
    "refused", "declined", "over_refused", "kl1", "kl32", "nll", "passages", "replacement", "examples",
)  # fmt: skip
"""What a whole row holds."""

Point = dict[str, Any]


@dataclass(eq=False)
class SeedRun:
    """One deal of the topics. The model works only for what an earlier run has not kept.

    names: contenders that are measured; empty for all. factors: what the chosen edit is scaled by, beside
    1.
    """

    study: Study
    seed: int
    names: tuple[str, ...] = ()
    factors: tuple[float, ...] = FACTORS

    @cached_property
    def parts(self) -> Splits:
        return splits(self.study, self.seed)

    @cached_property
    def maker(self) -> Maker:
        return Maker(self.study.lm, self.narrow.joined(self.broad))

    @property
    def opener(self) -> str:
        """What refusals open with, found on the broad pairs, whose topics are in no report split."""
        study = self.study

        def find() -> str:
            return find_opener(study.lm, *self.parts.broad)

        hashes = [side.sha256 for side in self.parts.broad]
        return study.once("opener", lambda: study.resumed("opener", find, prompts=hashes))

    @property
    def narrow(self) -> Fitted:
        """Fitted on the dealt topics alone. Prompts are read once, whatever topics are dealt."""
        study = self.study
        if study.limit:
            return self.fitted(self.parts.fit, pool=self.parts.pool)
        pairs = load_pairs(SET)
        whole = (pairs.side(SIDES[0], "all"), pairs.side(SIDES[1], "all"))
        read = study.once("pairs: fitted", lambda: self.fitted(whole, pool=self.parts.pool))
        return read.of(*self.parts.fit)

    @property
    def broad(self) -> Fitted:
        """What joins every deal's fit, with the responses that edits leave alone."""
        answered = self.parts.broad[1].spread(ANSWERED)
        make = lambda: self.fitted(self.parts.broad, respond_to=answered)  # noqa: E731
        return self.study.once("broad: fitted", make)

    def fitted(self, classes: tuple[PromptSet, PromptSet], **more: Any) -> Fitted:
        return fit(self.study.lm, *classes, opener=self.opener, **more)

    @cached_property
    def selection(self) -> Selection:
        maker = self.maker
        refuse, comply = self.parts.select
        # KL is compared on prompts like those of report; refusals on the broad pairs as well.
        alone = comply.without(load_class(BROAD, "comply", split="select"))
        return Selection.prepare(self.study.lm, maker.fitted, refuse, alone, make=maker)

    @cached_property
    def bench(self) -> Bench:
        return Bench.prepare(
            self.study.lm,
            *self.parts.report,
            response_tokens=OPENING,
            passages=neutral_passages()[:PASSAGES],
        )

    def kept(self, name: str, make: Any, **about: Any) -> Any:
        about |= {"seed": self.seed, "prompts": self.parts.hashes}
        return self.study.resumed("frontier", make, name=name, **about)

    def chosen(self, name: str) -> Candidate:
        """A contender's setting, chosen on select; the control has that of what it controls, and a variant
        of partial ablation that of partial ablation."""
        if name == RANDOM:
            controlled = MAIN if MAIN in self.contenders else CLOSED
            return replace(self.chosen(controlled), name=RANDOM)
        if name in VARIANTS:
            return replace(self.chosen(PARTIAL), name=name)

        def make() -> dict[str, Any]:
            settings = candidates(name, self.maker.fitted, self.study.lm.n_blocks)
            choice = choose(self.selection, settings, watch=self.study.watch, label=name)
            return asdict(choice.setting)

        values = self.kept(f"{name}: chosen", make)
        kernels = tuple(tuple(kernel) for kernel in values["kernels"])
        return Candidate(**{**values, "kernels": kernels})

    def base(self) -> Point:
        """The unedited model on report."""

        def make() -> Point:
            if self.seed != FULL:
                return self._short(None)
            return self._whole("original", None)

        return self.kept("original", make, **self.whole)

    def points(self, name: str) -> list[Point]:
        """The chosen edit on report, scaled by ``FACTORS`` and whole (last): shares and nats."""
        chosen = self.chosen(name)
        make = lambda: self._measured(name, self.maker(chosen))  # noqa: E731
        about = {"setting": asdict(chosen), "factors": self.factors, **self.whole}
        return self.kept(name, make, **about)

    @property
    def whole(self) -> dict[str, Any]:
        """What names a kept point besides its setting: the measures of a whole row."""
        return {"whole": WHOLE, "passages": PASSAGES} if self.seed == FULL else {}

    @property
    def contenders(self) -> tuple[str, ...]:
        """Those of this deal."""
        if self.names:
            return self.names
        return tuple(name for name in MAKERS if self.seed == FULL or name not in SHIPPED)

    def _measured(self, name: str, delta: WeightDelta) -> list[Point]:
        factors = () if name == RANDOM else self.factors
        found = [self._short(delta.scale(factor)) for factor in factors]
        if self.seed != FULL:
            return [*found, self._short(delta)]
        return [*found, self._whole(name, delta)]

    @cached_property
    def longer(self) -> Bench:
        """The bench with responses of ``CONTINUATION`` tokens, long enough to read what is said."""
        bench = self.bench
        ids = generate_ids(bench.lm, bench.refuse, tokens=CONTINUATION)
        return replace(bench, response_tokens=CONTINUATION, base_ids=ids)

    def _whole(self, name: str, delta: WeightDelta | None) -> Point:
        """A row of the bench, every passage's nats, and what responses of ``CONTINUATION`` tokens say: the
        share declined in any words, measures of what replaces refusals, and examples."""
        row = self.bench.row(name, delta)
        nats, tokens = passage_nats(self.study.lm, self.bench.neutral, delta)
        new, said = self._said(delta)
        declined = judge(self.longer.judged(new).texts, KeywordJudge(DECLINES))
        shares = (row.refusals / row.n_refuse, declined.count / declined.n)
        costs = (row.over_refusals / row.n_comply, row.kl_first, row.kl_continuation, row.nll)
        more = ([nats.tolist(), tokens.tolist()], asdict(said), list(self.longer.examples(new)))
        return dict(zip(WHOLE, (*shares, *costs, *more), strict=True))

    def _said(self, delta: WeightDelta | None) -> tuple[Ids, Replacement]:
        """Responses of ``CONTINUATION`` tokens to the requests, and measures of those that replace refusals;
        of the base model, measures of its answers."""
        bench = self.longer
        if delta is None:
            answers = bench.reference.first_ids(CONTINUATION)
            assert answers is not None  # the reference has as many tokens
            return bench.base_ids, bench.answers(answers)
        new = generate_ids(bench.lm, bench.refuse, delta, tokens=CONTINUATION)
        return new, bench.replacement(new)

    def _short(self, delta: WeightDelta | None) -> Point:
        """What is left refused on report, and the first-token KL of an edit there."""
        requests = self.parts.report[0]
        answers = generate_and_judge(self.study.lm, requests, delta, tokens=OPENING)
        point = {"refused": answers.count / len(requests)}
        return point if delta is None else {**point, "kl1": self.first_kl(delta)}

    @cached_property
    def _base(self) -> Tensor:
        return first_log_probs(self.study.lm, self.parts.report[1])

    def first_kl(self, delta: WeightDelta) -> float:
        """First-token KL on the comply prompts of report, in nats."""
        edited = first_log_probs(self.study.lm, self.parts.report[1], delta)
        return kl_nats(self._base, edited).mean().item()
