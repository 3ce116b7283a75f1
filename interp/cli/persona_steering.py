"""``interp persona steer`` and ``interp persona monitor``: a vector in use."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import Given, as_is, json_option, note_other_weights, write_result
from interp.cli.persona_options import JUDGES, extraction_options, extractor_of, trait_of
from interp.cli.recipes import read_recipe
from interp.methods.persona_vectors.recipe import (
    EvaluationRecipe,
    ExtractionRecipe,
    SteeringRecipe,
)

if TYPE_CHECKING:
    from interp.judges import Judge
    from interp.lm import LM
    from interp.methods.persona_vectors import PersonaVector, Trait
    from interp.methods.persona_vectors.monitoring import Monitored
    from interp.methods.persona_vectors.studied import Studied
    from interp.sites import Site
    from interp.watching import Watch

AUTO = "auto"
QUESTIONS = 3
"""Evaluation questions that are answered where none is given."""
CHOOSING = 8
"""Evaluation questions of which the first half choose the layer."""
MONITORED = 8
"""Further evaluation questions that are asked under every system text."""

layer_option = click.option(
    "--layer", default=AUTO, show_default=True, metavar="auto|N",
    help="layer of the paper, from 1 on: the output of block N - 1; auto steers several layers and takes the "
    "one with the greatest trait score",
)  # fmt: skip


@click.command(epilog=JUDGES)
@click.argument("vector")
@click.argument("questions", nargs=-1)
@click.option("--coefficients", default="-2,0,2", show_default=True, metavar="A,B,…",
              help="strengths of the unnormalised vector; 0 is the unsteered model")  # fmt: skip
@layer_option
@extraction_options
@json_option
def steer(
    vector: str, questions: tuple[str, ...], coefficients: str, layer: str,
    json_file: Path | None, **values: Any,
) -> None:  # fmt: skip
    """Answer QUESTIONS with a persona vector added, one answer for each coefficient.

    VECTOR is a directory that `interp persona extract` wrote, a .pt file, or a trait: a shipped one, a .json
    file, or words that name one ("speaks like a pirate"), which is extracted first. Without QUESTIONS some
    evaluation questions of the trait are answered, none of those that choose the layer.
    """
    from interp.cli.progress import watching
    from interp.methods.persona_vectors import steering
    from interp.methods.persona_vectors.scoring import answers

    strengths = _numbers(coefficients)
    with watching() as watch:
        each, recipe = _studied(vector, values, max(map(abs, strengths)) or 1.0, watch)
        site = _site(each, layer)
        asked = list(questions) or _reported(each)[:QUESTIONS]
        edit = steering(each.persona, site, strengths)
        found = answers(each.lm, each.judge, asked, recipe, edit)
    click.echo(f"steered at {site} (layer {site.block + 1} of {each.persona.n_blocks})")
    _tell(asked, strengths, found)
    rows = [
        {"coefficient": a, "score": f.score, "nll": f.nll} | f.as_json()
        for a, f in zip(strengths, found, strict=True)
    ]
    about = {"trait": each.trait.name, "layer": site.block + 1, "judge": each.judge.as_json()}
    write_result(json_file, about | {"answers": rows})


@click.command(epilog=JUDGES)
@click.argument("vector")
@click.argument("prompts", nargs=-1)
@layer_option
@extraction_options
@json_option
def monitor(
    vector: str, prompts: tuple[str, ...], layer: str, json_file: Path | None, **values: Any
) -> None:
    """Project the last token of PROMPTS on a persona vector, before anything is generated.

    VECTOR is what `interp persona steer` takes. Without PROMPTS eight system texts ask for the trait more and
    more; answers to the evaluation questions are scored, and the correlation of projection and score is shown
    over everything and within system texts.
    """
    from interp.cli.progress import watching
    from interp.cli.tables import table
    from interp.methods.persona_vectors.monitoring import project_prompts

    with watching() as watch:
        each, recipe = _studied(vector, values, SteeringRecipe().strengths[-1], watch)
        site = _site(each, layer)
        found = project_prompts(each.lm, each.persona, site, prompts) if prompts else []
        rows = [] if prompts else _monitored(each, site, recipe)
    click.echo(f"read at {site} (layer {site.block + 1} of {each.persona.n_blocks})")
    result: dict[str, Any] = {"layer": site.block + 1}
    if prompts:
        cells = [[p, f"{value:.2f}"] for p, value in zip(prompts, found, strict=True)]
        table("projections", ("prompt", ">projection"), cells)
        result["rows"] = [
            {"prompt": p, "projection": v} for p, v in zip(prompts, found, strict=True)
        ]
    else:
        result |= _correlations(each, rows)
    write_result(json_file, result)


def _site(each: Studied, layer: str) -> Site:
    """The place of a layer, or the one that the sweep chooses."""
    from interp.errors import PersonaError

    if layer != AUTO:
        return each.persona.site(_layer(layer))
    if not each.halves[0]:
        raise PersonaError(
            f"{each.trait.name} has no evaluation questions that could choose a layer; name one (--layer)"
        )
    return each.chosen().site


def _monitored(each: Studied, site: Site, recipe: EvaluationRecipe) -> list[Monitored]:
    """Projections and scores of the evaluation questions under graded system texts."""
    from interp.methods.persona_vectors.monitoring import graded_systems, monitor

    questions = _reported(each)[:MONITORED]
    conditions = graded_systems(each.trait)
    return monitor(each.lm, each.persona, site, conditions, questions, each.judge, recipe)


def _reported(each: Studied) -> list[str]:
    """Evaluation questions that choose no layer. PersonaError for a trait without any."""
    from interp.errors import PersonaError

    found = list(each.trait.evaluation_questions[len(each.halves[0]) :])
    if not found:
        raise PersonaError(f"{each.trait.name} has no evaluation questions; give some to answer")
    return found


def _correlations(each: Studied, rows: list[Monitored]) -> dict[str, Any]:
    """Means by system text and correlations, shown and as JSON."""
    from statistics import fmean

    from interp.cli.tables import table
    from interp.methods.persona_vectors.monitoring import (
        graded_systems,
        overall,
        within_conditions,
    )

    cells = []
    for condition in graded_systems(each.trait):
        own = [row for row in rows if row.condition == condition.name]
        if own:
            means = [fmean(row.projection for row in own), fmean(row.score for row in own)]
            cells.append([condition.name, condition.system or "", *(f"{m:.2f}" for m in means)])
    table("means by system text", ("", "system text", ">projection", ">score"), cells)
    whole, within = overall(rows), within_conditions(rows)
    click.echo(f"r = {whole.r:.2f} over {whole.n} points" + _between(whole.low, whole.high))
    apart = "no scores that vary" if within is None else f"r = {within:.2f}"
    click.echo(f"within system texts: {apart}")
    return {"r": whole.r, "within": within, "rows": [asdict(row) for row in rows]}


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" (95 %: {low:.2f} to {high:.2f})"


def _studied(
    vector: str, values: dict[str, Any], strength: float, watch: Watch
) -> tuple[Studied, EvaluationRecipe]:
    """The vector with its trait and judge on the opened model, and how answers are made.

    strength: the coefficient at which a layer is chosen.
    """
    from interp.methods.persona_vectors.rollouts import Rollouts
    from interp.methods.persona_vectors.studied import Studied
    from interp.study import Study, kept_directory

    made = read_recipe(ExtractionRecipe, values)
    recipe = EvaluationRecipe(
        samples=made.samples, tokens=made.tokens, temperature=made.temperature, seed=made.seed + 1
    )
    path = Path(vector).expanduser()
    is_vector = path.is_dir() or path.suffix == ".pt"
    read = None if is_vector else trait_of(vector, values)
    lm = Given(as_is(values)).open().using(watch=watch)
    if is_vector:
        persona, trait, judge = _read(path, lm, values)
    else:
        extractor, trait = extractor_of(lm, vector, read, made, values)
        persona, judge = extractor.extract(trait), extractor.judges(trait)[0]
    study = Study.of(lm, kept=kept_directory("persona"))
    chosen_with = SteeringRecipe(
        strengths=(strength,), extraction=made,
        evaluation=EvaluationRecipe(n_questions=CHOOSING, tokens=made.tokens),
    )  # fmt: skip
    nothing = Rollouts((), (), ())
    return Studied(study, chosen_with, trait, persona, judge, (nothing, nothing)), recipe


def _read(path: Path, lm: LM, values: dict[str, Any]) -> tuple[PersonaVector, Trait, Judge]:
    """A vector from files, with the trait that its record holds and the judge that options name."""
    from interp.errors import PersonaError
    from interp.methods.persona_vectors import PersonaVector, Trait, shipped_trait, shipped_traits
    from interp.methods.persona_vectors.edits import check
    from interp.methods.persona_vectors.judging import named_judge

    persona = PersonaVector.load(path)
    check(lm, persona)
    note_other_weights(persona, lm)
    content = persona.record.get("trait")
    if isinstance(content, dict):
        trait = Trait.from_json(content, persona.trait, str(path))
    elif persona.trait in shipped_traits():
        trait = shipped_trait(persona.trait)
    else:
        raise PersonaError(
            f"{path} does not say what its trait asks and how it is judged; name the trait file in place of "
            "the vector, or extract the vector with `interp persona extract`"
        )
    chosen, judge = named_judge(values["judge"], lm, trait)
    return persona, chosen, judge


def _numbers(text: str) -> list[float]:
    from interp.errors import PersonaError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise PersonaError(f"--coefficients {text} are no numbers; write them as -2,0,2") from None


def _layer(text: str) -> int:
    from interp.errors import PersonaError

    try:
        return int(text)
    except ValueError:
        raise PersonaError(f"--layer {text} is neither auto nor a number") from None


def _tell(questions: list[str], strengths: list[float], found: list[Any]) -> None:
    """Scores by coefficient, and the first answer to every question under each."""
    from interp.cli.tables import table

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    cells = [
        [f"{a:g}", shown(f.score), shown(f.nll)] for a, f in zip(strengths, found, strict=True)
    ]
    table("mean over answers", (">α", ">trait score", ">NLL, nats/token"), cells)
    samples = len(found[0]) // len(questions)
    for i, question in enumerate(questions):
        rows = [[f"{a:g}", f.responses[i * samples]] for a, f in zip(strengths, found, strict=True)]
        table(question, (">α", "answer"), rows)
