"""``interp demo``: the main job, from nothing to a verified weight diff."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from interp.cli.options import (
    Given,
    json_option,
    markers_option,
    model_options,
    out_option,
    pool_option,
    prompt_options,
    write_result,
)


@click.command(epilog="Example: interp demo --out out/demo --json demo.json")
@model_options
@prompt_options
@markers_option
@pool_option
@out_option("out/demo", "directory for figures, delta and adapter")
@json_option
def command(out: Path, json_file: Path | None, **values: Any) -> None:
    """Find where refusal is written, remove it with the least disturbance, and prove it.

    Attribution figure, edits fitted and chosen on their own splits, a before/after table on requests that
    nothing has seen, and a weight delta and a PEFT adapter, each reloaded in a fresh process. To stay
    within minutes it asks at most 32 held-out prompts of each class; `interp measure` asks all.
    """
    from interp.cli.progress import is_quiet, watching
    from interp.cli.tables import measures
    from interp.methods.refusal import run

    started = time.perf_counter()
    given = Given(values)
    prompts, judge = given.three_splits(), given.judge
    lm = given.open()
    with watching(out) as watch:
        say = click.echo if is_quiet() else watch.say
        outcome = run(lm.using(watch=watch), prompts, out, judge=judge, say=say)
    click.echo()
    rows = [row.as_json() for row in outcome.rows]
    measures(f"{values['model']} on {prompts.report[0].source}, held out", rows)
    click.echo()
    for name, path in outcome.paths.items():
        click.echo(f"{name}: {path}")
    for kind, receipt in outcome.exports.items():
        click.echo(f"{kind}: {receipt['verdict']} in a fresh process")
    seconds = time.perf_counter() - started
    click.echo(f"done in {seconds:.0f} s")
    write_result(
        json_file,
        {"model": values["model"], **outcome.as_json(), "total_seconds": round(seconds, 1)},
    )
