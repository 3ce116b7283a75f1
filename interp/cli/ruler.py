"""``interp ruler MODEL``: one place in the stream, under every tool's name for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from interp.cli.options import json_option, write_result

if TYPE_CHECKING:
    from interp.models.ruler import RulerRow

HEADS = (
    "site", ">hidden_states", ">persona row", ">heretic", "TransformerLens", "nnsight", ">repeng",
    "GGUF",
)  # fmt: skip


@click.command(epilog="Example: interp ruler smollm2 --json ruler.json")
@click.argument("model")
@click.option("--trust-remote-code", is_flag=True, help="run code that comes with the model")
@json_option
def command(model: str, trust_remote_code: bool, json_file: Path | None) -> None:
    """Print what other tools call each place in the residual stream of MODEL.

    MODEL is smollm2, a hub id, or a directory with config and weights; no weights are read. A dash is
    a place that a tool cannot name; the reasons stand below the table.
    """
    from dataclasses import asdict

    from interp.cli.tables import table
    from interp.models.ruler import COLUMNS, Ruler
    from interp.models.skeleton import skeleton

    _, anatomy = skeleton(model, trust_remote_code=trust_remote_code)
    ruler = Ruler.of(anatomy)
    rows = ruler.rows()
    notes = _numbered(rows)
    cells = [[row.site, *(_cell(row, column, notes) for column in COLUMNS)] for row in rows]
    table(f"{model} ({ruler.model_type}, {ruler.n_blocks} blocks)", HEADS, cells)
    for reason, number in notes.items():
        click.echo(f"[{number}] {reason}")
    write_result(
        json_file,
        {
            "model": model,
            "model_type": ruler.model_type,
            "n_blocks": ruler.n_blocks,
            "rows": [asdict(row) for row in rows],
        },
    )


def _numbered(rows: list[RulerRow]) -> dict[str, int]:
    """Reason → its number, in the order in which a reader meets them."""
    reasons = dict.fromkeys(reason for row in rows for reason in row.why.values())
    return {reason: k for k, reason in enumerate(reasons, start=1)}


def _cell(row: RulerRow, column: str, notes: dict[str, int]) -> str:
    value = row.values[column]
    shown = "–" if value is None else str(value)
    return f"{shown} [{notes[row.why[column]]}]" if column in row.why else shown
