"""Choose among candidate edits on the select split: the least KL that leaves almost no refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from interp.data.prompts import PromptSet
from interp.errors import InterpError
from interp.evaluate.divergence import first_log_probs, kl_nats
from interp.evaluate.scores import generate_and_judge
from interp.judges.keywords import ENGLISH_JUDGE
from interp.judges.protocol import Judge
from interp.lm import LM
from interp.methods.refusal.fit import OPENING, Fitted, build
from interp.recipes import AblationEdit, LeastDisturbanceEdit
from interp.samples import DECISION
from interp.types import TokenBatch, WeightDelta
from interp.watching import Watch, counted, unwatched

R = TypeVar("R", AblationEdit, LeastDisturbanceEdit)

DIRECTION_DEPTHS = (0.55, 0.67, 0.73, 0.8, 0.87, 0.93)
"""Where directions are tried, as shares of the stack (block 20 of 30 is 0.67)."""
UPPER = 0.53
"""Depth from which the upper half of the stack is edited."""
STRENGTHS = (0.8, 1.0, 1.3)
"""Of a least-disturbance edit at the first token alone."""
WITH_OPENER: dict[str, Any] = {
    "strength": 0.5, "opener_strength": 2.5, "attention": 0.3, "ridge": 0.01, "learn": 0.06,
}  # fmt: skip
"""Settings of a least-disturbance edit that acts after the opener of a refusal as well."""
FIRST_TOKEN_ALONE: dict[str, Any] = {"attention": 1.0, "ridge": 0.02, "learn": 0.0}
"""Settings of a least-disturbance edit that acts at the first token alone."""
OPENER_SETTINGS = ("after_opener", "opener_strength", "opener_weight")
"""Settings that go back to their defaults where refusals share no opener."""
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


def settings_of(setting: Any) -> dict[str, Any]:
    """Settings by name; those of a recipe with its method."""
    recipe = isinstance(setting, (AblationEdit, LeastDisturbanceEdit))
    own = {"method": setting.method, "direction_block": setting.block} if recipe else {}
    return {**own, **asdict(setting)}


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen setting (a recipe or another dataclass) and all it was compared with."""

    setting: Any
    scores: tuple[Scored, ...]

    def as_json(self) -> dict[str, Any]:
        """``chosen`` and ``candidates`` as settings by name."""
        scores = [{**asdict(s), "setting": settings_of(s.setting)} for s in self.scores]
        return {"chosen": settings_of(self.setting), "candidates": scores}


@runtime_checkable
class SelectSplit(Protocol):
    """KL and refusals of settings on the select split, as :class:`Selection` measures them."""

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
        """make: the delta of a setting; None for recipes in closed form, made from ``fitted``."""

        def closed_form(recipe: AblationEdit | LeastDisturbanceEdit) -> WeightDelta:
            return lm.to_delta(build(lm, fitted, recipe))

        quiet = lm.using(watch=unwatched)
        r, c = (lm.tokens(side).by_length() for side in (refuse, comply))
        base = first_log_probs(quiet, c)
        return cls(quiet, make or closed_form, r, c, base, judge=fitted.judge)

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
    selection: SelectSplit,
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
    kls = [(selection.kl(each), each) for each in counted(watch, f"{label}: KL", settings)]
    ranked = sorted(kls, key=lambda pair: pair[0])
    scores: list[Scored] = []
    best: tuple[int, Any] | None = None
    for kl, setting in counted(watch, f"{label}: responses", ranked):
        count = None
        if best is None or best[0] > allowed:
            # Neither good enough nor the best so far: no need to know how bad.
            enough = None if best is None else max(allowed, best[0])
            count = selection.refusals(setting, enough)
            if best is None or count < best[0]:
                best = (count, setting)
        scores.append(Scored(setting, kl, count, len(selection.refuse)))
    assert best is not None
    return Choice(best[1], tuple(scores))


def candidates(recipe: R, fitted: Fitted, n_blocks: int) -> list[R]:
    """Recipes without open settings: ``recipe`` with every combination of the values that are tried."""
    blocks = depth_blocks(n_blocks, fitted.directions[DECISION], DIRECTION_DEPTHS)
    upper = min(round(UPPER * n_blocks), n_blocks - 1)
    tried: dict[str, Sequence[Any]] = {"block": blocks, "first_block": (0, upper)}
    if isinstance(recipe, AblationEdit):
        tried["strength"] = (1.0,)
    elif fitted.opener:
        recipe = replace(recipe, after_opener=fitted.opener)
        tried = {"block": blocks[-1:], "first_block": (upper,)}
        tried |= {name: (value,) for name, value in WITH_OPENER.items()}
    else:
        default = LeastDisturbanceEdit()
        recipe = replace(recipe, **{name: getattr(default, name) for name in OPENER_SETTINGS})
        tried |= {name: (value,) for name, value in FIRST_TOKEN_ALONE.items()}
        tried["strength"] = STRENGTHS
    left_open = {name: values for name, values in tried.items() if getattr(recipe, name) is None}
    return [
        replace(recipe, **dict(zip(left_open, values, strict=True)))
        for values in product(*left_open.values())
    ]


def depth_blocks(n_blocks: int, available: Iterable[int], depths: Sequence[float]) -> list[int]:
    """Blocks at relative depths, without repeats, limited to those that have a direction."""
    wanted = (min(round(d * n_blocks), n_blocks - 1) for d in depths)
    known = sorted(available)
    return list(dict.fromkeys(min(known, key=lambda b, w=w: abs(b - w)) for w in wanted))
