"""Figures of monitoring: projections of the last prompt token against trait scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from interp.claims import Claim
from interp.errors import PersonaError, RecordError
from interp.methods.persona_vectors.monitoring import (
    Monitored,
    graded_systems,
    many_shots,
    monitor,
    overall,
    within_conditions,
)
from interp.methods.persona_vectors.paper import KEY
from interp.methods.persona_vectors.recipe import SteeringRecipe
from interp.methods.persona_vectors.rollouts import Context
from interp.methods.persona_vectors.studied import Studied, about_traits, steerable
from interp.records import FigureRecord
from interp.series import Axis, Cells, Column, Group, Panel, Scatter, SmallMultiples, Table
from interp.study import Study

MOST_SHOTS = 20
SHOTS = (0, 5, 10, 15, 20)
THEIRS = {
    "evil": ((0.747, 0.511), (0.755, 0.735)),
    "sycophancy": ((0.798, 0.669), (0.817, 0.813)),
    "hallucination": ((0.830, 0.245), (0.634, 0.400)),
}
"""Overall and within-condition r of system prompts and of shots (2507.21509, Table 2, Qwen2.5-7B)."""

SYSTEM = (
    Claim("projections and scores correlate with r of at least .5 in the mean over traits",
          "at least", "", 0.5, statistic="monitoring/mean_r"),
)  # fmt: skip
MANY = (
    Claim("projections and scores correlate with r of at least .5 in the mean over traits",
          "at least", "", 0.5, statistic="monitoring/mean_r"),
    Claim("and with at least .3 in every trait",
          "at least", "", 0.3, statistic="monitoring/least_r"),
)  # fmt: skip
CORRELATIONS = (
    Claim("between conditions there is more to see than within them, as in the paper",
          "at least", "", 0.0, statistic="monitoring_correlations/overall_beyond_within"),
)  # fmt: skip


def systems_of(each: Studied) -> tuple[Context, ...]:
    """The graded system texts of a trait."""
    return graded_systems(each.trait)


def shots_of(each: Studied) -> tuple[Context, ...]:
    """Conditions of up to 20 earlier turns that show the trait: surviving responses, one a question."""
    rows = each.pairs[0]
    examples = dict(zip(rows.prompts, rows.responses, strict=True))
    most = min(MOST_SHOTS, len(examples))
    return many_shots(list(examples.items())[:most], [n for n in SHOTS if n <= most])


KINDS: dict[str, Callable[[Studied], tuple[Context, ...]]] = {
    "system": systems_of,
    "shots": shots_of,
}


def monitored(each: Studied, kind: str) -> list[Monitored]:
    """Projections and scores of one trait at its chosen site, kept as a step of the study."""
    conditions, chosen = KINDS[kind](each), each.chosen()
    recipe = replace(each.recipe.evaluation, samples=each.recipe.samples_monitored)
    questions = each.halves[1]

    def measured() -> list[dict[str, Any]]:
        found = monitor(
            each.lm, each.persona, chosen.site, conditions, questions, each.judge, recipe
        )
        return [asdict(row) for row in found]

    about = {
        "trait": each.trait.sha256,
        "extraction": each.recipe.extraction,
        "evaluation": recipe,
        "conditions": list(conditions),
        "questions": list(questions),
        "block": chosen.site.block,
    }
    return [Monitored(**row) for row in each.study.resumed(f"persona_{kind}", measured, **about)]


def monitoring_system(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Projection and score of graded system prompts (Figure 4)."""
    return _scatter(study, recipe, "system", "Monitoring graded system prompts", SYSTEM)


def monitoring_shots(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Projection and score of many-shot prompts (Figure 14)."""
    return _scatter(study, recipe, "shots", "Monitoring many-shot prompts", MANY)


def _scatter(
    study: Study, recipe: SteeringRecipe, kind: str, title: str, claims: Sequence[Claim]
) -> FigureRecord:
    found, failed = steerable(study, recipe)
    panels, left_out = [], {}
    for each in found:
        rows = monitored(each, kind)
        try:
            panels.append(Panel(each.trait.name, _panel(rows)))
        except RecordError as error:  # scores that do not vary have no correlation
            left_out[each.trait.name] = str(error)
    if not panels:
        raise PersonaError(f"no trait's scores vary between the conditions of {title}: {left_out}")
    beside = about_traits(found, failed) | {"without_correlation": left_out}
    prompts = {each.trait.name: each.trait.sha256 for each in found}
    first = found[0]
    return FigureRecord(
        f"{KEY}/monitoring_{kind}",
        title,
        SmallMultiples(panels, beside=beside),
        study.provenance(prompts),
        claims=claims,
        n={"questions": len(first.halves[1]), "answers per point": recipe.samples_monitored},
        seeds=(recipe.evaluation.seed,),
        intervals="Fisher, 95 %",
        caption=(
            "One point a question and condition; conditions are numbered from least to most of the trait. "
            "The projection is of the last prompt token at the block that the layer sweep chose."
        ),
    )


def _panel(rows: Sequence[Monitored]) -> Scatter:
    names = list(dict.fromkeys(row.condition for row in rows))
    groups = [
        Group(
            name,
            x=[row.projection for row in rows if row.condition == name],
            y=[row.score for row in rows if row.condition == name],
        )
        for name in names
    ]
    x = Axis("projection of the last prompt token")
    return Scatter(x, Axis("trait score", "0–100", limits=(-5, 105)), groups, fit="overall")


def monitoring_correlations(study: Study, recipe: SteeringRecipe) -> FigureRecord:
    """Overall and within-condition r of both kinds of conditions (Table 2)."""
    found, failed = steerable(study, recipe)
    columns = [
        Column(f"{kind}, {which}", decimals=2)
        for kind in ("system prompts", "shots")
        for which in ("overall", "within")
    ]
    rows = []
    for each in found:
        cells: list[float | None] = []
        for kind in KINDS:
            points = monitored(each, kind)
            cells += [_r(points), within_conditions(points)]
        rows.append(Cells(each.trait.name, cells))
    for name, values in THEIRS.items():
        flat = [value for pair in values for value in pair]
        rows.append(Cells(f"{name} (paper)", flat, theirs=True))
    prompts = {each.trait.name: each.trait.sha256 for each in found}
    return FigureRecord(
        f"{KEY}/monitoring_correlations",
        "Correlation of projection and score",
        Table(columns, rows, label="trait", beside=about_traits(found, failed)),
        study.provenance(prompts),
        claims=CORRELATIONS,
        n={"questions": len(found[0].halves[1])},
        seeds=(recipe.evaluation.seed,),
        caption=(
            "Within: the mean over conditions of the correlation between questions; conditions whose scores "
            "have a standard deviation below 1 are left out, as in the paper."
        ),
    )


def _r(rows: Sequence[Monitored]) -> float | None:
    try:
        return overall(rows).r
    except RecordError:
        return None
