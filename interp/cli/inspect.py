"""``interp inspect MODEL``: the coverage receipt."""

from __future__ import annotations

from pathlib import Path

import click

from interp.cli.options import json_option, write_result


@click.command(epilog="Example: interp inspect smollm2 --json receipt.json")
@click.argument("model")
@click.option("--trust-remote-code", is_flag=True, help="run code that comes with the model")
@json_option
def command(model: str, trust_remote_code: bool, json_file: Path | None) -> None:
    """Print every matrix that writes the residual stream of MODEL, and what an edit would reach.

    MODEL is smollm2, a hub id, or a directory with config and weights (no tokenizer needed; no weights
    are read).
    """
    from interp.cli.tables import table
    from interp.models.receipt import receipt

    found = receipt(model, trust_remote_code=trust_remote_code)
    rows = [
        [
            line.weight,
            line.kind,
            "×".join(map(str, line.shape)),
            line.axes,
            ("bias " if line.bias else "")
            + ("gain " if line.gain else "")
            + ("tied" if line.tied else ""),
            line.reach,
        ]
        for line in found.writers
    ]
    table(
        f"{found.model}: {found.model_type}, {found.n_blocks} blocks, d_model {found.d_model}",
        ("writer", "kind", ">shape", "axes", "also", "reached by"),
        rows,
    )
    counts = ", ".join(f"{n} {kind}" for kind, n in found.counts().items())
    head = "tied to the embedding" if found.tied else "its own matrix"
    click.echo(f"{len(found.writers)} writers ({counts}); 0 undescribed; unembedding: {head}")
    if found.quantisation:
        click.echo(f"quantised: {found.quantisation}")
    for module, why in found.unreached.items():
        click.echo(f"not edited: {module} {why}")
    write_result(json_file, found.as_json())
