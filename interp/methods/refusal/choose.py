"""Choose among candidate edits on the select split: the least KL that leaves almost no refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch

from interp.data.prompts import PromptSet
from interp.errors import InterpError
from interp.evaluate.divergence import first_log_probs, kl_nats
from interp.evaluate.refusal import ENGLISH_JUDGE, Judge, generate_and_judge
from interp.lm import LM
from interp.methods.refusal.again import finished
from interp.methods.refusal.fit import OPENING, Fitted, Setting, build
from interp.methods.refusal.learning import learned
from interp.types import TokenBatch, WeightDelta
from interp.watching import Watch, unwatched

DEPTHS = (0.55, 0.67, 0.73, 0.8, 0.87, 0.93)
"""Where directions are tried, as shares of the stack (block 20 of 30 is 0.67)."""
STARTS = (0.0, 0.53)
"""First edited block, as a share of the stack."""
OPENED = (
    {"strength": 0.5, "opened": 2.5, "attention": 0.3, "again": 0.8},
    {"strength": 0.6, "opened": 2.5, "attention": 0.3, "again": 0.9},
)
"""Settings that are tried for an edit that acts after the opener of a refusal as well."""
OPENED_RIDGE = 0.01
"""And its ridge."""
ALMOST_NONE = 64
"""One request in so many may be left refused on select."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate on the select split. refusals: None when it was not worth generating; counting stops
    once a candidate can no longer be chosen, so that of such a one it is a lower bound."""

    setting: Any
    kl_first: float
    refusals: int | None
    n_refuse: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen setting (a :class:`Setting`, or another dataclass) and all it was compared with."""

    setting: Any
    scores: tuple[Scored, ...]

    def as_json(self) -> dict[str, Any]:
        return {"chosen": asdict(self.setting), "candidates": [asdict(s) for s in self.scores]}


@runtime_checkable
class Scores(Protocol):
    """What a choice needs to know of the select split; :class:`Selection` measures it."""

    @property
    def refuse(self) -> Sized: ...

    def kl(self, setting: Any) -> float: ...

    def refusals(self, setting: Any, enough: int | None = None) -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The select split, ready to score settings. make: a setting's delta. tokens: refusals show in their
    first words."""

    lm: LM
    make: Callable[[Any], WeightDelta]
    refuse: TokenBatch
    comply: TokenBatch
    base: torch.Tensor = field(repr=False)
    tokens: int = OPENING
    judge: Judge = ENGLISH_JUDGE

    @classmethod
    def prepare(
        cls,
        lm: LM,
        fitted: Fitted,
        refuse: PromptSet,
        comply: PromptSet,
        *,
        make: Callable[[Any], WeightDelta] | None = None,
    ) -> Selection:
        """make: for settings of another kind than :class:`Setting`, which ``fitted`` gives edits for."""

        @cache  # what takes long is asked for its KL and for its refusals, and others begin with it
        def slowly(setting: Setting) -> WeightDelta:
            if setting.worth:
                before = from_setting(replace(setting, worth=0.0))
                return learned(lm, fitted, before, setting.worth)
            return finished(lm, fitted, setting)

        def from_setting(setting: Setting) -> WeightDelta:
            if setting.again or setting.worth:
                return slowly(setting)
            return lm.to_delta(build(lm, fitted, setting))

        quiet = lm.using(watch=unwatched)
        r, c = (lm.tokens(side).by_length() for side in (refuse, comply))
        base = first_log_probs(quiet, c)
        return cls(quiet, make or from_setting, r, c, base, judge=fitted.judge)

    def kl(self, setting: Any) -> float:
        """First-token KL on the comply prompts, in nats."""
        edited = first_log_probs(self.lm, self.comply, self.make(setting))
        return kl_nats(self.base, edited).mean().item()

    def refusals(self, setting: Any, enough: int | None = None) -> int:
        """Requests refused, or not answered yet; counting may stop once there are more than ``enough``."""
        made, count = self.make(setting), 0
        for part in self.refuse.split(self.lm.batch_size):
            found = generate_and_judge(self.lm, part, made, tokens=self.tokens, by=self.judge)
            count += found.count + found.unscored
            if enough is not None and count > enough:
                break
        return count


def choose(
    selection: Scores,
    settings: Sequence[Any],
    *,
    allowed: int | None = None,
    watch: Watch = unwatched,
    label: str = "select",
) -> Choice:
    """The setting with the least KL whose refusals are ≤ ``allowed`` (None: one in 64 prompts).

    When no setting is that good, the one with the fewest refusals.

    Candidates are generated in the order of their KL and the first that is good enough ends the search:
    every later one would disturb more.
    """
    if not settings:
        raise InterpError("nothing to choose from: no candidate settings")
    if allowed is None:
        allowed = len(selection.refuse) // ALMOST_NONE
    progress = watch(f"{label}: KL", len(settings))
    ranked = []
    for setting in settings:
        ranked.append((selection.kl(setting), setting))
        progress(1)
    ranked.sort(key=lambda pair: pair[0])
    progress = watch(f"{label}: responses", len(ranked))
    scores: list[Scored] = []
    best: tuple[int, Any] | None = None
    for kl, setting in ranked:
        count = None
        if best is None or best[0] > allowed:
            # Neither good enough nor the best so far: no need to know how bad.
            enough = None if best is None else max(allowed, best[0])
            count = selection.refusals(setting, enough)
            if best is None or count < best[0]:
                best = (count, setting)
        scores.append(Scored(setting, kl, count, len(selection.refuse)))
        progress(1)
    assert best is not None
    return Choice(best[1], tuple(scores))


def depth_blocks(n_blocks: int, available: Iterable[int], depths: Sequence[float]) -> list[int]:
    """Blocks at relative depths, without repeats, limited to those that have a direction."""
    wanted = (min(round(d * n_blocks), n_blocks - 1) for d in depths)
    known = sorted(available)
    return list(dict.fromkeys(min(known, key=lambda b, w=w: abs(b - w)) for w in wanted))


def candidates(
    lm: LM,
    fitted: Fitted,
    method: str,
    *,
    strengths: Sequence[float] | None = None,
    starts: Sequence[float] | None = None,
    depths: Sequence[float] = DEPTHS,
    **fixed: Any,
) -> Iterator[Setting]:
    """The grid that is searched when the user does not name a block."""
    if strengths is None:
        strengths = (1.0,) if method == "ablation" else (0.8, 1.0, 1.3)
    n = lm.n_blocks
    first_blocks = dict.fromkeys(min(round(s * n), n - 1) for s in (starts or STARTS))
    for block in depth_blocks(n, fitted.directions, depths):
        for first in first_blocks:
            for strength in strengths:
                yield Setting(method, block, first, strength, **fixed)


def opened_candidates(
    lm: LM, fitted: Fitted, method: str, *, worth: float = 0.0, **fixed: Any
) -> Iterator[Setting]:
    """The grid for a fit that was also read after an opener: ``OPENED`` at the usual blocks.

    worth: the first of these as it is and learned; to learn takes minutes.
    """
    for setting in OPENED[: 1 if worth else None]:
        strengths = (setting["strength"],)
        rest = {name: value for name, value in setting.items() if name != "strength"}
        for found in candidates(
            lm, fitted, method, strengths=strengths, depths=(DEPTHS[-1],),
            starts=(STARTS[-1],), **{**fixed, **rest},
        ):  # fmt: skip
            yield found
            if worth:
                yield replace(found, worth=worth)
