"""What the commands of ``interp edit`` share: options, and the way from an edit to a saved delta."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
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
    from interp.data import PromptSet
    from interp.lm import LM
    from interp.methods.refusal import Choice, Fitted
    from interp.recipes import AblationEdit, LeastDisturbanceEdit
    from interp.types import WeightDelta

Fit = Callable[["LM"], "Made"]

save_options = stack(
    delta_option,
    click.option("--overwrite", is_flag=True, help="replace what is at --out"),
    out_option(),
    json_option,
)
edit_options = stack(model_options, prompt_options, markers_option, save_options)


@dataclass(frozen=True)
class Made:
    """An edit as a delta. shown: what was done, in a line. result: its part of ``--json``.

    judges: spellings of judges that see what the edit does.
    """

    delta: WeightDelta
    shown: str
    result: dict[str, Any]
    judges: tuple[str, ...] = ()


def make_and_save(given: Given, make: Fit) -> None:
    """Make an edit, on the model with ``--delta`` in it if there is one, and save it verified.

    What is saved is the sum of both deltas.
    """
    from interp.cli.progress import watching
    from interp.edits import applied
    from interp.export.staging import check_target
    from interp.methods.refusal import rebased

    out, overwrite = given.values["out"], given.values["overwrite"]
    check_target(out, overwrite=overwrite)
    before = read_delta(given.values["delta_dir"])
    lm = given.open()
    with watching(out) as watch:
        lm = lm.using(watch=watch)
        if before is None:
            made = make(lm)
            delta = made.delta
        else:
            with applied(lm.hf, lm.anatomy, before):
                made = make(lm)
            delta = before.compose(rebased(made.delta, before))
        verdict = _save(given, lm, delta)
    _tell(made, lm, delta)
    click.echo(f"delta {verdict}: {out}")
    judges = [word for judge in made.judges for word in ("--judge", judge)]
    words = ("interp", "measure", "--model", given.values["model"], "--delta", str(out), *judges)
    click.echo(f"unproven until it is measured: {shlex.join(words)}")
    result = {
        "delta": str(out),
        "recipe": dict(delta.recipe),
        "coverage": {"edited": len(delta.coverage.edited), "writers": delta.coverage.total},
        "verdict": verdict,
    }
    write_result(given.values["json_file"], result | made.result)


def finish(
    given: Given,
    lm: LM,
    fitted: Fitted,
    recipe: AblationEdit | LeastDisturbanceEdit,
    select: tuple[PromptSet, PromptSet],
    reading: dict[str, Any],
) -> Made:
    """The edit of refusal with what its recipe leaves open chosen on the select split, in closed form.

    The select split is not looked at where nothing is left open; otherwise it joins the fit once it has
    chosen. reading: options of :func:`interp.methods.refusal.fit`, as for the first fit.
    """
    from interp.methods import refusal

    settings = refusal.candidates(recipe, fitted, lm.n_blocks)
    if len(settings) == 1:
        choice = refusal.Choice(settings[0], ())
        return _chosen(given, lm, choice, refusal.finished(lm, fitted, settings[0]))
    selection = refusal.Selection.prepare(lm, fitted, *select)
    choice = refusal.choose(selection, settings, watch=lm.watch)
    fitted = fitted.joined(refusal.fit(lm, *select, **reading))
    delta = refusal.finished(lm, fitted, choice.setting, chosen_on=select)
    return _chosen(given, lm, choice, delta)


def _chosen(given: Given, lm: LM, choice: Choice, delta: WeightDelta) -> Made:
    setting = choice.setting
    shown = (
        f"{setting.method}: direction of block {setting.block}, blocks {setting.first_block} … "
        f"{lm.n_blocks - 1}, strength {setting.strength:g}"
    )
    return Made(delta, shown, {"choice": choice.as_json(), "judge": given.judge.as_json()})


def _save(given: Given, lm: LM, delta: WeightDelta) -> str:
    from interp.export import export
    from interp.export.gate import shipped_cards

    return export(
        delta, to="delta", base=lm.backend, base_name=given.values["model"], out=given.values["out"],
        overwrite=given.values["overwrite"], cards=shipped_cards(), unproven=True, keep_model=False,
        **given.loading,
    ).verdict  # fmt: skip


def _tell(made: Made, lm: LM, delta: WeightDelta) -> None:
    click.echo(made.shown)
    click.echo(
        f"{len(delta.coverage.edited)} of {delta.coverage.total} writers edited; rank {delta.rank}; "
        f"{delta.exactness}"
    )
    for module, why in lm.anatomy.unreached.items():
        click.echo(f"not edited: {module} {why}")
