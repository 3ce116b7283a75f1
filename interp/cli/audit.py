"""``interp audit BASE OTHER``: what a finetune or an edit does to traits, before a token is generated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.diff import print_rest
from interp.cli.options import (
    Given,
    as_is,
    class_options,
    json_option,
    loading_options,
    note_other_weights,
    read_classes,
    write_result,
)
from interp.cli.recipes import read_recipe, recipe_options
from interp.methods.persona_vectors.recipe import AuditRecipe

if TYPE_CHECKING:
    from interp.methods.persona_vectors.audit import Audit

STRONGEST = 3
"""Blocks that the table names."""


@click.command(
    epilog="Example: interp audit smollm2 my-finetune --vectors out/terse --vectors out/hedging --refusal"
)
@click.argument("base")
@click.argument("other", type=click.Path(exists=True, path_type=Path))
@click.option("--vectors", "folders", type=click.Path(exists=True, path_type=Path), multiple=True,
              metavar="DIR", help="persona vectors; may be given several times")  # fmt: skip
@click.option(
    "--refusal", is_flag=True, help="audit the refusal direction of --refuse and --comply as well"
)
@click.option("--prompts", default="answerable", show_default=True, metavar="FILE|SET",
              help="neutral prompts at whose last token the shift is read")  # fmt: skip
@click.option("--n-prompts", type=click.IntRange(min=2), default=64, show_default=True,
              help="use at most this many of --prompts")  # fmt: skip
@recipe_options(AuditRecipe)
@class_options
@loading_options
@json_option
def command(
    base: str, other: Path, folders: tuple[Path, ...], refusal: bool, json_file: Path | None, **values: Any
) -> None:  # fmt: skip
    """Predict from weights which traits OTHER will show more or less than BASE.

    OTHER is a delta, a LoRA adapter, a LoRA GGUF, or a finetuned or merged model directory. Both models read
    neutral prompts, and the mean shift of the stream is projected on each persona vector (arXiv 2507.21509,
    §4.2); 1 is the shift that adding the vector makes. With --read response they read prose in place of their
    responses. Beside the shift stand what the changed matrices write along the vector on what they read in
    BASE, and the same for random directions.
    """
    from interp.cli.progress import watching
    from interp.data import load_class
    from interp.export.reading import read_edit
    from interp.methods.persona_vectors import PersonaVector
    from interp.methods.persona_vectors.audit import as_json, audit, refusal_vector

    recipe = read_recipe(AuditRecipe, values)
    if not folders and not refusal:
        raise click.UsageError("nothing to project on: give --vectors DIR, --refusal or both")
    personas = [PersonaVector.load(folder) for folder in folders]
    prompts = load_class(values["prompts"], "comply", limit=values["n_prompts"])
    classes = read_classes(values, "fit") if refusal else None
    kept = {k: values[k] for k in ("trust_remote_code", "revision") if values[k]}
    with watching(json_file) as watch:
        delta = read_edit(other, base, watch=watch, **kept)
        lm = Given(as_is(values | {"model": base, "backend": "hooks"})).open().using(watch=watch)
        for persona in personas:
            note_other_weights(persona, lm)
        if classes is not None:
            personas.append(refusal_vector(lm, *classes))
        found = audit(lm, delta, personas, prompts, recipe)
    _print(f"{base} → {other}, {len(prompts)} prompts of {prompts.source}", found)
    print_rest(delta.recipe)
    about = {"source": prompts.source, "sha256": prompts.sha256, "n": len(prompts)}
    result = {"base": base, "other": str(other), "fingerprint": delta.base, "prompts": about}
    result |= {"controls": recipe.controls, "traits": [as_json(each) for each in found]}
    result |= {"not_held": delta.recipe.get("not_held", {})}
    write_result(json_file, result)


def _print(title: str, found: Sequence[Audit]) -> None:
    from interp.cli.tables import table

    columns = ("trait", ">layer", "predicted", ">shift ‖v‖", ">95 %", ">z", ">weights alone", ">z")
    table(title, columns, [_cells(each) for each in found])
    kinds = list(dict.fromkeys(kind for each in found for kind in each.by_kind))
    rows = [
        [each.trait, *(f"{each.by_kind[kind]:.3f}" for kind in kinds), _strongest(each)]
        for each in found
    ]
    table("what writes the shift, ‖v‖", ("trait", *(f">{kind}" for kind in kinds), "blocks"), rows)
    click.echo(
        "z and predicted: beside random directions of equal norm; weights alone: changed matrices on what "
        "they read in the base"
    )


def _cells(found: Audit) -> list[str]:
    low, high = found.interval or (None, None)
    weights = found.weights
    return [
        found.trait,
        str(found.layer),
        found.predicted,
        f"{found.shift.value:.3f}",
        "–" if low is None else f"{low:.3f} to {high:.3f}",
        _number(found.shift.z),
        "–" if weights is None else f"{weights.value:.3f}",
        "–" if weights is None else _number(weights.z),
    ]


def _number(z: float | None) -> str:
    return "–" if z is None else f"{z:.1f}"


def _strongest(found: Audit) -> str:
    """The blocks that write most of the shift, either way."""
    ranked = sorted(found.by_block.items(), key=lambda item: -abs(item[1]))[:STRONGEST]
    return ", ".join(
        f"{'embed' if block < 0 else block}: {value:.3f}" for block, value in ranked if value
    )
