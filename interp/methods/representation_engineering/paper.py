"""What the representation-engineering module reproduces."""

from __future__ import annotations

from interp.study import FigureSpec, Paper

KEY = "representation_engineering"
HOME = f"interp.methods.{KEY}"
BIG = "a model of 7 billion parameters and a GPU"

PAPER = Paper(
    key=KEY,
    title="Representation Engineering for Large-Language Models: Survey and Research Challenges",
    arxiv="2502.17601",
    figures=(
        FigureSpec("planted", "A planted direction in noise", f"{HOME}.planted:planted"),
        FigureSpec(
            "planted_nuisance",
            "A planted direction beside a louder one",
            f"{HOME}.planted:planted_nuisance",
        ),
        FigureSpec("reading", "Reading by block and estimator", f"{HOME}.reading:reading"),
        FigureSpec(
            "cosines", "Directions of blocks compared", f"{HOME}.stability:cosines_by_block"
        ),
        FigureSpec("stability", "Stability of the direction", f"{HOME}.stability:stability"),
        FigureSpec("separation", "d′ by block", f"{HOME}.separation:separation"),
        FigureSpec("projection", "One block in a plane", f"{HOME}.separation:projection"),
        FigureSpec("tone", "Steering tone, block by block", f"{HOME}.tone:tone"),
        FigureSpec(
            "bypass_induce_kl",
            "Bypass, induce and KL by block and position",
            f"{HOME}.causal:causal",
            stands_for="Arditi et al. 2406.11717, direction selection (bypass / induce / KL by layer "
            "and position)",
        ),
        FigureSpec("frontier", "Effect against KL of every edit", f"{HOME}.frontier:frontier"),
        FigureSpec("bar", "All edits on the shipped report split", f"{HOME}.frontier:bar"),
        FigureSpec(
            "bar_coder",
            "Edits of a second model on the shipped report split",
            f"{HOME}.second_model:bar_coder",
            model="qwen2.5-coder-1.5b",
            limit=32,
        ),
        FigureSpec("narrowness", "Requests that look otherwise", f"{HOME}.narrowness:narrowness"),
        FigureSpec("flags", "Changes to heretic's direction", f"{HOME}.flags:flags"),
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
