"""What judging responses with the local model costs beside generating them, in pairs.

    .venv/bin/python benchmarks/judging.py [--model smollm2] [--responses 200] [--tokens 64] [--rounds 3]

Floors: a judge reads every prompt and response once, the rubric before them once a batch, and takes one more
decoding step for each beginning of a number (11 where numbers are digits); a generation reads every prompt
and takes one decoding step a token.
"""

from __future__ import annotations

import argparse
from typing import Any

from timing import hardware, paired, report

from interp import load_class, open_model
from interp.judges import COHERENCE, ChatJudge, LikelihoodRatio
from interp.lm import LM


def variants(lm: LM, prompts: list[str], tokens: int) -> dict[str, Any]:
    """Calls by name; all judges score the same responses."""
    responses = lm.generate(prompts, tokens=tokens).texts
    rubric = ChatJudge(lm, COHERENCE)
    ratio = LikelihoodRatio(lm, "Be very enthusiastic!", "Be sober and dry.")
    return {
        "generating": lambda: lm.generate(prompts, tokens=tokens),
        "chat model with a rubric": lambda: rubric.score(prompts, responses),
        "likelihood ratio": lambda: ratio.score(prompts, responses),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--responses", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    lm = open_model(given.model)
    prompts = list(load_class("answerable", "comply").prompts)[: given.responses]
    rows = paired(variants(lm, prompts, given.tokens), against="generating", rounds=given.rounds)
    result = {"hardware": hardware(), "model": given.model, "tokens": given.tokens}
    report("judging", result | {"responses": len(prompts), "variants": rows})


if __name__ == "__main__":
    main()
