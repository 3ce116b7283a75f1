"""A small study gives the numbers that it gave before version 0.2.0 (``numbers_0.1.json``), to five digits.

Tiny models in float64, so that batching and padding do not reach the digits that are compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.backends.opening import wrap
from interp.data.prompts import PromptSet
from interp.evaluate.measure import Bench
from interp.lm import LM
from interp.methods.heretic import Kernel, components, heretic_delta, residual_directions
from interp.methods.refusal import as_delta, build, fit
from interp.methods.refusal.attributing import attribution_figure, fit_openers
from interp.methods.representation_engineering.seed_run import SeedRun
from interp.models import tiny_model
from interp.models.tiny import byte_tokenizer
from interp.papers import load_paper
from interp.recipes import AblationEdit, LeastDisturbanceEdit
from interp.samples import DECISION
from interp.study import Study, measure

GOLDEN = Path(__file__).parent / "data" / "numbers_0.1.json"
WORDS = "a key, the red bag, my very old car, one box, some paper, her blue hat, this, that door"
THINGS = [f"{word} {when}" for word in WORDS.split(", ") for when in ("now", "today")]
REFUSE = PromptSet(tuple(f"where did I put {thing}?" for thing in THINGS), "r")
COMPLY = PromptSet(tuple(f"how do people use {thing}?" for thing in THINGS), "c")
HELD = (
    PromptSet(tuple(f"where is {w} of mine?" for w in WORDS.split(", ")), "held r"),
    PromptSet(tuple(f"what is {w} for?" for w in WORDS.split(", ")), "held c"),
)
OPENER = "I"


class LetterJudge:
    """Calls a response refused that has few letters."""

    name, threshold = "letters", 0.5

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        return [float(sum(c.isalpha() for c in text) < 0.4 * len(text)) for text in responses]

    def as_json(self) -> dict[str, Any]:
        return {"kind": "letters"}


@cache
def study_of_edits() -> dict[str, Any]:
    model = tiny_model(
        "llama", vocab_size=259, max_position_embeddings=512, num_hidden_layers=4,
        dtype=torch.float64,
    )  # fmt: skip
    lm = LM(wrap(model, byte_tokenizer(), source="tiny"))
    judge = LetterJudge()
    fitted = fit(lm, REFUSE, COMPLY, pool=HELD[1], opener=OPENER, judge=judge)
    bench = Bench(
        lm, *HELD, response_tokens=4, continuation=6, passages=["Water boils at sea level."],
        judge=judge,
    )  # fmt: skip
    closed = LeastDisturbanceEdit(
        strength=1.0, block=3, first_block=1, attention=1.0, ridge=0.02, learn=0.0
    )
    opened = replace(
        closed, after_opener=OPENER, strength=0.6, opener_strength=2.0, attention=0.3, ridge=0.01
    )
    recipes = {
        "ablation": AblationEdit(1.0, 3, 0),
        "closed form": closed,
        "after the opener": opened,
    }
    deltas = {
        name: as_delta(lm, fitted, build(lm, fitted, recipe)) for name, recipe in recipes.items()
    }
    found = residual_directions(lm, REFUSE, COMPLY)
    kernels = dict.fromkeys(components(lm.anatomy), Kernel(1.1, 2.5, 0.4, 2.0))
    deltas["heretic"] = heretic_delta(lm, found, kernels, direction_index=1.5)
    some = {str(b): d.vector[:8].tolist() for b, d in fitted.directions[DECISION].items()}
    openers = fit_openers(lm, REFUSE, COMPLY)
    figure = attribution_figure(lm, *HELD, openers=openers).as_json()["series"]
    return {
        "directions": some,
        "refused in fit": fitted.refused,
        "heretic's directions": found[:, :8].tolist(),
        "rows": {"original": row(bench.row("original"))}
        | {name: row(bench.row(name, delta)) for name, delta in deltas.items()},
        "attribution": {
            "openers": list(openers.ids),
            "measured": figure["measured"],
            "parts": {part["kind"]: part["values"] for part in figure["parts"]},
        },
    }


def row(found: Any) -> dict[str, Any]:
    names = ("refusals", "over_refusals", "kl_first", "kl_continuation", "nll")
    return {name: found.as_json()[name] for name in names}


@cache
def study_of_figures() -> dict[str, Any]:
    study = Study("tiny:llama", limit=4, seeds=2, loading={"dtype": "float64"})
    paper = load_paper("representation_engineering")
    causal, cosines = (
        measure(paper, name, study).as_json()["series"]["panels"]
        for name in ("bypass_induce_kl", "cosines")
    )
    run = SeedRun(study, 1)
    return {
        "causal": {panel["label"]: panel["values"] for panel in causal},
        "cosines": cosines[0]["values"],
        "partial ablation": run.points("partial ablation"),
    }


def same(found: Any, golden: Any, where: str) -> None:
    """Both have the same structure, and numbers that agree to five digits."""
    if isinstance(golden, Mapping):
        assert found.keys() == golden.keys(), where
        for name, value in golden.items():
            same(found[name], value, f"{where}/{name}")
    elif isinstance(golden, list):
        assert len(found) == len(golden), where
        for number, value in enumerate(golden):
            same(found[number], value, f"{where}/{number}")
    elif isinstance(golden, float):
        assert found == pytest.approx(golden, rel=1e-5, abs=1e-9), where
    else:
        assert found == golden, where


@pytest.mark.parametrize(
    ("name", "make"), [("edits", study_of_edits), ("figures", study_of_figures)]
)
def test_the_numbers_are_those_of_the_earlier_version(name: str, make: Any) -> None:
    same(make(), json.loads(GOLDEN.read_text(encoding="utf-8"))[name], name)


if __name__ == "__main__":
    made = {"edits": study_of_edits(), "figures": study_of_figures()}
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
