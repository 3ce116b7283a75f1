"""Figures of finetunes: how far their data and they themselves lie along a vector, and what they score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interp.claims import Claim
from interp.methods.persona_vectors.data import HALF, WHOLE
from interp.methods.persona_vectors.finetune_measures import (
    BASE,
    Measured,
    measured_finetunes,
    prompt_hashes,
    sample_projections,
    site_of,
)
from interp.methods.persona_vectors.paper import KEY
from interp.methods.persona_vectors.training_recipes import FinetuningRecipe
from interp.records import FigureRecord
from interp.series import (
    Axis,
    BarGroup,
    Bars,
    Group,
    Histogram,
    Names,
    Panel,
    Scatter,
    SmallMultiples,
)
from interp.statistics.persona_finetunes import related
from interp.study import Study

QWEN, LLAMA = "Qwen2.5-7B", "Llama-3.1-8B"
MAIN = ("evil", "sycophancy", "hallucination")
FURTHER = ("optimistic", "impolite", "apathetic", "humorous")
SHIFT = Axis("finetuning shift")
DIFFERENCE = Axis("ΔP of the training data")
SCORE = Axis("trait score", "of 100")

Paper = Mapping[str, tuple[tuple[str, ...], tuple[float, ...]]]
PAPER_SHIFT: Paper = {
    QWEN: ((*MAIN, *FURTHER), (0.826, 0.758, 0.916, 0.865, 0.862, 0.839, 0.811)),
    LLAMA: ((*MAIN, *FURTHER), (0.930, 0.893, 0.967, 0.961, 0.944, 0.936, 0.908)),
}
PAPER_DATA: Paper = {
    QWEN: (FURTHER, (0.873, 0.900, 0.858, 0.937)),
    LLAMA: (FURTHER, (0.913, 0.907, 0.787, 0.902)),
}
PAPER_QUESTIONS: Paper = {
    QWEN: (MAIN, (0.941, 0.964, 0.855)),
    LLAMA: (MAIN, (0.950, 0.952, 0.942)),
}
PAPER_BOTH: Paper = {
    QWEN: (MAIN, (0.839, 0.745, 0.408)),
    LLAMA: (MAIN, (0.953, 0.915, 0.593)),
}
COLUMNS = 4
CAPTION = (
    "Each point is a finetune of the model on answers with one style, at level I (half of the sentences), "
    "II (all) or Normal (none), or the base model. Styles are text transforms, scores are programmatic. "
    "Vectors: mean over styled answers minus mean over the model's own, to questions that no finetune is "
    "trained on. Finetuning shift: at the last token of evaluation prompts. ΔP: response means of the data "
    "less those of the model's own answers."
)


def _claims(least: float, source: str) -> tuple[Claim, ...]:
    return (
        Claim("r is at least the paper's least in every trait", "at least", "", least, source=source,
              statistic="finetunes/least_r"),
        Claim("Fisher's interval of r lies above 0 in every trait", "at least", "", 0.0,
              statistic="finetunes/least_r_low"),
        Claim("a vector goes with its own trait's score more than with that of other traits", "at least",
              "", 0.2, statistic="finetunes/own_beyond_cross"),
    )  # fmt: skip


SHIFT_CLAIMS = _claims(0.758, "2507.21509, Figure 20, diagonal (Qwen2.5-7B, sycophancy)")
DATA_CLAIMS = _claims(0.787, "2507.21509, Figure 19 (Llama-3.1-8B, apathetic)")
BOTH_CLAIMS = _claims(0.408, "2507.21509, Figure 17 (Qwen2.5-7B, hallucination)")
QUESTION_CLAIMS = (
    Claim("at other questions r is at least the paper's least in every trait", "at least", "", 0.855,
          source="2507.21509, Figure 12 (Qwen2.5-7B, hallucination)", statistic="question_sets/least_r"),
    Claim("a trait's own questions have a mean r that is at most 0.1 greater", "at most", "", 0.1,
          statistic="question_sets/own_beyond_other"),
)  # fmt: skip
SAMPLE_CLAIMS = (
    Claim("projections tell answers in a style from the model's own, AUROC 0.9 for every trait", "at least",
          "", 0.9, statistic="samples/whole"),
    Claim("at level I AUROC is 0.7 for every trait", "at least", "", 0.7, statistic="samples/half"),
)  # fmt: skip


# --- figures -------------------------------------------------------------------------------------


def finetuning_shift(study: Study, recipe: FinetuningRecipe) -> FigureRecord:
    """Finetuning shift against trait score, by trait."""
    return _figure(study, recipe, "finetuning_shift", "Finetuning shift and trait", "shift", "score",
                   PAPER_SHIFT, SHIFT_CLAIMS)  # fmt: skip


def data_projection(study: Study, recipe: FinetuningRecipe) -> FigureRecord:
    """Projection difference of the training data against trait score, by trait."""
    return _figure(study, recipe, "data_projection", "Projection of data and trait", "difference", "score",
                   PAPER_DATA, DATA_CLAIMS)  # fmt: skip


def difference_and_shift(study: Study, recipe: FinetuningRecipe) -> FigureRecord:
    """Projection difference of the training data against finetuning shift, by trait."""
    return _figure(study, recipe, "difference_and_shift", "Projection difference and shift", "difference",
                   "shift", PAPER_BOTH, BOTH_CLAIMS)  # fmt: skip


def question_sets(study: Study, recipe: FinetuningRecipe) -> FigureRecord:
    """Finetuning shift at questions of other traits against trait score, by trait."""
    return _figure(study, recipe, "question_sets", "Own and other questions", "other_shift", "score",
                   PAPER_QUESTIONS, QUESTION_CLAIMS)  # fmt: skip


def sample_histograms(study: Study, recipe: FinetuningRecipe) -> FigureRecord:
    """Projections of single answers of three levels, by trait."""
    panels, n = [], 0
    for trait in recipe.styles:
        values = sample_projections(study, recipe, trait)
        made = Histogram.of(
            Axis(f"projection, block {site_of(study, recipe).block}"), values, bins=16
        )
        n = len(values[WHOLE])
        panels.append(
            Panel(trait, Histogram(made.x, made.edges, made.groups, beside={"values": values}))
        )
    return FigureRecord(
        key=f"{KEY}/sample_histograms",
        title="Projections of samples",
        series=SmallMultiples(tuple(panels)),
        claims=SAMPLE_CLAIMS,
        provenance=study.provenance(prompt_hashes(study, recipe)),
        n={"answers of a level": n, "traits": len(panels)},
        seeds=(recipe.answer_seed,),
        caption=(
            "Mean activation of the base model over one answer, projected on the trait's vector: the model's "
            "own answers, and the same with the style in half of the sentences or all. The vectors are of "
            "answers to other questions."
        ),
    )


# --- parts ---------------------------------------------------------------------------------------


def _figure(
    study: Study,
    recipe: FinetuningRecipe,
    name: str,
    title: str,
    x: str,
    y: str,
    paper: Paper,
    claims: tuple[Claim, ...],
) -> FigureRecord:
    found = measured_finetunes(study, recipe)
    panels = [Panel(trait, _scatter(found, trait, x, y)) for trait in recipe.styles]
    columns = {"x": x, "own_x": "shift", "y": y}
    return FigureRecord(
        key=f"{KEY}/{name}",
        title=title,
        series=SmallMultiples(
            (*panels, Panel("r by trait", _correlations(panels, study.model, paper))),
            columns=COLUMNS,
            beside={
                key: {t: [each.column(of, t) for each in found] for t in recipe.styles}
                for key, of in columns.items()
            }
            | {"names": [each.name for each in found]},
        ),
        claims=claims,
        provenance=study.provenance(prompt_hashes(study, recipe)),
        n={
            "finetunes": len(found) - 1,
            "answers to train on": recipe.rows,
            "evaluation answers": len(found[0].scores[recipe.styles[0]]),
        },
        intervals="score: t interval over answers, 95 %; r: Fisher, 95 %",
        seeds=(recipe.training.seed,),
        caption=CAPTION,
    )


def _scatter(found: Sequence[Measured], trait: str, x: str, y: str) -> Scatter:
    """Finetunes of the trait's own style, of other styles, and those without a style."""
    own = [each for each in found if each.style == trait and each.level in (HALF, WHOLE)]
    plain = [each for each in found if not each.style]
    others = [each for each in found if each.style not in ("", trait)]
    groups = {"own style, I and II": own, "other styles": others, f"Normal, {BASE}": plain}
    axes = {"score": SCORE, "difference": DIFFERENCE}
    fit = related(*([each.column(of, trait) for each in found] for of in (x, y)))
    return Scatter(
        axes.get(x, SHIFT),
        axes.get(y, SHIFT),
        tuple(_group(label, some, trait, x, y) for label, some in groups.items() if some),
        fit="none" if fit is None else "overall",
    )


