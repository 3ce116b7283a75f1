"""``interp export``: a delta in the format that another tool loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from interp.cli.options import json_option, loading_options, out_option, write_result


@click.command(epilog="Example: interp export my-delta --to peft --base smollm2 --out my-adapter")
@click.argument("delta", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", type=click.Choice(["delta", "peft", "merged"]), required=True, help="format")
@click.option(
    "--base", required=True, help="the model it was made for: smollm2, directory or hub id"
)
@loading_options
@click.option("--overwrite", is_flag=True, help="replace what is at --out")
@out_option()
@json_option
def command(
    delta: Path,
    to: str,
    base: str,
    out: Path,
    overwrite: bool,
    json_file: Path | None,
    **loading: Any,
) -> None:
    """Write DELTA in another format, reload it in a fresh process, and keep it only if logits agree."""
    from interp.backends import open_model
    from interp.cli.progress import status
    from interp.export import export, load_delta

    loading = {k: v for k, v in loading.items() if v}
    made = load_delta(delta)
    with status(f"opening {base}"):
        backend = open_model(base, **loading)
    with status(f"writing and verifying {out}"):
        receipt = export(
            made, to=to, base=backend, base_name=base, out=out, overwrite=overwrite, **loading
        )
    click.echo(
        f"{to} {receipt.verdict}: {out} (largest logit difference {receipt.difference:.2g}, "
        f"the edit moves logits by {receipt.effect:.2g})"
    )
    write_result(json_file, {"path": str(out), **receipt_json(receipt)})


def receipt_json(receipt: Any) -> dict[str, Any]:
    """A receipt's fields and its computed verdict."""
    from dataclasses import asdict

    return {**asdict(receipt), "verdict": receipt.verdict}
