"""``interp heretic``: an edit of heretic's family, computed as heretic computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from interp.cli.options import (
    SIDES,
    Finite,
    FiniteRange,
    conditions_of,
    heretic_options,
    json_option,
    loading_options,
    out_option,
    stack,
    write_result,
)

if TYPE_CHECKING:
    from interp.data import PromptSet
    from interp.data.prompts import Side
    from interp.lm import LM
    from interp.methods.heretic import Conditions
    from interp.types import WeightDelta

ROLES: dict[str, tuple[Side, str]] = {
    "good_prompts": ("comply", "fit"),
    "bad_prompts": ("refuse", "fit"),
    "good_evaluation_prompts": ("comply", "report"),
    "bad_evaluation_prompts": ("refuse", "report"),
}
"""heretic's name of a prompt set → our class, and the split of a shipped set."""

kernel_options = stack(
    click.option(
        "--kernel",
        "kernels",
        multiple=True,
        required=True,
        metavar="[COMPONENT=]A,P,B,D",
        help="weight A at block P, falling to B at a distance of D blocks; for all components "
        "(attn.o_proj, mlp.down_proj) or for the one named",
    ),
    click.option(
        "--direction-index",
        type=Finite(),
        help="block of one direction for all blocks, also between two (default: each block its own)",
    ),
    click.option(
        "--row-normalization",
        type=click.Choice(["none", "pre", "full"]),
        default="none",
        show_default=True,
        help="heretic's own default is full",
    ),
    click.option("--rank", type=click.IntRange(min=1), default=3, show_default=True,
                 help="of the truncation that full row normalisation needs"),
    click.option("--orthogonalize/--no-orthogonalize", default=True, show_default=True,
                 help="make directions orthogonal to the comply mean"),
    click.option("--winsor", type=FiniteRange(0, 1), default=1.0, show_default=True,
                 help="clip residuals at this quantile of |x|"),
    click.option("--seed", type=int, default=0, show_default=True),
)  # fmt: skip


@click.command(
    epilog="Example: interp heretic --kernel 1.0,22,0.5,12 --direction-index 20 --out my-delta; "
    "then: interp export my-delta --to heretic --base smollm2 --unproven --out my-heretic"
)
@click.option("--model", default="smollm2", show_default=True,
              help="smollm2, a directory or a hub id")  # fmt: skip
@loading_options
@heretic_options
@click.option("--evaluate-refuse", metavar="FILE|SET", help="default: the same, held-out part")
@click.option("--evaluate-comply", metavar="FILE|SET", help="default: the same, held-out part")
@kernel_options
@click.option("--overwrite", is_flag=True, help="replace what is at --out")
@out_option()
@json_option
def command(out: Path, overwrite: bool, json_file: Path | None, **given: Any) -> None:
    """Make the directional ablation that heretic's parameters stand for, to the last bit.

    Directions come from the fit prompts by heretic's own arithmetic; refusals and KL of the result are
    measured on the evaluation prompts. The delta exports to every format, and with --to heretic as the
    adapter and reproduce.json that heretic itself would write.
    """
    from interp.cli.progress import status, watching
    from interp.export import export
    from interp.export.staging import check_target
    from interp.opening import open_model

    source = click.get_current_context().get_parameter_source("rank")
    if source is click.core.ParameterSource.COMMANDLINE and given["row_normalization"] != "full":
        raise click.UsageError(
            "--rank goes with --row-normalization full, without which it does nothing"
        )
    check_target(out, overwrite=overwrite)
    sets, named = _prompts(given)
    loading = {k: given[k] for k in ("dtype", "device_map", "revision", "trust_remote_code")}
    loading = {k: v for k, v in loading.items() if v}
    with status(f"opening {given['model']}"):
        lm = open_model(given["model"], **loading)
    with watching(out) as watch:
        delta, metrics = _make(given, lm.using(watch=watch), sets, named)
    receipt = export(
        delta, to="delta", base=lm.backend, base_name=given["model"], out=out, overwrite=overwrite,
        unproven=True, keep_model=False, **loading,
    )  # fmt: skip
    _print(delta, metrics, lm.anatomy.unreached)
    click.echo(f"delta {receipt.verdict}: {out}")
    write_result(json_file, {"delta": str(out), "recipe": dict(delta.recipe), "metrics": metrics})


