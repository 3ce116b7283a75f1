"""``interp verify``: does an export still do what it says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.export import receipt_json
from interp.cli.options import (
    conditions_of,
    heretic_options,
    json_option,
    loading_options,
    read_classes,
    write_result,
)
from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.methods.heretic import Opinion
    from interp.types import WeightDelta


@click.command(
    epilog="Example: interp verify my-adapter --base smollm2      "
    "With heretic's own counts: interp verify my-adapter --base smollm2 --with heretic"
)
@click.argument("export", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--base", required=True, help="the model it was made for: smollm2, directory or hub id"
)
@loading_options
@click.option(
    "--with",
    "other",
    type=click.Choice(["heretic"]),
    help="second opinion of this program, installed once into an environment of its own",
)
@heretic_options
@click.option("--split", type=click.Choice(["fit", "select", "report", "all"]), default="report",
              show_default=True, help="split of a shipped set")  # fmt: skip
@json_option
def command(
    export: Path,
    base: str,
    dtype: str | None,
    device_map: str | None,
    quantize: str | None,
    revision: str | None,
    trust_remote_code: bool,
    other: str | None,
    json_file: Path | None,
    **asked: Any,
) -> None:
    """Reload EXPORT, in any format, in a fresh process and compare logits.

    Exit code 1 when a file is damaged, the base is another, nothing changes, logits differ, or the
    second opinion disagrees. The options from --refuse to --split are for the second opinion.
    """
    from interp.cli.progress import status
    from interp.export import verify_export

    loading = {"dtype": dtype, "device_map": device_map, "quantize": quantize}
    loading |= {"revision": revision, "trust_remote_code": trust_remote_code}
    loading = {k: v for k, v in loading.items() if v}
    try:
        with status(f"verifying {export}"):
            receipt = verify_export(export, base, **loading)
    except InterpError as error:
        write_result(json_file, {"path": str(export), "verdict": "failed", "error": str(error)})
        raise
    click.echo(
        f"{receipt.format} {receipt.verdict}: largest logit difference {receipt.difference:.2g} "
        f"({receipt.probe}), effect {receipt.effect:.2g}"
    )
    result = {"path": str(export), **receipt_json(receipt)}
    opinion = _ask(export, receipt.format, base, loading, asked) if other else None
    if opinion is not None:
        result["heretic"] = opinion.as_json()
    write_result(json_file, result)
    if opinion is not None and opinion.agreement == "disagree":
        raise click.exceptions.Exit(1)


def _ask(
    export: Path, kind: str, base: str, loading: dict[str, Any], asked: dict[str, Any]
) -> Opinion:
    """heretic's measures beside ours, printed as a table."""
    import tempfile

    from interp.cli.progress import is_quiet, status
    from interp.export.exporter import dtype_of
    from interp.export.heretic_program import install
    from interp.export.reading import read_edit
    from interp.methods.heretic import second_opinion
    from interp.methods.heretic.directions import render
    from interp.models.loading import resolve
    from interp.opening import open_model

    refuse, comply = read_classes(asked, asked["split"])
    with status(f"opening {base}"):
        edit = read_edit(export, base, **loading)
        lm = open_model(base, **loading)
        conditions = conditions_of(asked, dtype=dtype_of(lm.hf))
        render(lm.tokenizer, ["test"], conditions.system, "")  # or the error that says why not
    with status("heretic: installing, once"):
        program = install(click.echo if is_quiet() else lambda text: click.echo(text, err=True))
    with tempfile.TemporaryDirectory(prefix="interp-merged-") as scratch:
        merged = export if kind == "merged" else _merged(edit, base, Path(scratch), loading)
        with status("measuring here, then with heretic"):
            opinion = second_opinion(
                lm,
                program,
                edit,
                resolve(base),
                merged,
                refuse,
                comply,
                conditions,
                keep_model=False,
            )
    _show(opinion, len(comply))
    return opinion


def _merged(edit: WeightDelta, base: str, scratch: Path, loading: dict[str, Any]) -> Path:
    """A directory under ``scratch`` with the edited model."""
    from interp.export.merged import merge

    options = {k: v for k, v in loading.items() if k in ("revision", "trust_remote_code")}
    merge(edit, base, scratch / "merged", unproven=True, **options)
    return scratch / "merged"


def _show(opinion: Opinion, n: int) -> None:
    from interp.cli.tables import table

    rows = []
    for name, found in (("interp", opinion.ours), ("heretic", opinion.theirs)):
        if found is not None:
            cells = [f"{found.refusals}/{found.n}", f"{found.base_refusals}/{found.n}"]
            rows.append([name, *cells, f"{found.kl:.4f}"])
    columns = ("measured by", ">refusals", ">before", f">KL₁ nats ({n} prompts)")
    table("second opinion", columns, rows)
    if opinion.theirs is None:
        click.echo(f"heretic has no opinion, it says: {opinion.message}")
    else:
        click.echo(f"heretic and interp {opinion.agreement}")
