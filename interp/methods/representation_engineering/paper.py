"""What the representation-engineering module reproduces."""

from __future__ import annotations

from typing import Any

from interp.study import FigureSpec, Paper

KEY = "representation_engineering"
HOME = f"interp.methods.{KEY}"
BIG = "a model of 7 billion parameters and a GPU"


def own(name: str, title: str, function: str, **more: Any) -> FigureSpec:
    """A figure that is measured here. function: ``module:function`` of this package."""
    return FigureSpec(name, title, f"{HOME}.{function}", **more)


PAPER = Paper(
    key=KEY,
    title="Representation Engineering for Large-Language Models: Survey and Research Challenges",
    arxiv="2502.17601",
    figures=(
        own("planted", "A planted direction in noise", "planted:planted"),
        own(
            "planted_nuisance",
            "A planted direction beside a louder one",
            "planted:planted_nuisance",
        ),
        own("reading", "Reading by block and estimator", "reading:reading"),
        own("cosines", "Directions of blocks compared", "reading:cosines_by_block"),
        own("stability", "Stability of the direction", "reading:stability"),
        own("separation", "d′ by block", "reading:separation"),
        own("projection", "One block in a plane", "reading:projection"),
        own("tone", "Steering tone, block by block", "tone:tone"),
        own(
            "bypass_induce_kl",
            "Bypass, induce and KL by block and position",
            "causal:causal",
            stands_for="Arditi et al. 2406.11717, direction selection (bypass / induce / KL by layer "
            "and position)",
        ),
        own("frontier", "Effect against KL of every edit", "frontier:frontier"),
        own("bar", "All edits on the shipped report split", "frontier:bar"),
        own(
            "bar_coder",
            "Edits of a second model on the shipped report split",
            "frontier:bar_coder",
            model="qwen2.5-coder-1.5b",
            limit=32,
        ),
        own("narrowness", "Requests that look otherwise", "narrowness:narrowness"),
        own("flags", "Changes to heretic's direction", "flags:flags"),
        FigureSpec(
            "lat_truthfulqa",
            "LAT on TruthfulQA",
            stands_for="Zou et al. 2310.01405, TruthfulQA MC1 of LLaMA-2 7B and 70B",
            needs=BIG,
        ),
        FigureSpec(
            "caa_layers",
            "Contrastive addition by layer",
            stands_for="Panickssery et al. 2312.06681, layer sweep of Llama 2 7B and 13B",
            needs=BIG,
        ),
        FigureSpec(
            "mass_mean_nie",
            "Probe accuracy is not causality",
            stands_for="Marks and Tegmark 2310.06824, indirect effects of probe directions",
            needs=BIG + ", and the authors' true/false data",
        ),
    ),
)