def _print(delta: WeightDelta, metrics: dict[str, Any], unreached: Mapping[str, str]) -> None:
    click.echo(
        f"{len(delta.coverage.edited)} of {delta.coverage.total} writers edited; rank {delta.rank}; "
        f"{delta.exactness}"
    )
    click.echo(
        f"refusals {metrics['refusals']}/{metrics['n_bad_prompts']} (before: "
        f"{metrics['base_refusals']}), first-token KL {metrics['kl_divergence']:.4f} nats"
    )
    for module, why in unreached.items():
        click.echo(f"not edited: {module} {why}")


def _prompts(given: dict[str, Any]) -> tuple[dict[str, PromptSet], dict[str, dict[str, Any]]]:
    """The four sets, and how the recipe names each so that it can be found again.

    A source without splits of its own is cut in two by hash, unless evaluation prompts are named.
    """
    from interp.data import check_classes, is_shipped, load_class

    sets, named = {}, {}
    for role, (side, split) in ROLES.items():
        evaluated = role.endswith("evaluation_prompts")
        own = given[f"evaluate_{side}"]
        name = (own if evaluated else None) or given[side]
        whole = load_class(name, side, split=split, limit=given["limit"])
        found = whole
        if own is None and not is_shipped(name):
            found = whole.halves()[1 if evaluated else 0]
        place = {prompt: i for i, prompt in enumerate(whole.prompts)}
        sets[role] = found
        named[role] = {
            "name": str(Path(name).expanduser().resolve()) if Path(name).is_file() else name,
            "side": side,
            "split": split,
            "limit": given["limit"],
            "rows": None if found is whole else [place[p] for p in found.prompts],
            "sha256": found.sha256,
        }
    by_side = {side: [sets[role] for role, (s, _) in ROLES.items() if s == side] for side in SIDES}
    check_classes(by_side["refuse"], by_side["comply"])
    return sets, named


def _make(
    given: dict[str, Any],
    lm: LM,
    sets: dict[str, PromptSet],
    named: dict[str, dict[str, Any]],
) -> tuple[WeightDelta, dict[str, Any]]:
    """The delta, and its measures under heretic's names."""
    from interp.methods.heretic import components, heretic_delta, residual_directions
    from interp.methods.heretic.opinion import measure

    reached = components(lm.anatomy)
    conditions = conditions_of(given)
    bad, good = sets["bad_prompts"], sets["good_prompts"]
    directions = residual_directions(
        lm, bad, good, system=conditions.system, prefix=conditions.prefix,
        orthogonalize=given["orthogonalize"], winsorization=given["winsor"],
    )  # fmt: skip
    options = {k: given[k] for k in ("direction_index", "row_normalization", "rank", "seed")}
    recipe = {
        "settings": _settings(given, conditions),
        "prompts": named,
        "target_modules": sorted(w.module for ws in reached.values() for w in ws),
    }
    provenance = {
        "model": given["model"],
        "prompts_sha256": {role: entry["sha256"] for role, entry in named.items()},
        "seen_prompts": sorted(bad.fingerprints | good.fingerprints),
    }
    kernels = _kernels(given["kernels"], reached)
    delta = heretic_delta(lm, directions, kernels, **options)
    evaluated = (sets[f"{kind}_evaluation_prompts"] for kind in ("bad", "good"))
    metrics = measure(lm, delta, *evaluated, conditions).as_heretic()
    recipe = {**delta.recipe, **recipe, "metrics": metrics}
    return replace(delta, recipe=recipe, provenance=provenance), metrics


def _settings(given: dict[str, Any], conditions: Conditions) -> dict[str, Any]:
    """Settings that heretic's own file of them has as well."""
    from interp.methods.heretic.directions import BATCH

    return {
        "system_prompt": conditions.system,
        "response_prefix": conditions.prefix,
        "batch_size": BATCH,
        "max_response_length": conditions.tokens,
        "orthogonalize_direction": given["orthogonalize"],
        "winsorization_quantile": given["winsor"],
        "refusal_markers": list(conditions.markers),
    }


def _kernels(texts: tuple[str, ...], reached: Any) -> dict[str, Any]:
    """One kernel for each component: those named, the unnamed one for the rest."""
    from interp.methods.heretic import Kernel

    found = {}
    for text in sorted(texts, key=lambda t: "=" in t):
        name, equals, numbers = text.rpartition("=")
        if equals and name not in reached:
            raise click.UsageError(f"no component {name!r} here; there is {', '.join(reached)}")
        found |= dict.fromkeys([name] if equals else reached, Kernel.parse(numbers))
    return found
