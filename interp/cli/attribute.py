"""``interp attribute``: where the refusal margin is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from interp.cli.options import (
    Given,
    delta_option,
    json_option,
    model_options,
    out_option,
    prompt_options,
    read_delta,
    write_result,
)


@click.command(epilog="Example: interp attribute --model smollm2 --out attribution")
@model_options
@prompt_options
@delta_option
@click.option(
    "--openers",
    type=click.Choice(["model", "phrases"]),
    default="model",
    show_default=True,
    help="first tokens whose logits make the margin: found from the model, or from known phrases",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=10, show_default=True, help="rows to print"
)
@out_option("out/attribution", "directory for the figure")
@json_option
def command(
    delta_dir: Path | None, openers: str, top: int, out: Path, json_file: Path | None, **values: Any
) -> None:
    """Split the refusal logit difference into what every block's components write.

    The margin is the mean logit of refusal openers minus that of answer openers at the last prompt token;
    the parts sum to it, and the residual is printed. Openers come from the fit split (or part), the figure
    from the select split (or part).
    """
    from interp.cli.progress import status
    from interp.figures import render
    from interp.methods.refusal import attribution_figure, fit_openers, phrase_openers

    given = Given(values)
    delta = read_delta(delta_dir)
    fit_refuse, fit_comply, refuse, comply = given.fit_and_select()
    lm = given.open()
    with status("attributing", out):
        by_model = openers == "model"
        chosen = (
            fit_openers(lm, fit_refuse, fit_comply) if by_model else phrase_openers(lm.tokenizer)
        )
        record = attribution_figure(lm, refuse, comply, openers=chosen, delta=delta)
    path = record.save(out)
    svg = render(path)
    _show(record.series, top)
    click.echo(f"wrote {path}\nwrote {svg}")
    write_result(json_file, record.as_json())


def _show(series: Any, top: int) -> None:
    """Print the largest parts of a :class:`interp.series.StackedAttribution`."""
    from interp.cli.tables import table

    cells = [
        (part.kind, series.positions[i], value)
        for part in series.parts
        for i, value in enumerate(part.values)
    ]
    cells.sort(key=lambda cell: -abs(cell[2]))
    table(
        f"refuse − comply: {series.measured:+.3f} logits; parts sum to it within "
        f"{series.beside['largest_residual']:.1e}",
        ("component", ">block", ">logits"),
        [[kind, block, f"{value:+.3f}"] for kind, block, value in cells[:top]],
    )
