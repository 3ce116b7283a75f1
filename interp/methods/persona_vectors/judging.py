"""Judges of a trait: which one is taken, how coherence is judged, and whether a judge sees the trait."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from interp.errors import JudgeError, PersonaError
from interp.judges import (
    COHERENCE,
    Agreement,
    ChatJudge,
    EndpointJudge,
    Judge,
    KeywordJudge,
    LikelihoodRatio,
    Rubric,
    TraitJudge,
    agreement,
    cached,
)
from interp.lm import LM
from interp.methods.persona_vectors.traits import Trait
from interp.study import Study

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


def matching_coherence(judge: Judge) -> Judge | None:
    """The same judging model with the rubric of coherence; None for judges that read no rubric."""
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
            "the trait, or the model does not show it; take another judge, clearer instructions or a larger "
            "model"
        )
    return found
