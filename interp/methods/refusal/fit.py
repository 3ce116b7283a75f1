"""Fit refusal: capture both classes once, then make any edit from the samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
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


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What edits of refusal are made from.

    directions: ``{place: {block: direction}}``. requests: those over which the shift of the writers' inputs
    is taken. answered: the answerable prompts. texts: what edits leave alone. responses: prompts whose
    responses are among the texts. refused: how many requests the model refuses; None where the shift is taken
    over all. seen, prompts: fingerprints, and hashes by role, of all prompts that were read.
    """

    samples: Samples
    probes: Probes
    directions: Mapping[str, Mapping[int, Direction]]
    requests: PromptSet
    answered: PromptSet
    recipe: DirectionRecipe
    opener: str = ""
    texts: Texts = field(default_factory=Texts)
    responses: int = 0
    judge: Judge = ENGLISH_JUDGE
    refused: int | None = None
    seen: frozenset[str] = frozenset()
    prompts: Mapping[str, str] = field(default_factory=dict)

    def direction(self, block: int, place: str = DECISION) -> Direction:
        """The direction at the output of a block. Raises InterpError for a block without one."""
        known = self.directions.get(place, {})
        if block not in known:
            some = f"{min(known)} … {max(known)}" if known else "none"
            raise InterpError(
                f"no direction at block {block} ({place}); blocks with a class difference: {some}"
            )
        return known[block]

    def late_block(self, depth: float = 0.8) -> int:
        """The block at a relative depth; a start before anything is chosen on held-out prompts."""
        known = sorted(self.directions[DECISION])
        return known[min(round(depth * len(known)), len(known) - 1)]

    def with_samples(self, samples: Samples) -> Fitted:
        """The same prompts with other samples; directions and probes are those of the new samples."""
        return replace(
            self,
            samples=samples,
            probes=Probes(samples),
            directions=directions_at(samples, self.recipe),
        )

    def joined(self, other: Fitted) -> Fitted:
        """Both splits as one fit. InterpError when they were read after different openers."""
        if self.opener != other.opener:
            raise InterpError(
                f"these fits were read after different openers, {self.opener!r} and {other.opener!r}"
            )
        counted = self.refused is not None and other.refused is not None
        return replace(
            self.with_samples(self.samples.joined(other.samples)),
            requests=self.requests.joined(other.requests),
            answered=self.answered.joined(other.answered),
            texts=self.texts.joined(other.texts),
            responses=self.responses + other.responses,
            refused=self.refused + other.refused if counted else None,  # type: ignore[operator]
            seen=self.seen | other.seen,
            prompts={**self.prompts, **other.prompts},
        )

    def of(self, requests: PromptSet, answered: PromptSet) -> Fitted:
        """The fit of some of the prompts alone, from what was read of all; rows of other prompts stay."""
        kept = self.requests.among(requests)
        return replace(
            self.with_samples(self.samples.of(requests, answered)),
            requests=kept,
            answered=self.answered.among(answered),
            refused=None if self.refused is None else len(kept),
        )


def directions_at(samples: Samples, recipe: DirectionRecipe) -> dict[str, dict[int, Direction]]:
    """Directions at every place where both classes were captured."""
    places = (DECISION, OPENER) if samples.holds(OPENER) else (DECISION,)
    return {place: directions(samples, recipe, place) for place in places}


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
    recipe = recipe or DirectionRecipe()
    lm = lm.using(watch=within(lm.watch, "fit"))
    requests, refused = (refuse, None) if all_requests else refused_among(lm, refuse, judge)
    blocks, writers = lm.resid_post, lm.writer_inputs
    capture = Capture(lm, (*blocks, *writers))
    positive = capture(refuse, DECISION, True)
    parts = [
        positive.at(blocks),
        positive.at(writers).of(requests.fingerprints),
        capture(comply, DECISION, False),
    ]
    if opener:
        said = replace(capture, lm=answering(lm, opener))
        parts += [said(requests, OPENER, True), said(comply, OPENER, False)]
    capture = replace(capture, sites=writers)
    if pool is not None:
        parts.append(capture(pool, POOL, False))
    texts = Texts() if respond_to is None else written(lm, respond_to)
    parts += responses(capture, texts)
    used = {"refuse": refuse, "comply": comply, "pool": pool, "responses": respond_to}
    read = {role: each for role, each in used.items() if each is not None}
    samples = Samples(tuple(parts))
    return Fitted(
        samples=samples,
        probes=Probes(samples),
        directions=directions_at(samples, recipe),
        requests=requests,
        answered=comply,
        recipe=recipe,
        opener=opener,
        texts=texts,
        responses=0 if respond_to is None else len(respond_to),
        judge=judge,
        refused=refused,
        seen=frozenset().union(*(each.fingerprints for each in read.values())),
        prompts={f"{role}: {each.source}": each.sha256 for role, each in read.items()},
    )


def refused_among(lm: LM, requests: PromptSet, judge: Judge) -> tuple[PromptSet, int | None]:
    """The requests that the model refuses and their number; all and None below ``FEWEST_REFUSED``."""
    judged = generate_and_judge(lm, requests, tokens=OPENING, by=judge)
    if not judged.n or judged.count < FEWEST_REFUSED:
        return requests, None
    return requests.chosen(judged.flagged), judged.count


def responses(capture: Capture, texts: Texts) -> list[Part]:
    """Rows of the writers' inputs at the last tokens of responses, in chats and as plain text."""
    batches = (batch for batch in (texts.chats, texts.plain) if batch is not None)
    last = tuple(range(-LAST_TOKENS, 0))
    return [capture(batch, RESPONSE, False, at=last) for batch in batches]


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
