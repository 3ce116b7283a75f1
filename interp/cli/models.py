"""``interp models``: what can be opened, and by which backend."""

from __future__ import annotations

from pathlib import Path

import click

from interp.cli.options import json_option, write_result


@click.command(epilog="Example: interp models")
@json_option
def command(json_file: Path | None) -> None:
    """List the described model families, the backends that support each, and the embedded model."""
    from interp.backends.support import SUPPORT
    from interp.cli.tables import table
    from interp.errors import ModelNotFound
    from interp.models import known_model_types
    from interp.models.embedded import gguf_file

    types = known_model_types()
    backends = list(SUPPORT)
    rows = [[t, *("yes" if t in SUPPORT[b] else "–" for b in backends)] for t in types]
    table(f"{len(types)} model types", ("model_type", *backends), rows)
    try:
        gguf_file()
        embedded = "installed"
    except ModelNotFound as error:
        embedded = str(error)
    click.echo(f"smollm2 (SmolLM2-135M-Instruct, embedded): {embedded}")
    click.echo("tiny:TYPE opens a tiny random model of a family, e.g. tiny:jamba")
    write_result(
        json_file,
        {
            "model_types": {t: [b for b in backends if t in SUPPORT[b]] for t in types},
            "embedded": {"smollm2": embedded},
        },
    )
