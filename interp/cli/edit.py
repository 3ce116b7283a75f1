"""``interp edit``: fit an edit, choose it on held-out prompts, save it as a delta."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import (
    Given,
    delta_option,
    json_option,
    markers_option,
    model_options,
    out_option,
    pool_option,
    prompt_options,
    read_delta,
    write_result,
)

if TYPE_CHECKING:
    from interp.backends import Backend
    from interp.data import PromptSet
    from interp.methods.refusal import Choice, Fitted
    from interp.types import WeightDelta

OPENED = ("opened", "again", "opened_weight")
"""Options of an edit that acts after an opener as well."""
LEAST = ("ridge", "attention", "opener", *OPENED, "worth", "response_tokens", "spoken_weight", "prose",
         "prose_weight", "all_requests", "pool")  # fmt: skip
"""Options that a least-disturbance edit alone depends on."""
PROSE = 200
"""Prompts whose responses count as prose where the edit acts after an opener as well."""


class Ridge(click.ParamType):
    """A positive number, or ``auto`` (None) for the leave-one-out choice."""

    name = "number|auto"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        if value is None or value == "auto":
            return None
        return click.FloatRange(min=0, min_open=True).convert(value, param, ctx)


@click.command(
    epilog="Example: interp edit --model smollm2 --method least-disturbance --out my-delta"
)
@click.option(
    "--method", type=click.Choice(["ablation", "least-disturbance"]), required=True, help="operator"
)
@model_options
@prompt_options
@markers_option
@pool_option
@delta_option
@click.option(
    "--block", type=click.IntRange(min=0), help="block to read the direction at (default: chosen)"
)
@click.option(
    "--first-block", type=click.IntRange(min=0), help="first edited block (default: chosen)"
)
@click.option(
    "--strength",
    type=float,
    help="share removed: λ or α; 0 nothing, 1 all, 2 reflects an ablation, negative deepens refusal",
)
@click.option("--ridge", type=Ridge(), metavar="NUMBER|auto", default=0.02,
              show_default="0.02; 0.01 with --opener",
              help="least disturbance: ε in units of the mean diagonal of Σ; auto takes for each writer "
              "the one that moves left-out comply rows least")  # fmt: skip
@click.option("--attention", type=click.FloatRange(min=0), show_default="1; 0.3 with --opener",
              help="least disturbance: what attention writers carry beside 1 for MLPs")  # fmt: skip
@click.option("--opener", metavar="TEXT|auto",
              help="least disturbance: move the classes once this has been said as well, which asks for "
              "less at the first token; auto finds what the model's refusals open with")  # fmt: skip
@click.option("--opened", type=click.FloatRange(min=0), show_default="chosen",
              help="with --opener: share removed there")  # fmt: skip
@click.option("--again", type=click.FloatRange(min=0), show_default="chosen",
              help="with --opener: fit again on what is left refused, at this share of the strengths; "
              "0 for once")  # fmt: skip
@click.option("--worth", type=click.FloatRange(min=0), metavar="NATS", show_default="0; 0.06 with --opener",
              help="least disturbance: learn what the edit reads and writes, where a logit of refusal left "
              "may cost so many nats of KL; 0 keeps the closed form, which takes minutes less")  # fmt: skip
@click.option("--response-tokens", type=click.IntRange(min=0), default=16, show_default=True,
              help="response tokens of comply prompts that the edit leaves alone as well")  # fmt: skip
@click.option("--spoken-weight", type=click.FloatRange(min=0), default=0.05, show_default=True,
              help="how much those count beside the decision position")  # fmt: skip
@click.option("--prose", type=click.IntRange(min=0), metavar="N", show_default="0; 200 with --opener",
              help="least disturbance: leave alone as well what the model writes in response to so many "
              "answerable prompts, as a response and as plain text; what is learned leaves these and shipped "
              "English prose alone, neither with 0")  # fmt: skip
@click.option("--prose-weight", type=click.FloatRange(min=0), default=0.1, show_default=True,
              help="how much that counts beside the decision position")  # fmt: skip
@click.option("--opened-weight", type=click.FloatRange(min=0), default=0.05, show_default=True,
              help="with --opener: how much answerable prompts count after it")  # fmt: skip
@click.option("--all-requests", is_flag=True,
              help="fit on every request, also on those that the model answers")  # fmt: skip
@click.option("--embeddings", is_flag=True, help="ablation: edit the embeddings as well")
@click.option("--winsor", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
              help="clip activations at this quantile of |x|")  # fmt: skip
@click.option("--keep-comply-mean/--no-keep-comply-mean", default=True, show_default=True,
              help="make the direction orthogonal to the comply mean")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="replace what is at --out")
@out_option()
@json_option
def command(
    method: str,
    delta_dir: Path | None,
    out: Path,
    overwrite: bool,
    json_file: Path | None,
    **values: Any,
) -> None:
    """Fit an edit on the fit split, choose block and strength on the select split, save a delta.

    Name --block, --first-block and --strength to choose nothing. With --delta the edit is fitted on the
    model with that delta in it, and what is saved is the sum of both.
    """
    from interp.cli.progress import watching
    from interp.edits import applied
    from interp.export import export
    from interp.export.gate import shipped_cards
    from interp.export.staging import check_target
    from interp.methods import refusal

    given = Given(values)
    least = method == "least-disturbance"
    _check_options(method, values)
    check_target(out, overwrite=overwrite)
    before = read_delta(delta_dir)
    judge = given.judge
    fit_r, fit_c, select_r, select_c = given.fit_and_select()
    backend = given.open()
    with watching(out) as watch:

        def run() -> tuple[Fitted, Choice]:
            pool = given.pool(fit_r, select_r, select_c) if least else None
            opener = _opener(given, backend, fit_r, fit_c, watch)
            prose = _prose(given, pool or fit_c, opener) if least else None
            fitted = _fit(given, backend, fit_r, fit_c, pool, prose, opener, watch, least)
            choice = _choose(method, given, backend, fitted, select_r, select_c, watch)
            if choice.scores:
                # Everything is chosen: the last fit may use the prompts that chose it.
                more = _fit(given, backend, select_r, select_c, None, None, opener, watch, least)
                fitted = fitted.joined(more)
            return fitted, choice

        if before is None:
            fitted, choice = run()
            delta = _delta(given, backend, fitted, choice, (select_r, select_c), watch)
        else:
            with applied(backend.model, backend.anatomy, before):
                fitted, choice = run()
                made = _delta(given, backend, fitted, choice, (select_r, select_c), watch)
            delta = before.compose(refusal.rebased(made, before))
        receipt = export(
            delta, to="delta", base=backend, base_name=values["model"], out=out,
            overwrite=overwrite, cards=shipped_cards(), unproven=True, **given.loading,
        )  # fmt: skip
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
    click.echo(f"delta {receipt.verdict}: {out}")
    click.echo(
        f"unproven until it is measured: interp measure --model {values['model']} --delta {out}"
    )
    write_result(
        json_file,
        {
            "delta": str(out),
            "recipe": dict(delta.recipe),
            "choice": choice.as_json(),
            "coverage": {"edited": len(delta.coverage.edited), "writers": delta.coverage.total},
            "verdict": receipt.verdict,
            "judge": judge.as_json(),
        },
    )


def _check_options(method: str, values: dict[str, Any]) -> None:
    """Raise UsageError for an option on the command line that the edit would ignore."""
    source = click.get_current_context().get_parameter_source
    given = {name for name in values if source(name) is click.core.ParameterSource.COMMANDLINE}
    option = lambda name: "--" + name.replace("_", "-")  # noqa: E731
    if method == "ablation":
        if ignored := [name for name in LEAST if name in given]:
            raise click.UsageError(f"{option(ignored[0])} goes with --method least-disturbance")
        return
    if values["embeddings"]:
        raise click.UsageError("--embeddings goes with --method ablation: at the last template token "
                               "every prompt has the same embedding")  # fmt: skip
    no_prose = values["prose"] == 0 or (values["prose"] is None and not values["opener"])
    needs = [(name, "--opener", not values["opener"]) for name in OPENED]
    needs.append(("spoken_weight", "--response-tokens", not values["response_tokens"]))
    needs.append(("prose_weight", "--prose", no_prose))
    for name, needed, missing in needs:
        if missing and name in given:
            raise click.UsageError(
                f"{option(name)} goes with {needed}, without which it does nothing"
            )


def _opener(given: Given, backend: Backend, refuse: Any, comply: Any, watch: Any) -> str:
    """What --opener names or finds; a model without one is told, and edited at the first token alone."""
    from interp.methods.refusal import find_opener

    asked = given.values["opener"] or ""
    if asked != "auto":
        return asked
    found = find_opener(
        backend, refuse, comply, chat=given.chat, judge=given.judge,
        batch_size=given.batch_size, watch=watch,
    )  # fmt: skip
    click.echo(f"opener: {found!r}" if found else "opener: none, refusals share no beginning")
    return found


def _prose(given: Given, prompts: PromptSet, opener: str) -> PromptSet | None:
    """Those prompts, spread evenly, whose responses the edit leaves alone as well."""
    count = given.values["prose"]
    if count is None:
        count = PROSE if opener else 0
    return prompts.spread(count) if count and given.values["prose_weight"] else None


def _fit(
    given: Given,
    backend: Backend,
    refuse: Any,
    comply: Any,
    pool: Any,
    prose: Any,
    opener: str,
    watch: Any,
    least: bool,
) -> Fitted:
    from interp.fitting import DirectionRecipe
    from interp.methods.refusal import fit

    recipe = DirectionRecipe(given.values["keep_comply_mean"], given.values["winsor"])
    return fit(
        backend, refuse, comply, chat=given.chat, recipe=recipe, pool=pool, prose=prose,
        # An ablation takes the direction alone: neither of these changes it, and both take time.
        response_tokens=given.values["response_tokens"] if least else 0,
        behaviour_filter=least and not given.values["all_requests"], opener=opener,
        judge=given.judge, batch_size=given.batch_size, watch=watch,
    )  # fmt: skip


def _choose(
    method: str,
    given: Given,
    backend: Backend,
    fitted: Fitted,
    refuse: Any,
    comply: Any,
    watch: Any,
) -> Choice:
    """The setting that the options name, or the best of those they leave open."""
    from dataclasses import replace

    from interp.methods.refusal import Choice, Selection, candidates, choose
    from interp.methods.refusal.choose import OPENED_RIDGE, opened_candidates
    from interp.methods.refusal.learning import WORTH

    v = given.values
    fixed = {k: v[k] for k in ("ridge", "embeddings")}
    fixed |= {k: v[k] for k in ("spoken_weight", "prose_weight", "opened_weight")}
    named = {"direction_block": v["block"], "first_block": v["first_block"]}
    named |= {k: v[k] for k in ("strength", "attention")}
    grid = candidates(backend, fitted, method, **fixed)
    if fitted.opened is not None:
        named |= {k: v[k] for k in ("opened", "again", "worth")}
        source = click.get_current_context().get_parameter_source("ridge")
        grid = opened_candidates(backend, fitted, method, worth=WORTH, **fixed)
        if source is click.core.ParameterSource.DEFAULT:
            grid = (replace(setting, ridge=OPENED_RIDGE) for setting in grid)
    named = {k: x for k, x in named.items() if x is not None}
    settings = list(dict.fromkeys(replace(s, **named) for s in grid))
    choice = Choice(settings[0], ())
    if len(settings) > 1:
        common: dict[str, Any] = {"chat": given.chat, "batch_size": given.batch_size}
        selection = Selection.prepare(backend, fitted, refuse, comply, watch=watch, **common)
        choice = choose(selection, settings, watch=watch)
    if fitted.opened is None and v["worth"]:
        # To learn each of so many candidates would take hours.
        choice = replace(choice, setting=replace(choice.setting, worth=v["worth"]))
    return choice


def _delta(
    given: Given,
    backend: Backend,
    fitted: Fitted,
    choice: Choice,
    select: tuple[PromptSet, PromptSet],
    watch: Any,
) -> WeightDelta:
    from interp.methods.refusal import finished

    return finished(
        backend, fitted, choice.setting, given.values["model"],
        chosen_on=select if choice.scores else (), batch_size=given.batch_size, watch=watch,
    )  # fmt: skip
