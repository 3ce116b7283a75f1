"""``interp export``: a delta in the format that another tool loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import (
    json_option,
    loading_options,
    out_option,
    paper_path_option,
    write_result,
)

if TYPE_CHECKING:
    from interp.records import FigureRecord
    from interp.types import WeightDelta

FORMATS = ("delta", "peft", "merged", "gguf-lora", "gguf-vector", "heretic")
"""The registry's, without importing it; a test compares the two."""


@click.command(epilog="Example: interp export my-delta --to peft --base smollm2 --out my-adapter")
@click.argument("delta", type=click.Path(exists=True, path_type=Path))
@click.option("--to", type=click.Choice(FORMATS), required=True, help="format")
@click.option(
    "--base", required=True, help="the model it was made for: smollm2, directory or hub id"
)
@loading_options
@click.option(
    "--rank", type=click.IntRange(min=1), help="cut every matrix to this rank; the error is printed"
)
@click.option(
    "--card",
    "card_files",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    metavar="FILE|DIR",
    help="figure card that the edit rests on, or a directory of them, such as that of your own paper "
    "(default: those shipped)",
)
@paper_path_option
@click.option(
    "--unproven",
    is_flag=True,
    help="export without a passing card or a measurement, and say so in it",
)
@click.option(
    "--no-reload",
    is_flag=True,
    help="merged: work on the files alone, never loading the model; `interp verify` can follow",
)
@click.option("--overwrite", is_flag=True, help="replace what is at --out")
@out_option()
@json_option
def command(
    delta: Path,
    to: str,
    base: str,
    out: Path,
    rank: int | None,
    card_files: tuple[Path, ...],
    paper_paths: tuple[Path, ...],
    unproven: bool,
    no_reload: bool,
    overwrite: bool,
    json_file: Path | None,
    **loading: Any,
) -> None:
    """Write DELTA in another format, reload it in a fresh process, and keep it only if logits agree.

    DELTA may also be an adapter of PEFT or heretic, a LoRA GGUF, or a finetuned model, which are read
    as deltas of --base first; the export must then give the logits of that adapter or model, as PEFT or
    transformers loads it.

    Proven is an edit whose kind of recipe a passing figure card was measured with, and which was itself
    measured on held-out prompts (`interp measure --delta`). Another is written only with --unproven, and
    its manifest says what is missing.
    """
    from interp.export.gate import check
    from interp.export.measurement import Measurement

    if no_reload and to != "merged":
        raise click.UsageError("--no-reload goes with --to merged; the other formats are reloaded")
    loading = {k: v for k, v in loading.items() if v}
    made = _cut(_read(delta, base, loading), rank)
    proof = {"cards": _cards(card_files, paper_paths), "measured": Measurement.load(delta)}
    check(made, **proof, unproven=unproven)  # before anything large is loaded
    common = {**proof, "unproven": unproven, "overwrite": overwrite}
    if no_reload:
        result = _merge(made, base, out, loading, common)
    else:
        common |= {"source": delta, "keep_model": False}
        result = _export(made, to, base, out, loading, common)
    write_result(json_file, {"path": str(out), **result})


def _read(path: Path, base: str, loading: dict[str, Any]) -> WeightDelta:
    from interp.cli.progress import watching
    from interp.export import load_delta
    from interp.export.exporter import recognise
    from interp.export.reading import read_edit

    if path.is_dir() and recognise(path).name == "delta":
        # Its base is compared later, in the dtype that it is loaded in; read_edit takes the files'.
        return load_delta(path)
    with watching() as watch:
        return read_edit(path, base, watch=watch, **loading)


def _cut(delta: WeightDelta, rank: int | None) -> WeightDelta:
    """The delta with every matrix cut to a rank; None keeps it."""
    from interp.export.truncation import truncated

    if rank is None:
        return delta
    made, report = truncated(delta, rank)
    click.echo(str(report) if report.cut else f"no matrix has more than rank {rank}")
    return made


def _cards(files: tuple[Path, ...], paper_paths: tuple[Path, ...]) -> list[FigureRecord]:
    from interp.export.gate import shipped_cards
    from interp.papers import cards, papers
    from interp.records import FigureRecord

    papers(paper_paths)  # which define the statistics that claims name
    found = []
    for path in files:
        found += cards(path).values() if path.is_dir() else [FigureRecord.load(path)]
    return found if files else shipped_cards()


def _export(
    made: WeightDelta,
    to: str,
    base: str,
    out: Path,
    loading: dict[str, Any],
    common: dict[str, Any],
) -> dict[str, Any]:
    from interp.backends import open_model
    from interp.cli.progress import status
    from interp.export import export

    with status(f"opening {base}"):
        backend = open_model(base, **loading)
    with status(f"writing and verifying {out}"):
        receipt = export(made, to=to, base=backend, base_name=base, out=out, **common, **loading)
    click.echo(
        f"{to} {receipt.verdict}: {out} (largest logit difference {receipt.difference:.2g}, "
        f"the edit moves logits by {receipt.effect:.2g})"
    )
    if source := receipt.source:
        click.echo(
            f"compared with {source['name']} as {source['library']} loads it: largest logit difference "
            f"{source['difference']:.2g}" + ("" if source["whole"] else " (the delta is cut)")
        )
    if left := made.recipe.get("not_held"):
        name, why = next((name, entry["why"]) for name, entry in left.items())
        click.echo(
            f"not exported: {len(left)} changes that a delta does not hold, first {name}: {why}"
        )
    _say(receipt.notes, receipt.cards, receipt.missing)
    return receipt_json(receipt)


def _merge(
    made: WeightDelta, base: str, out: Path, loading: dict[str, Any], common: dict[str, Any]
) -> dict[str, Any]:
    from interp.cli.progress import watching
    from interp.export.merged import checkpoint_size, merge

    known = {k: v for k, v in loading.items() if k in ("revision", "trust_remote_code")}
    if unused := sorted(loading.keys() - known.keys()):
        raise click.UsageError(f"--no-reload loads no model: leave out --{unused[0]}")
    with watching() as watch:
        advance = watch("merging", checkpoint_size(base, known.get("revision")))
        report = merge(made, base, out, advance=advance, **common, **known)
    click.echo(f"merged, not reloaded: {out}; next: interp verify {out} --base {base}")
    _say(report, report["cards"], report["missing"])
    return report


def _say(notes: Any, cards: Any, missing: Any) -> None:
    if made := notes.get("resaved"):
        saved_as = f"as {made['class']} " if made["class"] else ""
        click.echo(
            f"saved {saved_as}with {' and '.join(made['settings'])}: {made['new_biases']} new biases, zero "
            "where the edit gives none"
        )
    if leak := notes.get("leak"):
        click.echo(
            f"stored as {notes['dtype']}: rounding puts back at most {leak['largest']:.2%} of the "
            f"edited component ({leak['at']})"
        )
    if "sha256" in notes:
        click.echo(f"adapter_model.safetensors: SHA-256 {notes['sha256']}")
    if notes.get("environment", "known") != "known":
        click.echo(f"note: {notes['environment']}", err=True)
    rests = ", ".join(f"{card['key']} ({card['verdict']})" for card in cards) or "none"
    click.echo(f"figure cards: {rests}" + ("; UNPROVEN" if missing else ""))
    for reason in missing:
        click.echo(f"missing: {reason}")


def receipt_json(receipt: Any) -> dict[str, Any]:
    """A receipt's fields and its computed verdict."""
    from dataclasses import asdict

    return {**asdict(receipt), "verdict": receipt.verdict}
