"""Judges: scores of responses, by word lists, traits, likelihoods and judging models.

Every judge has ``score(prompts, responses)``, one number per response or None for one that cannot be judged;
:func:`cached` keeps scores, and :func:`agreement` compares them with labels.
"""

from __future__ import annotations

from interp.judges.agreement import Agreement, agreement
from interp.judges.caching import CachedJudge, cached
from interp.judges.chat import ChatJudge
from interp.judges.endpoint import EndpointJudge
from interp.judges.keywords import DECLINE_JUDGE, ENGLISH_JUDGE, KeywordJudge
from interp.judges.likelihood import LikelihoodRatio
from interp.judges.naming import SPELLINGS, named, spelled
from interp.judges.protocol import Judge
from interp.judges.rubric import COHERENCE, Rubric
from interp.judges.traits import TRAITS, TraitJudge

__all__ = [
    "COHERENCE",
    "DECLINE_JUDGE",
    "ENGLISH_JUDGE",
    "SPELLINGS",
    "TRAITS",
    "Agreement",
    "CachedJudge",
    "ChatJudge",
    "EndpointJudge",
    "Judge",
    "KeywordJudge",
    "LikelihoodRatio",
    "Rubric",
    "TraitJudge",
    "agreement",
    "cached",
    "named",
    "spelled",
]
