"""``interp edit persona``: a delta of persona vectors does what the hook does, and says what was done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import interp
from interp import LM, applied
from interp.cli import main
from interp.data import PromptSet
from interp.export import load_delta, save_delta
from interp.methods.persona_vectors import (
    PersonaVector,
    removal,
    shipped_trait,
    steering,
    steering_increments,
)
from interp.types import WeightDelta

PROMPTS = ["why is the sky blue", "tea"]
TRAIT = shipped_trait("terse")


def call(*args: object) -> int:
    """The exit code of ``interp edit persona``."""
    with pytest.raises(SystemExit) as stop:
        main(["edit", "persona", *map(str, args)])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def lm(chat_dir: Path) -> LM:
    return interp.open_model(str(chat_dir))


@pytest.fixture(scope="module")
def persona(lm: LM) -> PersonaVector:
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, lm.n_blocks + 1, lm.d_model, generator=generator)
    record = {"trait": TRAIT.as_json(), "judge": {"kind": "trait", "name": "terse"}}
    names = ("response_avg", "prompt_avg")
    return PersonaVector("terse", dict(zip(names, both, strict=True)), record=record)


@pytest.fixture
def edit(
    persona: PersonaVector, chat_dir: Path, tmp_path: Path
) -> Callable[..., WeightDelta | int]:
    """``edit(*options)``: the delta that the command makes, or its exit code."""
    vectors, out = persona.save(tmp_path / "terse"), tmp_path / "delta"

    def run(*options: object) -> WeightDelta | int:
        words = (vectors, "--model", chat_dir, "--out", out, "--overwrite")
        code = call(*words, *options, "--json", tmp_path / "made.json")
        return load_delta(out) if code == 0 else code

    return run


FORMS = {
    "bias": (
        ("--layer", 1, "--coefficient", -1.5),
        lambda lm, p: steering(p, lm.resid_post[0], -1.5),
        {"layers": [1], "coefficient": -1.5},
    ),
    "increments": (
        ("--first-layer", 2, "--coefficient", 0.5),
        lambda lm, p: steering_increments(lm, p, 0.5, blocks=[1, 2]),
        {"layers": [2, 3], "coefficient": 0.5},
    ),
    "removal": (
        ("--layer", 2),
        lambda lm, p: removal(lm, p, lm.resid_post[1]),
        {"layers": [2]},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_delta_does_what_the_hook_does(
    form: str, lm: LM, persona: PersonaVector, edit: Callable[..., WeightDelta], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options, hook, said = FORMS[form]
    delta = edit("--form", form, *options)
    shown = capsys.readouterr().out
    assert "delta verified" in shown
    assert "--judge trait:terse" in shown
    about = {"method": "persona", "form": form, "trait": "terse", "reduction": "response_avg"}
    assert delta.recipe == about | said, "nothing that was ignored"
    assert json.loads((tmp_path / "made.json").read_text())["recipe"] == delta.recipe
    assert delta.provenance["vectors"] == {"sha256": persona.sha256}
    asked = PromptSet(TRAIT.questions, "terse").fingerprints
    assert set(delta.provenance["seen_prompts"]) == asked
    own = hook(lm, persona)
    hooked, text = lm.logits(PROMPTS, own), lm.generate(PROMPTS, own, tokens=6).ids
    assert (lm.logits(PROMPTS) - hooked).abs().max() > 0.1
    with applied(lm.hf, lm.anatomy, delta):
        assert (lm.logits(PROMPTS) - hooked).abs().max() < 1e-3
        assert torch.equal(lm.generate(PROMPTS, tokens=6).ids, text)


def test_another_reduction_and_a_delta_below(
    lm: LM, persona: PersonaVector, edit: Callable[..., WeightDelta], tmp_path: Path
) -> None:
    first = edit("--layer", 1, "--reduction", "prompt_avg")
    assert first.recipe["reduction"] == "prompt_avg"
    ((_, update),) = first
    assert torch.allclose(update.value, persona.using("prompt_avg").rows[1])
    save_delta(first, tmp_path / "first")
    both = edit("--form", "removal", "--layer", 2, "--delta", tmp_path / "first")
    site = lm.resid_post[1]
    with applied(lm.hf, lm.anatomy, both):
        values = lm.residuals(PROMPTS)
    share = persona.project(values, site).abs() / values.norm(dim=-1)
    assert share.max() < 1e-4, "also of the bias that the first delta added"


def test_what_the_form_does_not_use_is_wrong_use(
    edit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for options, why in {
        (): "bias needs layer",
        ("--form", "removal"): "removal needs layer",
        ("--form", "removal", "--layer", 1, "--coefficient", 2): "coefficient does nothing",
        ("--form", "increments", "--layer", 1): "layer does nothing",
        ("--layer", 1, "--last-layer", 2): "last_layer does nothing",
        ("--form", "other"): "is not one of",
        ("--layer", 0): "x>=1",
    }.items():
        assert edit(*options) == 2
        assert why in capsys.readouterr().err


def test_what_has_no_weight_form_or_does_not_fit_says_so(
    persona: PersonaVector, edit: Callable[..., int], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for options, why in {
        ("--layer", 9): "layers of the paper are 1 … 3",
        ("--form", "increments", "--first-layer", 3, "--last-layer", 2): "no layer lies between",
        ("--layer", 1, "--reduction", "prompt_last"): "has no prompt_last",
        ("--layer", 1, "--coefficient", 0): "changes nothing",
        ("--layer", 1, "--model", "tiny:gemma2"): "a norm",
    }.items():
        assert edit(*options) == 1, why
        assert why in capsys.readouterr().err
    assert not (tmp_path / "delta").exists()


def test_vectors_of_other_weights_are_told(
    persona: PersonaVector, chat_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"fingerprint": "0" * 64, "model": "another", "judge": {"kind": "chat model"}}
    other = PersonaVector("terse", persona.vectors, record=record).save(tmp_path / "other")
    assert call(other, "--layer", 1, "--model", chat_dir, "--out", tmp_path / "delta") == 0
    shown = capsys.readouterr()
    assert "vectors of terse were extracted on other weights (another)" in shown.err
    assert "--judge" not in shown.out
    assert "seen_prompts" not in load_delta(tmp_path / "delta").provenance
