"""What the recipe in a manifest says is what ran: every value used, and nothing that was ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.backends import open_model
from interp.cli import main
from interp.data import PromptSet
from interp.export import load_delta
from interp.fitting import DirectionRecipe, LeastDisturbanceRecipe, least_disturbance
from interp.lm import LM
from interp.methods.refusal import Fitted, fit
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
    read: Fitted = fit(
        lm,
        *fitted_on,
        recipe=DirectionRecipe(**recipe["direction_recipe"]),
        pool=pool,
        response_tokens=recipe["response_tokens"],
        opener=recipe.get("opener", ""),
    )
    direction = read.directions[recipe["direction_block"]]
    names = ("attention", "spoken_weight", "opened", "opened_weight")
    values = {name: recipe[name] for name in names if name in recipe}
    ridge = None if recipe["ridge"] == "auto" else recipe["ridge"]
    asked = LeastDisturbanceRecipe(recipe["strength"], ridge, tuple(recipe["blocks"]), **values)
    after = read.opened and read.opened.directions[recipe["direction_block"]]
    made = least_disturbance(lm, read.statistics, direction, asked, after)
    return lm.to_delta(made)


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
    "as it comes": ((), {"ridge": 0.02, "attention": 1.0, "response_tokens": 16}),
    "every value changed": (
        ("--ridge", 0.3, "--attention", 0.4, "--response-tokens", 3, "--response-weight", 0.2,
         "--winsor", 0.9, "--no-orthogonal-to-comply"),
        {"ridge": 0.3, "attention": 0.4, "response_tokens": 3, "spoken_weight": 0.2,
         "direction_recipe": {"orthogonal_to_comply": False, "winsor": 0.9}},
    ),
    "no response tokens": (("--response-tokens", 0, "--ridge", "auto"),
                           {"response_tokens": 0, "ridge": "auto"}),
    "after an opener": (
        ("--after-opener", "I'm", "--opener-strength", 1.5, "--refit-strength", 0, "--learn", 0,
         "--prose", 0, "--opener-weight", 0.2, "--attention", 0.3, "--ridge", 0.02),
        {"opener": "I'm", "opened": 1.5, "opened_weight": 0.2, "attention": 0.3, "ridge": 0.02},
    ),
}  # fmt: skip
ALWAYS = {"method", "strength", "blocks", "direction", "direction_block", "direction_recipe",
          "ridge", "attention", "response_tokens"}  # fmt: skip


@pytest.mark.parametrize("name", LEAST)
def test_a_recipe_makes_the_edit_again(name: str, edit: Any, folder: Path, chat_dir: Path) -> None:
    options, wanted = LEAST[name]
    made = edit("least-disturbance", *options, "--pool", folder / "pool.txt")
    recipe = made.recipe
    assert {key: recipe[key] for key in wanted} == wanted
    assert (recipe["strength"], recipe["direction_block"], recipe["blocks"]) == (0.7, 1, [1, 2])
    used = {"spoken_weight"} if recipe["response_tokens"] else set()
    used |= {"opener", "opened", "opened_weight"} if "opener" in wanted else set()
    assert recipe.keys() == ALWAYS | used, "nothing that was ignored"
    lm = open_model(str(chat_dir))
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
        "direction": made.recipe["direction"],
        "direction_block": 1,
        "direction_recipe": {"orthogonal_to_comply": True, "winsor": 0.9},
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
    ("least-disturbance", "--refit-strength", 1, "refit_strength goes with after_opener"),
    ("least-disturbance", "--opener-weight", 0.1, "opener_weight goes with after_opener"),
    ("least-disturbance", "--prose-weight", 0.2, "prose_weight goes with prose"),
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
    assert edit(method, option, *(() if value is None else (value,))) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("briefly")
def test_what_was_fitted_again_and_learned_says_so(edit: Any) -> None:
    from interp.export.gate import kinds

    opener = ("--after-opener", "I'm", "--opener-strength", 1, "--prose", 2)
    made = edit("least-disturbance", *opener, "--refit-strength", 0, "--learn", 0.01)
    assert (made.recipe["worth"], made.recipe["steps"]) == (0.01, 2)
    inner = made.recipe["of"]
    assert "worth" not in inner
    assert "again" not in inner
    assert inner["prose_weight"] == 0.1
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
    assert made.recipe["response_tokens"] == 0
    assert made.recipe.keys() == ALWAYS
    rest, report = zip(*(side.halves() for side in sets[:2]), strict=True)
    read, select = zip(*(side.halves() for side in rest), strict=True)
    assert same(made, again(open_model(str(chat_dir)), made.recipe, sets[2], read))
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
