"""Fit refusal directions and edits on the fit split; build the edit that a setting describes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from interp.data.prompts import PromptSet
from interp.data.tokens import Prompts
from interp.edits import Edit, ablation
from interp.errors import InterpError
from interp.evaluate.refusal import ENGLISH_JUDGE, Judge, generate_and_judge
from interp.fitting import (
    DirectionRecipe,
    LeastDisturbanceRecipe,
    WriterStatistics,
    directions,
    least_disturbance,
    response_statistics,
)
from interp.lm import LM
from interp.methods.refusal.prose import Cut, Prose, written
from interp.sites import Site
from interp.types import Direction, TokenBatch
from interp.watching import within

Key = TypeVar("Key")

ROLES = ("refuse", "comply", "pool", "prose")
METHODS = ("ablation", "least-disturbance")
SPOKEN = 16
"""Response tokens of comply prompts that a least-disturbance edit leaves alone as well."""
OPENING = 12
"""Tokens of a response in which a refusal shows."""
FEWEST_REFUSED = 8
"""Refused requests below which their mean says too little, and all requests are taken."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """Directions per block and inputs of every writer, read on one split.

    streams: outputs of every block per class, ``{site: [n, d_model]}``, kept so that splits can be joined.
    seen: short hashes of the prompts. prompts: name of a prompt set → its hash. refused: number of requests
    that the model refused; None when the class shift is averaged over all requests. requests: requests that
    the class shift is averaged over; kept: their row indices in the split. opened: the same fit, read after
    ``opener``. answered: the comply prompts; cut: truncated texts that the model wrote. judge: of responses.
    response_tokens: tokens read of every comply response; of joined fits, the larger number.
    """

    directions: Mapping[int, Direction]
    statistics: WriterStatistics
    streams: tuple[Mapping[Site, Tensor], Mapping[Site, Tensor]]
    recipe: DirectionRecipe
    seen: tuple[str, ...]
    prompts: Mapping[str, str]
    refused: int | None = None
    requests: TokenBatch | None = None
    opened: Fitted | None = None
    opener: str = ""
    kept: Tensor | None = None
    answered: TokenBatch | None = None
    cut: Cut = field(default_factory=Cut)
    judge: Judge = ENGLISH_JUDGE
    response_tokens: int = 0

    def late_block(self, depth: float = 0.8) -> int:
        """The block at a relative depth; a start before anything is chosen on held-out prompts."""
        known = sorted(self.directions)
        return known[min(round(depth * len(known)), len(known) - 1)]

    def leaving(self, prose: Prose) -> Fitted:
        """The same fit, whose edits leave alone what the model writes as well."""
        if not prose.moments:
            return self
        statistics = replace(self.statistics, prose=prose.moments)
        return replace(self, statistics=statistics, cut=prose.cut)

    def joined(self, other: Fitted) -> Fitted:
        """Both splits' activations as one fit, for a last fit once everything has been chosen.

        InterpError when they were read after different openers, or when both leave prose alone: how many
        tokens each moment stands for is not known any more.
        """
        if self.opener != other.opener:
            raise InterpError(
                f"these fits were read after different openers, {self.opener!r} and {other.opener!r}"
            )
        if self.statistics.prose and other.statistics.prose:
            raise InterpError("both fits leave prose alone; give `prose` to one of them")
        streams = tuple(_rows(a, b) for a, b in zip(self.streams, other.streams, strict=True))
        mine, theirs = self.statistics, other.statistics
        opened = self.opened and other.opened and self.opened.joined(other.opened)
        statistics = WriterStatistics(
            _rows(mine.refuse, theirs.refuse),
            _rows(mine.comply, theirs.comply),
            _rows(mine.extra, theirs.extra),
            _rows(mine.spoken, theirs.spoken),
            opened.statistics if opened else None,
            mine.prose or theirs.prose,
        )
        return Fitted(
            directions(streams[0], streams[1], self.recipe),
            statistics,
            (streams[0], streams[1]),
            self.recipe,
            tuple(sorted({*self.seen, *other.seen})),
            {**self.prompts, **other.prompts},
            _both_refused(self.refused, other.refused),
            _both_requests(self.requests, other.requests),
            opened,
            self.opener,
            None,
            _both_requests(self.answered, other.answered),
            self.cut if mine.prose else other.cut,
            judge=self.judge,
            response_tokens=max(self.response_tokens, other.response_tokens),
        )

    def of_pairs(self, rows: Tensor) -> Fitted:
        """The fit of some of the pairs alone, from what was read of all; prompts stay those of all.

        rows: their places. InterpError for a joined fit, which does not know the places of its requests.
        """
        if self.kept is None or self.requests is None:
            raise InterpError("a joined fit cannot be taken apart; take the parts before joining")
        stays = torch.isin(self.kept, rows).nonzero().flatten()
        stats = self.statistics
        tokens = {n: len(x) // len(stats.comply[n]) for n, x in stats.spoken.items()}
        opened = None
        if self.opened is not None:
            # Only the requests of the shift were read after the opener: each is its own place there.
            opened = _taken(self.opened, stays, stays, rows, {}, None)
        spoken = {
            n: x.unflatten(0, (-1, tokens[n]))[rows].flatten(0, 1) for n, x in stats.spoken.items()
        }
        found = _taken(self, rows, stays, rows, spoken, opened)
        return replace(found, refused=None if self.refused is None else len(stays))


def _taken(
    whole: Fitted,
    refuse: Tensor,
    stays: Tensor,
    comply: Tensor,
    spoken: Mapping[str, Tensor],
    opened: Fitted | None,
) -> Fitted:
    """Some rows of a fit. refuse, comply: of the streams; stays: of the requests of the shift."""
    streams = (
        {site: rows[refuse] for site, rows in whole.streams[0].items()},
        {site: rows[comply] for site, rows in whole.streams[1].items()},
    )
    statistics = WriterStatistics(
        {name: rows[stays] for name, rows in whole.statistics.refuse.items()},
        {name: rows[comply] for name, rows in whole.statistics.comply.items()},
        whole.statistics.extra,
        spoken,
        opened.statistics if opened else None,
        whole.statistics.prose,
    )
    return replace(
        whole,
        directions=directions(streams[0], streams[1], whole.recipe),
        statistics=statistics,
        streams=streams,
        requests=whole.requests and whole.requests.chosen(stays),
        opened=opened,
        kept=None,
        answered=whole.answered and whole.answered.chosen(comply),
    )


def _both_refused(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _both_requests(a: TokenBatch | None, b: TokenBatch | None) -> TokenBatch | None:
    return None if a is None or b is None else a.followed_by(b)


def _rows(a: Mapping[Key, Tensor], b: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """The rows of both, key by key; a key of one alone keeps its rows."""
    return {key: torch.cat([part[key] for part in (a, b) if key in part]) for key in {**a, **b}}


def answering(lm: LM, text: str) -> LM:
    """The model with answers that go on from ``text`` as if it had said it. Raises InterpError without a
    chat format."""
    if lm.chat is None:
        raise InterpError("an answer begins with an opener in a chat; use an LM with a chat format")
    return lm.using(chat=lm.chat.saying(text))


def fit(
    lm: LM,
    refuse: PromptSet,
    comply: PromptSet,
    *,
    recipe: DirectionRecipe | None = None,
    pool: PromptSet | None = None,
    prose: PromptSet | None = None,
    response_tokens: int = SPOKEN,
    behaviour_filter: bool = True,
    opener: str = "",
    judge: Judge = ENGLISH_JUDGE,
) -> Fitted:
    """One pass over both classes: residuals after every block and inputs of every writer.

    pool: further answerable prompts; their writer inputs join the second moment that a
    least-disturbance edit leaves alone, not the class means. prose: likewise what the model writes in
    response to these (:func:`interp.methods.refusal.written`). response_tokens: likewise the first
    response tokens of comply prompts. behaviour_filter: take the shift of the writers' inputs over the
    requests that the model does refuse (Arditi et al. 2406.11717, appendix A); over all of them where it
    refuses fewer than ``FEWEST_REFUSED``. opener: read both classes a second time once this has been said
    (:func:`interp.methods.refusal.opener.find_opener` finds one), for edits that act there as well.
    """
    recipe = recipe or DirectionRecipe()
    lm = lm.using(watch=within(lm.watch, "fit"))
    batches = [lm.tokens(side) for side in (refuse, comply)]
    read = _read(lm, batches)
    extra = {} if pool is None else writer_inputs(lm, pool)
    prosaic = Prose({}) if prose is None else written(lm, prose)
    spoken: dict[str, Tensor] = {}
    if response_tokens:
        spoken = response_statistics(lm, batches[1], lm.writer_inputs, response_tokens)
    kept, refused = torch.arange(len(refuse)), None
    if behaviour_filter:
        judged = generate_and_judge(lm, batches[0], tokens=OPENING, by=judge)
        if judged.n and judged.count >= FEWEST_REFUSED:
            kept, refused = torch.tensor(judged.refused).nonzero().flatten(), judged.count
    used = [(role, s) for role, s in zip(ROLES, (refuse, comply, pool, prose), strict=True) if s]
    opened = None
    if opener:
        after = [answering(lm, opener).tokens(side) for side in (refuse, comply)]
        after[0] = after[0].chosen(kept)
        everything = torch.arange(len(kept))
        opened = _fitted(recipe, _read(lm, after), everything, after[0], {}, {}, None)
    found = _fitted(recipe, read, kept, batches[0], extra, spoken, opened)
    return replace(
        found.leaving(prosaic),
        seen=tuple(sorted(frozenset.union(*(s.fingerprints for _, s in used)))),
        prompts={f"{role}: {s.source}": s.sha256 for role, s in used},
        refused=refused,
        opener=opener,
        kept=kept,
        answered=batches[1],
        judge=judge,
        response_tokens=response_tokens,
    )


def _read(lm: LM, batches: Sequence[TokenBatch]) -> list[Mapping[Site, Tensor]]:
    """Outputs of all blocks and inputs of all writers at the last token of both classes."""
    sites = (*lm.resid_post, *lm.writer_inputs)
    return [lm.activations(batch, sites) for batch in batches]


def _fitted(
    recipe: DirectionRecipe,
    read: Sequence[Mapping[Site, Tensor]],
    kept: Tensor,
    requests: TokenBatch,
    extra: Mapping[str, Tensor],
    spoken: Mapping[str, Tensor],
    opened: Fitted | None,
) -> Fitted:
    """What was read as a fit. kept: the requests over which the shift is taken."""
    streams = [{s: x for s, x in acts.items() if s.kind == "resid_post"} for acts in read]
    inputs = [{s.name: x for s, x in acts.items() if s.kind != "resid_post"} for acts in read]
    statistics = WriterStatistics(
        {name: rows[kept] for name, rows in inputs[0].items()},
        inputs[1],
        extra,
        spoken,
        opened.statistics if opened else None,
    )
    found = directions(streams[0], streams[1], recipe)
    chosen = requests.chosen(kept)
    return Fitted(found, statistics, (streams[0], streams[1]), recipe, (), {}, None, chosen, opened)


def writer_inputs(lm: LM, prompts: Prompts) -> dict[str, Tensor]:
    """Inputs of every writer at the decision position, ``{name: [n, d_in]}``."""
    found = lm.activations(prompts, lm.writer_inputs)
    return {site.name: rows for site, rows in found.items()}


@dataclass(frozen=True, slots=True)
class Setting:
    """One candidate edit. strength: λ of an ablation, α of a least-disturbance edit.

    opened: the share that the latter removes once the opener of a refusal has been said. again: the share
    of both strengths with which it is fitted once more, for what it leaves
    (:func:`interp.methods.refusal.again.refit_on_remaining`). worth: nats that a request left refused may
    cost when what the edit reads and writes is learned (:func:`interp.methods.refusal.learning.learned`); 0
    leaves it in closed form."""

    method: str
    direction_block: int
    first_block: int = 0
    strength: float = 1.0
    ridge: float | None = 0.02
    embeddings: bool = False
    spoken_weight: float = 0.05
    attention: float = 1.0
    opened: float = 0.0
    again: float = 0.0
    prose_weight: float = 0.1
    opened_weight: float = 0.05
    worth: float = 0.0

    def blocks(self, n_blocks: int) -> tuple[int, ...]:
        return tuple(range(self.first_block, n_blocks))


def build(lm: LM, fitted: Fitted, setting: Setting) -> Edit:
    """The edit that a setting describes. Raises InterpError for an unknown method or block."""
    if setting.direction_block not in fitted.directions:
        raise InterpError(
            f"no direction at block {setting.direction_block}; blocks with a class difference: "
            f"{min(fitted.directions)} … {max(fitted.directions)}"
        )
    direction = fitted.directions[setting.direction_block]
    blocks = setting.blocks(lm.n_blocks)
    if setting.method == "ablation":
        edit = ablation(
            lm.hf,
            lm.anatomy,
            direction,
            strength=setting.strength,
            blocks=blocks,
            embeddings=setting.embeddings,
        )
    elif setting.method == "least-disturbance":
        recipe = LeastDisturbanceRecipe(
            setting.strength,
            setting.ridge,
            blocks,
            setting.spoken_weight,
            setting.attention,
            setting.opened,
            setting.prose_weight,
            setting.opened_weight,
        )
        after = _direction_after(fitted, setting) if setting.opened else None
        edit = least_disturbance(lm, fitted.statistics, direction, recipe, after)
    else:
        raise InterpError(f"no method {setting.method!r}; known: {', '.join(METHODS)}")
    return replace(edit, recipe={**edit.recipe, **_used(fitted, setting)})


def _used(fitted: Fitted, setting: Setting) -> dict[str, Any]:
    """What the edit of a setting takes from the fit, for its recipe: nothing that the edit ignores."""
    source = fitted.directions[setting.direction_block].source
    used: dict[str, Any] = {"direction": source, "direction_block": setting.direction_block}
    used["direction_recipe"] = asdict(fitted.recipe)
    if setting.method == "least-disturbance":
        used["response_tokens"] = fitted.response_tokens
        if setting.opened:
            used["opener"] = fitted.opener
    return used


def _direction_after(fitted: Fitted, setting: Setting) -> Direction:
    """The direction of the setting's block, read after the opener."""
    if fitted.opened is None:
        raise InterpError(
            "this fit has not read what follows the opener of a refusal; give `opener` to fit, or "
            "leave the share after it at 0"
        )
    if setting.direction_block not in fitted.opened.directions:
        raise InterpError(
            f"no direction after {fitted.opener!r} at block {setting.direction_block}"
        )
    return fitted.opened.directions[setting.direction_block]
