"""``interp measure``: the same measures for a model and for its edited self."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli import judging
from interp.cli.options import (
    Given,
    delta_option,
    json_option,
    markers_option,
    model_options,
    prompt_options,
    read_delta,
    write_result,
)

if TYPE_CHECKING:
    from interp.data import PromptSet
    from interp.evaluate.measure import Bench
    from interp.export.measurement import Measurement
    from interp.lm import LM
    from interp.types import WeightDelta


EXAMPLE = "Example: interp measure --model smollm2 --delta my-delta --json rows.json"


@click.command(epilog=f"{EXAMPLE}\n\n{judging.HELP}")
@model_options
@prompt_options
@markers_option
@judging.judge_option
@delta_option
@click.option(
    "--split",
    type=click.Choice(["fit", "select", "report", "all"]),
    default="report",
    show_default=True,
    help="split of a shipped set",
)
@click.option("--tokens", type=click.IntRange(min=1), default=24, show_default=True,
              help="length of a response")  # fmt: skip
@json_option
def command(
    delta_dir: Path | None,
    names: tuple[str, ...],
    split: str,
    tokens: int,
    json_file: Path | None,
    **values: Any,
) -> None:
    """Measure refusals, over-refusals, first-token and 32-token KL, neutral-text NLL, and new responses.

    New responses are those to requests that the original refuses and the edited model does not: their NLL
    under the original model in nats per token, the share that loops, and the share of the request's content
    words that they name. The row `original` shows the same of its responses to answerable prompts.

    Without --delta there is one row, `original`; with it, `original` and `edited`, and the measurement is
    kept in the delta's directory, where `interp export` looks for it.
    """
    from interp.cli.progress import watching
    from interp.edits import check_base
    from interp.evaluate.measure import Bench
    from interp.judges import spelled

    given = Given(values)
    delta, judge, makers = read_delta(delta_dir), given.judge, [spelled(name) for name in names]
    refuse, comply = given.classes(split)
    lm = given.open()
    if delta is not None:
        check_base(lm.hf, lm.anatomy, delta)
    with watching(json_file) as watch:
        lm = lm.using(watch=watch)
        bench = Bench(lm, refuse, comply, tokens, judge=judge, judges=judging.made(makers, lm))
        edits = {"original": None} if delta is None else {"original": None, "edited": delta}
        rows = [bench.row(name, edit).as_json() for name, edit in edits.items()]
    _show(values["model"], rows, refuse, comply)
    result = {"model": values["model"], "rows": rows, **_conditions(bench)}
    if delta is not None and delta_dir is not None:
        found = _measurement(given, lm, delta, rows, refuse, comply, tokens)
        result["prompts_seen_by_the_edit"] = found.seen
        result["measurement"] = _keep(found, delta, delta_dir)
    write_result(json_file, result)


def _conditions(bench: Bench) -> dict[str, Any]:
    """The judges and the prompts of a bench, in JSON values."""
    sides = {"refuse": bench.positive, "comply": bench.negative}
    prompts = {name: {"source": s.source, "sha256": s.sha256} for name, s in sides.items()}
    found = {"judge": bench.judge.as_json(), "prompts": prompts}
    if bench.judges:
        found["judges"] = {each.name: each.as_json() for each in bench.judges}
    return found


def _show(model: str, rows: list[dict[str, Any]], refuse: PromptSet, comply: PromptSet) -> None:
    """Print the rows, examples of responses, scores of further judges, and what was not counted."""
    from interp.cli.tables import examples, measures

    measures(f"{model} on {refuse.source} and {comply.source}", rows)
    examples(rows)
    judging.scores(rows)
    for row in rows:
        if row["unscored"]:
            click.echo(
                f"note: {row['name']}: {row['unscored']} of {len(refuse) + len(comply)} responses are cut "
                "off while the model is thinking and not counted; ask for more with --tokens",
                err=True,
            )


def _measurement(
    given: Given,
    lm: LM,
    delta: WeightDelta,
    rows: list[dict[str, Any]],
    refuse: PromptSet,
    comply: PromptSet,
    tokens: int,
) -> Measurement:
    from dataclasses import asdict

    from interp.evaluate.hardware import measured_with
    from interp.export.measurement import Measurement

    made_on = measured_with(lm, given.values["model"])
    return Measurement.of(
        delta, rows, refuse, comply, made_on, response_tokens=tokens, chat=asdict(lm.chat),
        judge=given.judge.as_json(),
    )  # fmt: skip


def _keep(found: Measurement, delta: WeightDelta, folder: Path) -> str | None:
    """Write a measurement beside its delta; its path. One that proves nothing replaces none that does."""
    from interp.errors import ExportError
    from interp.export.measurement import Measurement, why_not

    reason = why_not(found, delta)
    try:
        earlier = Measurement.load(folder)
    except ExportError:
        earlier = None  # damaged: replaced
    if reason:
        click.echo(f"note: for an export, {reason}", err=True)
        if earlier is not None and not why_not(earlier, delta):
            click.echo("note: the earlier measurement beside the delta is kept", err=True)
            return None
    path = found.save(folder)
    click.echo(f"wrote {path}")
    return str(path)
