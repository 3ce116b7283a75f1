"""Fit refusal: capture both classes once, then make any edit from the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import chain
from typing import Any

from interp.data.prompts import PromptSet
from interp.edits import Edit, ablation
from interp.errors import InterpError
from interp.evaluate.scores import generate_and_judge
from interp.fitting import Probes, directions, least_disturbance, places_of
from interp.judges.keywords import ENGLISH_JUDGE
from interp.judges.protocol import Judge
from interp.lm import LM
from interp.methods.refusal.texts import LAST_TOKENS, Texts, written
from interp.recipes import AblationEdit, DirectionRecipe, LeastDisturbanceEdit
from interp.samples import DECISION, OPENER, POOL, RESPONSE, Capture, Part, Samples
from interp.types import Direction
from interp.watching import within

OPENING = 12
"""Tokens of a response in which a refusal shows."""
FEWEST_REFUSED = 8
"""Refused requests below which their mean says too little, and all requests are taken."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """What edits of refusal are made from.

    requests: those over which the shift of the writers' inputs is taken. answered: the answerable prompts.
    read: role and prompt set of everything that was read. texts: what edits leave alone. all_requests:
    whether the shift is taken over all requests, and not over those that the model refuses. directions:
    ``{place: {block: direction}}``, those of the samples where none are given.
    """

    samples: Samples
    requests: PromptSet
    answered: PromptSet
    recipe: DirectionRecipe
    read: tuple[tuple[str, PromptSet], ...] = ()
    opener: str = ""
    texts: Texts = field(default_factory=Texts)
    judge: Judge = ENGLISH_JUDGE
    all_requests: bool = False
    directions: Mapping[str, Mapping[int, Direction]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.directions:
            places = (DECISION, OPENER) if self.samples.holds(OPENER) else (DECISION,)
            found = {place: directions(self.samples, self.recipe, place) for place in places}
            object.__setattr__(self, "directions", found)

    @cached_property
    def probes(self) -> Probes:
        """Probes of the writers, solved from the samples when they are asked for."""
        return Probes(self.samples)

    @property
    def refused(self) -> int | None:
        """How many requests the model refuses; None where the shift is taken over all."""
        return None if self.all_requests else len(self.requests)

    @property
    def responses(self) -> int:
        """Prompts whose responses are among the texts."""
        return sum(len(prompts) for role, prompts in self.read if role == "responses")

    def direction(self, block: int, place: str = DECISION) -> Direction:
        """The direction at the output of a block. Raises InterpError for a block without one."""
        known = self.directions.get(place, {})
        if block not in known:
            some = f"{min(known)} … {max(known)}" if known else "none"
            raise InterpError(
                f"no direction at block {block} ({place}); blocks with a class difference: {some}"
            )
        return known[block]

    def joined(self, other: Fitted) -> Fitted:
        """Both splits as one fit. InterpError when they were read after different openers."""
        if self.opener != other.opener:
            raise InterpError(
                f"these fits were read after different openers, {self.opener!r} and {other.opener!r}"
            )
        return replace(
            self,
            samples=self.samples.joined(other.samples),
            requests=self.requests.joined(other.requests),
            answered=self.answered.joined(other.answered),
            read=self.read + other.read,
            texts=self.texts.joined(other.texts),
            all_requests=self.all_requests or other.all_requests,
            directions={},
        )

    def of(self, requests: PromptSet, answered: PromptSet) -> Fitted:
        """The fit of some of the prompts alone, from what was read of all; rows of other prompts stay."""
        return replace(
            self,
            samples=self.samples.of(requests, answered),
            requests=self.requests.among(requests),
            answered=self.answered.among(answered),
            directions={},
        )


def answering(lm: LM, text: str) -> LM:
    """The model with answers that go on from ``text``. Raises InterpError without a chat format."""
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
    respond_to: PromptSet | None = None,
    opener: str = "",
    all_requests: bool = False,
    judge: Judge = ENGLISH_JUDGE,
) -> Fitted:
    """Both classes read once: outputs of every block and inputs of every writer.

    pool: further answerable prompts; their rows join the second moment that a least-disturbance edit leaves
    alone, not the class means. respond_to: likewise, the model's responses to these
    (:func:`interp.methods.refusal.texts.written`). opener: read both classes a second time after this text,
    for edits that act there as well. all_requests: take the shift of the writers' inputs over all requests,
    and not only over those that the model refuses (Arditi et al. 2406.11717, appendix A), which are taken
    where they are ``FEWEST_REFUSED`` or more.
    """
    lm = lm.using(watch=within(lm.watch, "fit"))
    refused = None if all_requests else refused_among(lm, refuse, judge)
    requests = refused or refuse
    capture = Capture(lm, (*lm.resid_post, *lm.writer_inputs))
    texts = Texts() if respond_to is None else written(lm, respond_to)
    parts = _classes(capture, refuse, requests, comply, opener), _kept(capture, pool, texts)
    roles = {"refuse": refuse, "comply": comply, "pool": pool, "responses": respond_to}
    return Fitted(
        samples=Samples(tuple(chain(*parts))),
        requests=requests,
        answered=comply,
        recipe=recipe or DirectionRecipe(),
        read=tuple((role, prompts) for role, prompts in roles.items() if prompts is not None),
        opener=opener,
        texts=texts,
        judge=judge,
        all_requests=refused is None,
    )


def _classes(
    capture: Capture, refuse: PromptSet, requests: PromptSet, comply: PromptSet, opener: str
) -> Iterator[Part]:
    """Rows of both classes at the decision position and after the opener, if there is one.

    requests: those over which the shift of the writers' inputs is taken.
    """
    lm = capture.lm
    positive = capture(refuse, DECISION, True)
    yield positive.at(lm.resid_post)
    yield positive.at(lm.writer_inputs).of(requests.fingerprints)
    yield capture(comply, DECISION, False)
    if opener:
        after = replace(capture, lm=answering(lm, opener))
        yield after(requests, OPENER, True)
        yield after(comply, OPENER, False)


def _kept(capture: Capture, pool: PromptSet | None, texts: Texts) -> Iterator[Part]:
    """Inputs of the writers on what edits leave alone: further prompts, and the last tokens of responses."""
    capture = replace(capture, sites=capture.lm.writer_inputs)
    if pool is not None:
        yield capture(pool, POOL, False)
    last = tuple(range(-LAST_TOKENS, 0))
    for batch in (texts.chats, texts.plain):
        if batch is not None:
            yield capture(batch, RESPONSE, False, at=last)


def refused_among(lm: LM, requests: PromptSet, judge: Judge) -> PromptSet | None:
    """The requests that the model refuses; None where they are fewer than ``FEWEST_REFUSED``."""
    judged = generate_and_judge(lm, requests, tokens=OPENING, by=judge)
    if not judged.n or judged.count < FEWEST_REFUSED:
        return None
    return requests.chosen(judged.flagged)


def build(lm: LM, fitted: Fitted, recipe: AblationEdit | LeastDisturbanceEdit) -> Edit:
    """The edit in closed form that a recipe without open settings describes.

    Raises InterpError for a setting that is None, and for a block without a direction.
    """
    check_closed(recipe)
    places = places_of(recipe) if isinstance(recipe, LeastDisturbanceEdit) else (DECISION,)
    if OPENER in places and not fitted.opener:
        raise InterpError("this fit was not read after an opener; give `opener` to fit")
    along = {place: fitted.direction(recipe.block, place) for place in places}
    if isinstance(recipe, AblationEdit):
        edit = ablation(
            lm.hf,
            lm.anatomy,
            along[DECISION],
            strength=recipe.strength,
            blocks=tuple(range(recipe.first_block, lm.n_blocks)),
            embeddings=recipe.embeddings,
        )
    else:
        edit = least_disturbance(lm, fitted.probes, along, recipe)
    return replace(edit, recipe={**edit.recipe, **used_settings(fitted, recipe)})


def check_closed(recipe: AblationEdit | LeastDisturbanceEdit) -> None:
    """Raise InterpError for a recipe with settings that are still to be chosen."""
    without = {"after_opener", "learn"}
    if not getattr(recipe, "after_opener", None):
        without.add("opener_strength")
    values = {each.name: getattr(recipe, each.name) for each in fields(recipe)}
    if left := [name for name, value in values.items() if value is None and name not in without]:
        raise InterpError(
            f"this recipe leaves {', '.join(left)} open; give a value, or let `choose` find one on held-out "
            "prompts"
        )


def used_settings(fitted: Fitted, recipe: AblationEdit | LeastDisturbanceEdit) -> dict[str, Any]:
    """Settings that the closed form depends on, by name: none that the fit or the others make meaningless."""
    found = asdict(recipe) | {"direction": asdict(fitted.recipe), "responses": fitted.responses}
    # The closed form does not learn, and provenance names the prompts of the pool.
    without = {"learn", "learning", "most_pool"}
    if isinstance(recipe, LeastDisturbanceEdit):
        if not recipe.after_opener:
            without |= {"after_opener", "opener_strength", "opener_weight"}
        if not fitted.responses:
            without |= {"responses", "response_weight"}
    else:
        without.add("responses")
    source = fitted.direction(recipe.block).source
    return {k: v for k, v in found.items() if k not in without} | {"direction_source": source}
