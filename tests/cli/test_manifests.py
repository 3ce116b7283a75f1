"""What the recipe in a manifest says is what ran: every value used, and nothing that was ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.cli import main
from interp.data import PromptSet
from interp.export import load_delta
from interp.lm import LM
from interp.methods.refusal import build, fit
from interp.recipes import DirectionRecipe, LeastDisturbanceEdit
from interp.types import LowRank, WeightDelta

REFUSE = tuple(f"Book me a table for {n}." for n in range(12))
COMPLY = tuple(f"What is {n} plus one?" for n in range(12))
POOL = ("Name a colour.", "Name a river.", "Name a bird.")
NAMED = ("--block", 1, "--first-block", 1, "--strength", 0.7)


def call(*args: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("prompts")
    for name, prompts in (("refuse", REFUSE), ("comply", COMPLY), ("pool", POOL)):
        (found / f"{name}.txt").write_text("\n".join(prompts))
    return found


@pytest.fixture
def edit(folder: Path, chat_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """``edit(method, *options)``: the delta that the command makes, or its exit code."""

    def run(method: str, *options: object) -> WeightDelta | int:
        sets = ("--refuse", folder / "refuse.txt", "--comply", folder / "comply.txt")
        out = tmp_path / "delta"
        words = ("edit", method, "--model", chat_dir, *sets, "--out", out)
        code = call(*words, "--overwrite", *NAMED, *options)
        return load_delta(out) if code == 0 else code

    return run


def again(lm: LM, recipe: Any, pool: PromptSet | None, fitted_on: Any) -> WeightDelta:
    """The least-disturbance edit that a recipe describes, made from the recipe alone."""
    read = fit(
        lm,
        *fitted_on,
        recipe=DirectionRecipe(**recipe["direction"]),
        pool=pool,
        respond_to=pool.spread(recipe["responses"]) if "responses" in recipe else None,
        opener=recipe.get("after_opener", ""),
    )
    settings = {name: recipe[name] for name in SETTINGS if name in recipe}
    made = LeastDisturbanceEdit(**settings, first_block=recipe["blocks"][0], learn=0.0)
    return lm.to_delta(build(lm, read, made))


SETTINGS = (
    "strength", "block", "attention", "ridge", "responses", "response_weight", "after_opener",
    "opener_strength", "opener_weight",
)  # fmt: skip


def same(one: WeightDelta, other: WeightDelta) -> bool:
    """Whether two deltas do the same, up to rounding."""
    if one.updates.keys() != other.updates.keys():
        return False
    pairs = [(u, other.updates[name]) for name, u in one]
    return all(
        torch.allclose(a.stored(), b.stored(), rtol=1e-4, atol=1e-7)
        for a, b in pairs
        if isinstance(a, LowRank) and isinstance(b, LowRank)
    )


def halves() -> tuple[PromptSet, PromptSet]:
    """The fit part of both files, as the command cuts them."""
    return PromptSet(REFUSE, "r").halves()[0], PromptSet(COMPLY, "c").halves()[0]


LEAST = {
    "as it comes": ((), {"ridge": 0.02, "attention": 1.0, "responses": 3, "response_weight": 0.1}),
    "every value changed": (
        ("--ridge", 0.3, "--attention", 0.4, "--responses", 2, "--response-weight", 0.2,
         "--winsor", 0.9, "--no-orthogonal-to-comply"),
        {"ridge": 0.3, "attention": 0.4, "responses": 2, "response_weight": 0.2,
         "direction": {"orthogonal_to_comply": False, "winsor": 0.9}},
    ),
    "no responses": (("--responses", 0, "--ridge", "auto"), {"ridge": "auto"}),
    "after an opener": (
        ("--after-opener", "I'm", "--opener-strength", 1.5, "--learn", 0, "--responses", 0,
         "--opener-weight", 0.2, "--attention", 0.3, "--ridge", 0.02),
        {"after_opener": "I'm", "opener_strength": 1.5, "opener_weight": 0.2, "attention": 0.3,
         "ridge": 0.02},
    ),
}  # fmt: skip
ALWAYS = {"method", "strength", "block", "first_block", "blocks", "direction", "direction_source",
          "ridge", "attention", "all_requests"}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("as it comes", marks=pytest.mark.slow),
        "every value changed",
        pytest.param("no responses", marks=pytest.mark.slow),
        "after an opener",
    ],
)
def test_a_recipe_makes_the_edit_again(name: str, edit: Any, folder: Path, chat_dir: Path) -> None:
    options, wanted = LEAST[name]
    made = edit("least-disturbance", *options, "--pool", folder / "pool.txt")
    recipe = made.recipe
    assert {key: recipe[key] for key in wanted} == wanted
    assert (recipe["strength"], recipe["block"], recipe["blocks"]) == (0.7, 1, [1, 2])
    assert recipe.keys() == ALWAYS | wanted.keys(), "nothing that was ignored"
    lm = interp.open_model(str(chat_dir))
    assert same(made, again(lm, recipe, PromptSet(POOL, "pool"), halves()))
    changed = dict(recipe) | {"strength": 0.6}
    assert not same(made, again(lm, changed, PromptSet(POOL, "pool"), halves()))


def test_the_recipe_of_an_ablation_says_nothing_of_what_it_ignores(edit: Any) -> None:
    made = edit("ablation", "--winsor", 0.9, "--embeddings")
    assert made.recipe == {
        "method": "ablation",
        "strength": 0.7,
        "blocks": [1, 2],
        "embeddings": True,
        "block": 1,
        "first_block": 1,
        "direction": {"orthogonal_to_comply": True, "winsor": 0.9},
        "direction_source": made.recipe["direction_source"],
    }
    assert {name.partition(":")[0] for name in made.provenance["prompts_sha256"]} == {
        "refuse",
        "comply",
    }
    assert "refused_in_fit" not in made.provenance


IGNORED = [
    ("ablation", "--ridge", 0.1, "No such option"),
    ("ablation", "--pool", "none", "No such option"),
    ("least-disturbance", "--embeddings", None, "No such option"),
    ("least-disturbance", "--opener-strength", 1, "opener_strength goes with after_opener"),
    ("least-disturbance", "--opener-weight", 0.1, "opener_weight goes with after_opener"),
    ("least-disturbance", "--response-weight", 0.2, "response_weight goes with responses"),
]


@pytest.mark.parametrize(("method", "option", "value", "message"), IGNORED)
def test_an_option_that_would_be_ignored_is_wrong_use(
    method: str,
    option: str,
    value: object,
    message: str,
    edit: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without = ("--responses", 0) if option == "--response-weight" else ()
    assert edit(method, option, *(() if value is None else (value,)), *without) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_learned_says_so(edit: Any) -> None:
    from interp.export.gate import kinds

    opener = ("--after-opener", "I'm", "--opener-strength", 1, "--responses", 2)
    made = edit("least-disturbance", *opener, "--learn", 0.01, "--steps", 2, "--most-texts", 2)
    assert (made.recipe["learn"], made.recipe["learning"]["steps"]) == (0.01, 2)
    assert "learn" not in made.recipe["of"]
    assert made.recipe["of"]["response_weight"] == 0.1
    assert kinds(made.recipe) == {"least-disturbance, learned, with opener"}


@pytest.mark.slow
def test_the_recipe_of_the_demo_is_what_it_fits(chat_dir: Path, tmp_path: Path) -> None:
    words = ["demo", "--model", chat_dir, "--out", tmp_path / "demo"]
    sets = []
    for name, text in (("refuse", "Book me {}."), ("comply", "Explain {}."), ("pool", "Name {}.")):
        sets.append(PromptSet(tuple(text.format(n) for n in range(40)), name))
        (tmp_path / f"{name}.txt").write_text("\n".join(sets[-1].prompts))
        words += [f"--{name}", tmp_path / f"{name}.txt"]
    assert call(*words) == 0
    made = load_delta(tmp_path / "demo" / "delta")
    assert made.recipe.keys() == ALWAYS
    rest, report = zip(*(side.halves() for side in sets[:2]), strict=True)
    read, select = zip(*(side.halves() for side in rest), strict=True)
    assert same(made, again(interp.open_model(str(chat_dir)), made.recipe, sets[2], read))
    seen = set(made.provenance["seen_prompts"])
    assert select[0].fingerprints | read[1].fingerprints <= seen, "also what it was chosen on"
    measured = json.loads((tmp_path / "demo" / "delta" / "measurement.json").read_text())
    assert measured["seen"] == 0
    assert measured["prompts"]["refuse"]["sha256"] == report[0].sha256
    assert measured["rows"]["edited"]["name"] == "least-disturbance"


@pytest.mark.parametrize("rows", ["none", "full"])
def test_the_recipe_of_a_heretic_edit_is_what_ran(
    rows: str, folder: Path, chat_dir: Path, tmp_path: Path
) -> None:
    sets = ("--refuse", folder / "refuse.txt", "--comply", folder / "comply.txt")
    words = ("heretic", "--model", chat_dir, *sets, "--kernel", "0.9,1,0.5,2", "--tokens", 4)
    words += ("--row-normalization", rows, "--winsor", 0.9, "--no-orthogonalize", "--overwrite")
    words += ("--direction-index", 0.5, "--out", tmp_path / "made")
    code = call(*words, "--rank", 2)
    if rows == "none":
        assert code == 2, "it would be ignored"
        assert call(*words) == 0
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    recipe, made = manifest["recipe"], load_delta(tmp_path / "made")
    assert (recipe["row_normalization"], recipe["direction_index"]) == (rows, 0.5)
    assert recipe["rank"] == made.rank == (2 if rows == "full" else 1)
    assert recipe["settings"]["winsorization_quantile"] == 0.9
    assert recipe["settings"]["orthogonalize_direction"] is False
    assert recipe["settings"]["max_response_length"] == 4
    kernel = {"max_weight": 0.9, "max_weight_position": 1.0, "min_weight": 0.5}
    assert all(kernel.items() <= each.items() for each in recipe["kernels"].values())
