"""What the commands of ``interp edit`` share: options, and the way from a choice to a saved delta."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import (
    Given,
    delta_option,
    json_option,
    markers_option,
    model_options,
    out_option,
    prompt_options,
    read_delta,
    stack,
    write_result,
)

if TYPE_CHECKING:
    from interp.backends import Backend
    from interp.data import PromptSet
    from interp.methods.refusal import Choice, Fitted
    from interp.types import WeightDelta
    from interp.watching import Watch

Fit = Callable[["Backend", "Watch"], "tuple[Choice, WeightDelta]"]
"""``fit(backend, watch)``: what was chosen, and its delta."""

edit_options = stack(
    model_options,
    prompt_options,
    markers_option,
    delta_option,
    click.option("--overwrite", is_flag=True, help="replace what is at --out"),
    out_option(),
    json_option,
)


def fit_and_save(given: Given, fit: Fit, *, method: str) -> None:
    """Fit an edit, on the model with ``--delta`` in it if there is one, and save it verified.

    What is saved is the sum of both deltas.
    """
    from interp.cli.progress import watching
    from interp.edits import applied
    from interp.export.staging import check_target
    from interp.methods.refusal import rebased

    out, overwrite = given.values["out"], given.values["overwrite"]
    check_target(out, overwrite=overwrite)
    before = read_delta(given.values["delta_dir"])
    backend = given.open()
    with watching(out) as watch:
        if before is None:
            choice, delta = fit(backend, watch)
        else:
            with applied(backend.model, backend.anatomy, before):
                choice, made = fit(backend, watch)
            delta = before.compose(rebased(made, before))
        verdict = _save(given, backend, delta)
    _tell(method, choice, backend, delta)
    click.echo(f"delta {verdict}: {out}")
    measure = ("interp", "measure", "--model", given.values["model"], "--delta", str(out))
    click.echo(f"unproven until it is measured: {shlex.join(measure)}")
    result = {
        "delta": str(out),
        "recipe": dict(delta.recipe),
        "choice": choice.as_json(),
        "coverage": {"edited": len(delta.coverage.edited), "writers": delta.coverage.total},
        "verdict": verdict,
        "judge": given.judge.as_json(),
    }
    write_result(given.values["json_file"], result)


def finish(
    given: Given,
    backend: Backend,
    fitted: Fitted,
    choice: Choice,
    select: tuple[PromptSet, PromptSet],
    reading: dict[str, Any],
) -> WeightDelta:
    """The delta of the chosen setting, fitted on the select split as well once that has chosen it.

    reading: options of :func:`interp.methods.refusal.fit`, as for the first fit.
    """
    from interp.methods import refusal

    if choice.scores:
        fitted = fitted.joined(refusal.fit(backend, *select, **reading))
    return refusal.finished(
        backend, fitted, choice.setting, given.values["model"], batch_size=given.batch_size,
        watch=reading["watch"], chosen_on=select if choice.scores else (),
    )  # fmt: skip


def _save(given: Given, backend: Backend, delta: WeightDelta) -> str:
    from interp.export import export
    from interp.export.gate import shipped_cards

    return export(
        delta, to="delta", base=backend, base_name=given.values["model"], out=given.values["out"],
        overwrite=given.values["overwrite"], cards=shipped_cards(), unproven=True, keep_model=False,
        **given.loading,
    ).verdict  # fmt: skip


def _tell(method: str, choice: Choice, backend: Backend, delta: WeightDelta) -> None:
    chosen = choice.setting
    click.echo(
        f"{method}: direction of block {chosen.direction_block}, blocks {chosen.first_block} … "
        f"{backend.anatomy.n_blocks - 1}, strength {chosen.strength:g}"
    )
    click.echo(
        f"{len(delta.coverage.edited)} of {delta.coverage.total} writers edited; rank {delta.rank}; "
        f"{delta.exactness}"
    )
    for module, why in backend.anatomy.unreached.items():
        click.echo(f"not edited: {module} {why}")


def named(recipe: Any, **names: str) -> dict[str, Any]:
    """Fields of a candidate that a recipe sets; those it leaves open are searched.

    names: field of the candidate → setting of the recipe.
    """
    found = {name: getattr(recipe, own) for name, own in names.items()}
    return {name: value for name, value in found.items() if value is not None}
