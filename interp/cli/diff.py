"""``interp diff BASE OTHER``: what an edit or a finetune changed, matrix by matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import FiniteRange, check_place, json_option, loading_options, write_result

if TYPE_CHECKING:
    from interp.export.summary import Line, Named, Total
    from interp.models.anatomy import Anatomy
    from interp.records import FigureRecord
    from interp.series import HeatMap
    from interp.types import WeightDelta

SUFFIXES = (".svg", ".png")


@click.command(
    epilog="Example: interp diff smollm2 my-finetune --direction my-delta --figure diff.svg"
)
@click.argument("base")
@click.argument("other", type=click.Path(exists=True, path_type=Path))
@click.option("--rank", type=click.IntRange(min=1), help="keep at most this rank of each matrix")
@click.option(
    "--tolerance", type=FiniteRange(0, 1, max_open=True),
    help="keep as few ranks as leave out this share of a matrix's change "
    "(default: all that rounding does not explain)",
)  # fmt: skip
@click.option(
    "--direction", "directions", multiple=True, metavar="FILE[#NAME]|DELTA",
    help="a vector in a safetensors file, or a delta whose common output direction is used; "
    "may be given several times",
)  # fmt: skip
@click.option("--all", "every", is_flag=True, help="list unchanged writers too")
@click.option(
    "--figure", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", callback=check_place,
    help="draw block × kind as .svg or .png, with its record as .json beside it",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", callback=check_place,
    help="save the difference as a delta",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="replace what is at --out")
@loading_options
@json_option
def command(
    base: str,
    other: Path,
    every: bool,
    figure: Path | None,
    out: Path | None,
    overwrite: bool,
    json_file: Path | None,
    **reading: Any,
) -> None:
    """Print the norm, rank and direction of every change from BASE to OTHER.

    OTHER is a finetuned or merged model directory, a delta, a LoRA adapter, or a LoRA GGUF. No model is
    loaded: files are read tensor by tensor.
    """
    from interp.export import save_delta
    from interp.export.staging import check_target

    if figure is not None and figure.suffix not in SUFFIXES:
        raise click.UsageError(f"--figure is drawn as {' or '.join(SUFFIXES)}, not {figure.name}")
    if out is not None:
        check_target(out, overwrite=overwrite)
    found = _compared(base, other, **reading)
    _print(found, every)
    if out is not None:
        click.echo(f"wrote {save_delta(found.delta, out, overwrite=overwrite)} (unproven)")
    if figure is not None:
        _draw(_record(found), figure)
    write_result(json_file, _result(found))


@dataclass(frozen=True)
class Difference:
    """A difference of two models. lines: of every parameter. along: directions it is compared with."""

    base: str
    other: Path
    delta: WeightDelta
    anatomy: Anatomy
    lines: Sequence[Line]
    along: Sequence[Named]

    @property
    def title(self) -> str:
        return f"{_short(self.base)} → {_short(str(self.other))}"


def _compared(
    base: str,
    other: Path,
    *,
    rank: int | None,
    tolerance: float | None,
    directions: tuple[str, ...],
    **loading: Any,
) -> Difference:
    from interp.cli.progress import watching
    from interp.export.exporter import Base
    from interp.export.reading import read_edit, stored_base
    from interp.export.summary import read_direction, summary
    from interp.models.skeleton import skeleton

    kept = {k: loading[k] for k in ("trust_remote_code", "revision") if loading[k]}
    model, anatomy = skeleton(base, **kept)
    along = [read_direction(text, anatomy) for text in directions]
    with watching() as watch:
        delta = read_edit(other, base, rank=rank, tolerance=tolerance, watch=watch, **kept)
        checkpoint = stored_base(Base(model, None, anatomy, base, kept))
        advance = watch("norms of the base", len(anatomy.writers))
        lines = summary(delta, model, anatomy, checkpoint, along, advance)
    return Difference(base, other, delta, anatomy, lines, along)


def _short(name: str) -> str:
    return Path(name).name if Path(name).exists() else name


# --- tables ------------------------------------------------------------------------------------


def _print(found: Difference, every: bool) -> None:
    from interp.cli.tables import table
    from interp.export.summary import random_share, totals

    lines, along, delta = found.lines, found.along, found.delta
    named = [f">along {d.name}" for d in along]
    table(
        found.title,
        ("parameter", "kind", ">‖ΔW‖", ">/ ‖W‖", ">eff. rank", ">rank", ">left out", *named),
        [_cells(line, along) for line in lines if every or line.norm > 0.0],
    )
    for what in ("kind", "block"):
        sums = totals(lines, attrgetter(what))
        rows = [[str(k), *_numbers(t, along)] for k, t in sums.items() if every or t.norm > 0.0]
        table(f"by {what}", (what, ">‖ΔW‖", ">/ ‖W‖", *named), rows)
    changed = sum(line.norm > 0.0 and line.writes for line in lines)
    writers = sum(line.writes for line in lines)
    click.echo(f"{changed} of {writers} writers changed; {delta.exactness}")
    if along:
        d = found.anatomy.d_model
        click.echo(f"a random direction holds {random_share(d):.3f} (√(1/{d}))")
    for note in filter(None, (d.note for d in along)):
        click.echo(note)
    click.echo("effective rank: exp of the entropy of σ²/Σσ² (after Roy and Vetterli, 2007)")
    if delta.untied:
        click.echo("the embedding is no longer shared with the unembedding")
    print_rest(delta.recipe)


def print_rest(recipe: Mapping[str, Any]) -> None:
    """Say what a difference of two checkpoints leaves out."""
    if recipe.get("method") != "difference":
        return
    for name, norm in recipe["rounding"].items():
        click.echo(f"within rounding: {name}, ‖ΔW‖ {norm:.3g}")
    for name, entry in recipe["not_held"].items():
        size = "another shape" if entry["norm"] is None else f"‖ΔW‖ {entry['norm']:.3g}"
        if entry["relative"] is not None:
            size += f" ({entry['relative']:.2%})"
        click.echo(f"changed but not held: {name}, {size}: {entry['why']}")


def _cells(line: Line, along: Sequence[Named]) -> list[str]:
    return [
        line.name,
        line.kind + (" bias" if line.bias else ""),
        f"{line.norm:.4g}",
        "–" if line.relative is None else f"{line.relative:.2%}",
        "–" if line.bias or not line.norm else f"{line.effective_rank:.2f}",
        "–" if line.bias or not line.norm else str(line.rank),
        f"{line.left_out:.2%}" if line.left_out > 5e-5 else "0",
        *(f"{line.shares[d.name]:.3f}" if d.name in line.shares else "–" for d in along),
    ]


def _numbers(total: Total, along: Sequence[Named]) -> list[str]:
    return [
        f"{total.norm:.4g}",
        "–" if total.relative is None else f"{total.relative:.2%}",
        *(f"{total.shares[d.name]:.3f}" if d.name in total.shares else "–" for d in along),
    ]


# --- figure and files --------------------------------------------------------------------------


def _record(found: Difference) -> FigureRecord:
    """Blocks × kinds of writer: relative norm, and below it the share along each direction."""
    from interp.records import FigureRecord, Provenance

    series = _map(found)
    caption = (
        "Matrices that write the residual stream; hatched: there is none, or nothing to share. "
    )
    if outside := series.beside["not_in_the_map"]:
        caption += f"{len(outside)} other changed parameters are not in the map"
    made_for = None if found.delta.base == "unverified" else found.delta.base
    return FigureRecord(
        key="diff/weights",
        title=found.title,
        series=series,
        provenance=Provenance.collect(found.base, fingerprint=made_for),
        caption=caption.strip(),
    )


def _map(found: Difference) -> HeatMap:
    from interp.export.summary import random_share, totals
    from interp.series import HeatMap, MapPanel, Names, Reference

    cells = totals(found.lines, lambda x: None if x.block is None else (x.kind, x.block))
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    blocks = range(found.anatomy.n_blocks)

    def values(of: Any) -> list[list[float | None]]:
        return [[of(cells[k, i]) if (k, i) in cells else None for i in blocks] for k in kinds]

    if all(total.relative is not None for total in cells.values()):
        panels = [MapPanel("‖ΔW‖ / ‖W‖", values(lambda t: t.relative))]
    else:
        panels = [MapPanel("‖ΔW‖", values(lambda t: t.norm))]
    chance = Reference(random_share(found.anatomy.d_model), "a random direction")
    for named in found.along:
        shares = values(lambda t, name=named.name: t.shares.get(name))
        if any(v is not None for row in shares for v in row):
            label = f"share along {named.name}"
            panels.append(MapPanel(label, shares, limits=(0, 1), reference=chance))
    changed = (line for line in found.lines if line.norm > 0.0)
    outside = [line.name for line in changed if not line.writes or line.block is None]
    return HeatMap(
        columns=Names("block", [str(i) for i in blocks]),
        rows=Names("", kinds),
        panels=panels,
        beside={"not_in_the_map": outside},
    )


def _draw(record: FigureRecord, figure: Path) -> None:
    from interp.figures import render
    from interp.files import write_json

    path = figure.with_suffix(".json")
    write_json(path, record.as_json())
    render(path, figure.suffix)
    click.echo(f"wrote {path}\nwrote {figure}")


def _result(found: Difference) -> dict[str, Any]:
    from interp.export.summary import as_json, random_share, totals

    delta, lines = found.delta, found.lines
    by_kind, by_block = (totals(lines, attrgetter(what)) for what in ("kind", "block"))
    return {
        "base": found.base,
        "other": str(found.other),
        "fingerprint": delta.base,
        "method": delta.recipe.get("method"),
        "exactness": delta.exactness,
        "norm": delta.norm(),
        "rank": delta.rank,
        "untied": delta.untied,
        "directions": {d.name: d.note for d in found.along},
        "random_share": random_share(found.anatomy.d_model),
        "lines": [as_json(line) for line in lines],
        "by_kind": {key: total.as_json() for key, total in by_kind.items()},
        "by_block": {str(key): total.as_json() for key, total in by_block.items()},
        "rounding": delta.recipe.get("rounding", {}),
        "not_held": delta.recipe.get("not_held", {}),
    }
