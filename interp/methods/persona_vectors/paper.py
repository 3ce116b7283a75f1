"""What the persona-vector module reproduces, and what each figure still needs."""

from __future__ import annotations

from interp.study import FigureSpec, Paper

KEY = "persona_vectors"
BIG = "a model of 7 billion parameters, a GPU and the paper's judge"
SWEEP = "a sweep over blocks and strengths, which this version does not measure yet"
MONITOR = "monitoring on graded prompts, which this version does not measure yet"
FINETUNES = "finetunes with and without steering, which this version does not measure yet"
DATA = BIG + ", and finetunes on the paper's data"


def _spec(name: str, title: str, stands_for: str, needs: str) -> FigureSpec:
    return FigureSpec(name, title, stands_for=f"2507.21509, {stands_for}", needs=needs)


PAPER = Paper(
    key=KEY,
    title="Persona Vectors: Monitoring and Controlling Character Traits in Language Models",
    arxiv="2507.21509",
    figures=(
        _spec("layer_sweep", "Trait score by steered block", "Figures 3 and 13", SWEEP),
        _spec("monitoring_system", "Monitoring graded system prompts", "Figure 4", MONITOR),
        _spec("monitoring_shots", "Monitoring many-shot prompts", "Figure 14", MONITOR),
        _spec("monitoring_correlations", "Overall and within-condition r", "Table 2", MONITOR),
        _spec("finetunes", "Traits of 24 finetunes", "Figures 5 and 15", DATA),
        _spec("finetuning_shift", "Finetuning shift and trait", "Figures 6 and 18", FINETUNES),
        _spec("prevention", "Steering after and during a finetune", "Figures 7 and 26", FINETUNES),
        _spec("data_projection", "Projection of data and trait", "Figures 8 and 19", FINETUNES),
        _spec("sample_histograms", "Projections of samples", "Figure 9", FINETUNES),
        _spec("chat_data", "Subsets of real chat data", "Figures 10 and 34", DATA),
        _spec("positions", "Reductions compared at equal norm", "Figure 11", SWEEP),
        _spec("question_sets", "Own and other questions", "Figure 12", FINETUNES),
        _spec("human_agreement", "Human and judge", "Table 1", "people who judge answers"),
        _spec("difference_and_shift", "Projection difference and shift", "Figure 17", FINETUNES),
        _spec("cosines", "Cosines between traits", "Figure 20", SWEEP),
        _spec("projection_variants", "Cheaper projections of data", "Figures 21 to 23", DATA),
        _spec("narrow_skill", "Skill kept, steering and prompting", "Figures 24 and 25", DATA),
        _spec("training_controls", "CAFT and a regulariser", "Figures 27 and 28", FINETUNES),
        _spec("benign_data", "Prevention on benign data", "Figure 29", DATA),
        _spec("new_facts", "Facts learned under steering", "Figures 30 and 31", DATA),
        _spec("data_filter", "Filtering chat data", "Figures 32 and 33, Table 6", DATA),
        _spec(
            "sae_features", "Sparse features of a vector", "Figure 35, Tables 8 to 10",
            "sparse autoencoders of the paper's models",
        ),
    ),
)  # fmt: skip
