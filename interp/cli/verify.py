"""``interp verify``: does an export still do what it says?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from interp.cli.export import receipt_json
from interp.cli.options import json_option, loading_options, write_result
from interp.errors import InterpError


@click.command(epilog="Example: interp verify my-adapter --base smollm2")
@click.argument("export", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--base", required=True, help="the model it was made for: smollm2, directory or hub id"
)
@loading_options
@json_option
def command(export: Path, base: str, json_file: Path | None, **loading: Any) -> None:
    """Reload EXPORT (delta, PEFT adapter or merged model) in a fresh process and compare logits.

    Exit code 1 when a file is damaged, the base is another, nothing changes, or logits differ.
    """
    from interp.cli.progress import status
    from interp.export import verify_export

    try:
        with status(f"verifying {export}"):
            receipt = verify_export(export, base, **{k: v for k, v in loading.items() if v})
    except InterpError as error:
        write_result(json_file, {"path": str(export), "verdict": "failed", "error": str(error)})
        raise
    click.echo(
        f"{receipt.format} {receipt.verdict}: largest logit difference {receipt.difference:.2g} "
        f"({receipt.probe}), effect {receipt.effect:.2g}"
    )
    write_result(json_file, {"path": str(export), **receipt_json(receipt)})
