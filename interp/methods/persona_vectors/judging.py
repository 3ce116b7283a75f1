"""Judges of a trait: which one is taken, how coherence is judged, and whether a judge sees the trait."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from interp.errors import JudgeError, PersonaError
from interp.judges import (
    COHERENCE,
    Agreement,
    CachedJudge,
    ChatJudge,
    EndpointJudge,
    Judge,
    KeywordJudge,
    LikelihoodRatio,
    Rubric,
    TraitJudge,
    agreement,
    cached,
    named,
)
from interp.lm import LM
from interp.methods.persona_vectors.traits import Trait
from interp.opening import open_model
from interp.study import Study

SERVED = "openai:"
CHANCE = 0.5
"""AUC of a judge that cannot tell the sides."""
HELD_OUT_PAIRS = 2
"""Pairs of instructions that a likelihood ratio reads, and no rollout is made with."""


def default_judge(lm: LM, trait: Trait) -> Judge:
    """The trait's programmatic score; without one, the model itself with the trait's rubric."""
    return TraitJudge(trait.score) if trait.score else rubric_judge(lm, trait)


def rubric_judge(lm: LM, trait: Trait) -> ChatJudge:
    """A chat model with the trait's rubric, without an edit."""
    return ChatJudge(lm, Rubric(trait.eval_prompt, trait.name))


def held_out_ratio(
    lm: LM, trait: Trait, held_out: int = HELD_OUT_PAIRS
) -> tuple[Trait, LikelihoodRatio]:
    """The trait without its last pairs of instructions, and the likelihood ratio between their two sides."""
    rest = trait.without_pairs(held_out)
    pairs = range(len(rest.instructions), len(trait.instructions))
    sides = [tuple(trait.system(i, positive=side) for i in pairs) for side in (True, False)]
    return rest, LikelihoodRatio(lm, *sides, name=f"likelihood ratio of {trait.name}")


def named_judge(spelling: str, lm: LM, trait: Trait) -> tuple[Trait, Judge]:
    """The judge that a name means, and the trait without what the judge reads of it.

    spelling: ``auto``, ``llr``, ``rubric``, ``rubric:MODEL``, ``rubric:openai:MODEL@URL``, or one of
    :data:`interp.judges.SPELLINGS`. Raises JudgeError for any other.
    """
    own = {"auto": default_judge, "rubric": rubric_judge}
    if spelling in own:
        return trait, own[spelling](lm, trait)
    if spelling == "llr":
        return held_out_ratio(lm, trait)
    kind, _, model = spelling.partition(":")
    if kind != "rubric":
        return trait, named(spelling, lm)
    if not model:
        raise JudgeError("this judge is spelled rubric:MODEL or rubric:openai:MODEL@URL")
    rubric = Rubric(trait.eval_prompt, trait.name)
    if model.startswith(SERVED):
        name, _, url = model.removeprefix(SERVED).partition("@")
        return trait, EndpointJudge(name, rubric, url or None)
    return trait, ChatJudge(open_model(model, watch=lm.watch), rubric)


def matching_coherence(judge: Judge) -> Judge | None:
    """The same judging model with the rubric of coherence; None for judges that read no rubric."""
    if isinstance(judge, CachedJudge):
        inner = matching_coherence(judge.judge)
        return None if inner is None else replace(judge, judge=inner)
    if isinstance(judge, ChatJudge | EndpointJudge):
        return replace(judge, rubric=COHERENCE)
    return None


def keeping(judge: Judge, study: Study) -> Judge:
    """The judge with its scores kept where the study keeps its steps; word lists are scored anew."""
    if study.kept is None or isinstance(judge, TraitJudge | KeywordJudge):
        return judge
    return cached(judge, study.kept / "scores", watch=study.watch)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Agreement of a judge with the side that responses to held-out questions were made on."""

    agreement: Agreement

    @property
    def at_chance(self) -> bool:
        """Whether the interval of the AUC holds 0.5 or lies below; the AUC where there is no interval."""
        low = self.agreement.auc_interval or (self.agreement.auc,)
        return low[0] <= CHANCE

    def as_json(self) -> dict[str, Any]:
        return self.agreement.as_json()


def check_contrast(
    judge: Judge, prompts: list[str], responses: list[str], labels: list[bool]
) -> Contrast:
    """How well a judge tells the two sides. Raises PersonaError, which names the judge, at chance."""
    try:
        found = Contrast(agreement(judge, prompts, responses, labels))
    except JudgeError as error:
        why = f"the judge {judge.name} cannot be checked on held-out questions: {error}"
        raise PersonaError(why) from None
    if found.at_chance:
        raise PersonaError(
            f"the judge {judge.name} is at chance on held-out questions ({found.agreement}): it cannot see "
            "the trait, or the model does not show it; take another judge, clearer instructions, example "
            "turns (demonstrations) or a larger model"
        )
    return found