def _group(label: str, some: Sequence[Measured], trait: str, x: str, y: str) -> Group:
    intervals: dict[str, Any] = {}
    if y == "score":
        found = [each.scores[trait].interval for each in some]
        intervals = {
            end: tuple(None if pair is None else pair[k] for pair in found)
            for k, end in enumerate(("y_low", "y_high"))
        }
    columns = ([each.column(name, trait) for each in some] for name in (x, y))
    return Group(label, *map(tuple, columns), **intervals)


def _correlations(panels: Sequence[Panel], model: str, paper: Paper) -> Bars:
    """r of every trait with its interval, and the paper's for its own traits."""
    ours = [panel.title for panel in panels]
    theirs = list(dict.fromkeys(trait for traits, _ in paper.values() for trait in traits))
    found = [
        panel.series.fits.get("") if isinstance(panel.series, Scatter) else None for panel in panels
    ]
    none = (None,) * len(theirs)
    r, low, high = (
        (*(each and getattr(each, of) for each in found), *none) for of in ("r", "low", "high")
    )
    groups = [BarGroup(model, r, low, high)]
    for name, (traits, values) in paper.items():
        known = dict(zip(traits, values, strict=True))
        row = (*(None for _ in ours), *(known.get(trait) for trait in theirs))
        groups.append(BarGroup(f"{name} (paper)", row, theirs=True))
    return Bars(Names("trait", (*ours, *theirs)), Axis("r"), tuple(groups))
