"""The figure of the audit: shifts predicted from weights against scores that are measured after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from interp.claims import Claim
from interp.data import load_class
from interp.export.reading import read_edit
from interp.methods.persona_vectors.audit import as_json, audit
from interp.methods.persona_vectors.data import chat_of
from interp.methods.persona_vectors.finetune_measures import prompt_hashes, site_of, vectors
from interp.methods.persona_vectors.finetuning import Finetune, finetunes, trait_scores
from interp.methods.persona_vectors.paper import KEY
from interp.methods.persona_vectors.recipe import PROMPT, RESPONSE
from interp.methods.persona_vectors.scoring import Answers
from interp.methods.persona_vectors.training_recipes import AuditFigureRecipe
from interp.records import FigureRecord
from interp.series import Axis, BarGroup, Bars, Group, Names, Panel, Scatter, SmallMultiples
from interp.statistics.persona_finetunes import related
from interp.study import Study

PROMPTS = "answerable"
SHIFT = Axis("predicted shift", "‖v‖")
CHANGE = Axis("measured change of the trait score", "of 100")
SIDES = {
    "shift": "both models at the last prompt token",
    "response": "both models on prose as a response",
    "weights": "changed matrices alone",
}
"""Predictions by their name beside the panels."""
CLAIMS = (
    Claim("predicted shift and measured change have r of at least 0.7 in every trait", "at least", "", 0.7,
          statistic="audit/least_r"),
    Claim("Fisher's interval of r lies above 0 in every trait", "at least", "", 0.0,
          statistic="audit/least_r_low"),
    Claim("the sign of at least 0.9 of all clear changes is predicted", "at least", "", 0.9,
          statistic="audit/sign"),
    Claim("at least 0.75 of the finetunes shift most along the trait of their data", "at least", "", 0.75,
          statistic="audit/named"),
    Claim("at least 0.9 of random directions have a smaller |r|, in every trait", "at least", "", 0.9,
          statistic="audit/beyond_random"),
    Claim("read on neutral prose in place of a response, r is at least 0.7 in every trait", "at least", "",
          0.7, statistic="audit/response_least_r"),
    Claim("changed matrices alone have r of at least 0.5 in every trait", "at least", "", 0.5,
          statistic="audit/weights_least_r"),
)  # fmt: skip
"""Written before any score was compared; the sixth, after the shifts of two finetunes had been seen."""


@dataclass(frozen=True, slots=True)
class Audited:
    """A finetune, its audits in JSON values by what is read and by trait, and its scored answers by trait."""

    name: str
    style: str
    audits: dict[str, dict[str, dict[str, Any]]]
    scores: dict[str, Answers]


def audited_finetunes(study: Study, recipe: AuditFigureRecipe) -> list[Audited]:
    """Audits from weights on everyday prompts, and scores from answers to the evaluation questions."""
    return [
        Audited(
            each.name,
            each.trait,
            {read: _audits(study, recipe, each, read) for read in (PROMPT, RESPONSE)},
            trait_scores(study, recipe.finetunes, each.path)[0],
        )
        for each in finetunes(study, recipe.finetunes)
    ]


def _audits(
    study: Study, recipe: AuditFigureRecipe, each: Finetune, read: str
) -> dict[str, dict[str, Any]]:
    personas = vectors(study, recipe.finetunes)
    prompts = load_class(PROMPTS, "comply", limit=recipe.prompts)
    own = replace(recipe.audit, layer=site_of(study, recipe.finetunes).block + 1, read=read)

    def made() -> dict[str, dict[str, Any]]:
        lm = study.lm
        delta = read_edit(each.path, lm.backend.source)
        found = audit(lm, delta, list(personas.values()), prompts, own)
        return {one.trait: as_json(one) for one in found}

    about = {"run": each.path.name, "prompts": prompts, "read": read, "recipe": recipe}
    return study.resumed("audit", made, chat=chat_of(study.lm), **about)


def audit_figure(study: Study, recipe: AuditFigureRecipe) -> FigureRecord:
    """Predicted shift against measured change of the score, by trait; each point is a finetune."""
    found = audited_finetunes(study, recipe)
    base = trait_scores(study, recipe.finetunes, None)[0]
    traits = recipe.finetunes.styles
    values = _values(found, base, traits)
    panels = [Panel(trait, _scatter(found, values, trait)) for trait in traits]
    prompts = load_class(PROMPTS, "comply", limit=recipe.prompts)
    return FigureRecord(
        key=f"{KEY}/audit",
        title="Audit: predicted and measured",
        series=SmallMultiples((*panels, Panel("r by trait", _correlations(values))), beside=values),
        claims=CLAIMS,
        provenance=study.provenance(
            prompt_hashes(study, recipe.finetunes) | {PROMPTS: prompts.prompts}
        ),
        n={
            "finetunes": len(found),
            "prompts": len(prompts),
            "evaluation answers": len(base[traits[0]]),
            "random directions": recipe.audit.controls,
        },
        intervals="r: Fisher, 95 %",
        seeds=(recipe.finetunes.training.seed, recipe.audit.seed),
        caption=(
            "Each point is a LoRA finetune on answers with one style, at level I or II, or with none. Its "
            "shift is predicted from its weights on everyday prompts, without a token generated; the change "
            "is of the programmatic score of its answers to evaluation questions, less that of the base "
            "model."
        ),
    )


def _values(
    found: Sequence[Audited], base: dict[str, Answers], traits: Sequence[str]
) -> dict[str, Any]:
    """What the panels and the statistics are about, a value for each finetune in every list."""

    def column(read: str, side: str) -> dict[str, list[Any]]:
        return {t: [each.audits[read][t][side] for each in found] for t in traits}

    shift, response = column(PROMPT, "shift"), column(RESPONSE, "shift")
    weights = column(PROMPT, "weights")
    directions = zip(*(one["random"] for one in shift[traits[0]]), strict=True)
    return {
        "names": [each.name for each in found],
        "styles": [each.style for each in found],
        "shift": {t: [one["value"] for one in shift[t]] for t in traits},
        "z": {t: [one["z"] for one in shift[t]] for t in traits},
        "response": {t: [one["value"] for one in response[t]] for t in traits},
        "weights": {t: [one and one["value"] for one in weights[t]] for t in traits},
        "change": {t: [_change(each.scores[t], base[t]) for each in found] for t in traits},
        "clear": {t: [_clear(each.scores[t], base[t]) for each in found] for t in traits},
        "random": [list(values) for values in directions],
    }


def _change(after: Answers, before: Answers) -> float | None:
    """The change of the mean score; None where no answer has one."""
    if after.score is None or before.score is None:
        return None
    return after.score - before.score


def _clear(after: Answers, before: Answers) -> bool:
    """Whether the intervals of the two scores lie apart."""
    if after.interval is None or before.interval is None:
        return False
    return after.interval[0] > before.interval[1] or after.interval[1] < before.interval[0]


def _scatter(found: Sequence[Audited], values: dict[str, Any], trait: str) -> Scatter:
    """Finetunes on the trait's own style, on others, and on none."""
    x, y = values["shift"][trait], values["change"][trait]
    kinds = [
        "own style" if f.style == trait else "other styles" if f.style else "none" for f in found
    ]
    groups = []
    for kind in dict.fromkeys(kinds):
        rows = [i for i, each in enumerate(kinds) if each == kind]
        points = (tuple(column[i] for i in rows) for column in (x, y))
        groups.append(Group(kind, *points))
    return Scatter(SHIFT, CHANGE, tuple(groups), fit="overall" if related(x, y) else "none")


def _correlations(values: dict[str, Any]) -> Bars:
    """r of every prediction by trait, with Fisher's intervals."""
    traits = tuple(values["shift"])
    groups = []
    for side, label in SIDES.items():
        rows = [related(values[side][t], values["change"][t]) for t in traits]
        r, low, high = (
            tuple(row and getattr(row, name) for row in rows) for name in ("r", "low", "high")
        )
        groups.append(BarGroup(label, r, low, high))
    return Bars(Names("trait", traits), Axis("r"), tuple(groups))
