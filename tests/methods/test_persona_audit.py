"""The audit of a delta along persona vectors, with shifts that are planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import interp
from interp import LM
from interp.errors import DeltaError, PersonaError, SiteError
from interp.methods.persona_vectors import PersonaVector, steering
from interp.methods.persona_vectors.audit import (
    Audit,
    as_json,
    audit,
    refusal_vector,
    stream_shift,
)
from interp.methods.persona_vectors.recipe import AuditRecipe
from interp.types import Coverage, LowRank, WeightDelta

PROMPTS = ["why is the sky blue", "tea", "how do I boil an egg?", "name a river"]
LAYER = AuditRecipe(layer=2)


@pytest.fixture(scope="module")
def lm(chat_dir: Path) -> LM:
    return interp.open_model(str(chat_dir))


def persona_of(lm: LM, seed: int = 0) -> PersonaVector:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(lm.n_blocks + 1, lm.d_model, generator=generator)
    return PersonaVector("keen", {"response_avg": rows})


def changes(lm: LM, *names: str, rank: int = 2, size: float = 0.05) -> WeightDelta:
    """A random low-rank change of weights."""
    generator = torch.Generator().manual_seed(1)
    updates = {}
    for name in names:
        *expert, d_out, d_in = lm.hf.get_parameter(name).shape
        b = size * torch.randn(*expert, d_out, rank, generator=generator)
        a = torch.randn(*expert, rank, d_in, generator=generator)
        updates[name] = LowRank(b, a, "expert out in" if expert else "out in")
    return WeightDelta(updates, "unverified", {}, "W + BA", Coverage(names, {}))


def only(lm: LM, delta: WeightDelta, recipe: AuditRecipe = LAYER) -> Audit:
    (found,) = audit(lm, delta, [persona_of(lm)], PROMPTS, recipe)
    return found


@pytest.mark.parametrize("alpha", [1.0, -0.7])
def test_a_bias_of_alpha_v_is_a_shift_of_alpha(alpha: float, lm: LM) -> None:
    persona = persona_of(lm)
    found = only(lm, lm.to_delta(steering(persona, persona.site(2), alpha)))
    assert found.shift.value == pytest.approx(alpha, abs=1e-3)
    assert found.interval == pytest.approx((alpha, alpha), abs=1e-3)
    assert found.norm == pytest.approx(persona.rows[2].norm().item(), rel=1e-5)
    assert found.weights is not None
    assert found.weights.value == pytest.approx(alpha, abs=1e-6)
    assert found.by_block == pytest.approx({-1: 0.0, 0: 0.0, 1: alpha}, abs=1e-3)
    assert found.by_kind["mlp"] == pytest.approx(alpha, abs=1e-3)
    assert found.by_layer[:2] == pytest.approx([0.0, alpha], abs=1e-3)
    assert found.predicted == ("more" if alpha > 0 else "less")
    assert abs(found.shift.z or 0) > 3
    assert as_json(found)["predicted"] == found.predicted


def test_responses_are_read_in_place_of_prompts(lm: LM) -> None:
    persona = persona_of(lm)
    recipe = AuditRecipe(layer=2, read="response")
    found = only(lm, lm.to_delta(steering(persona, persona.site(2), 2.0)), recipe)
    assert found.shift.value == pytest.approx(2.0, abs=1e-3)
    one = changes(lm, "model.layers.1.mlp.down_proj.weight")
    prompt, response = (only(lm, one, each) for each in (LAYER, recipe))
    assert prompt.shift.value != pytest.approx(response.shift.value, rel=1e-2)
    assert response.weights is not None
    assert response.weights.value == pytest.approx(response.shift.value, abs=1e-5)
    assert sum(response.by_kind.values()) == pytest.approx(response.shift.value, abs=1e-5)
    after_prompts = lm.to_delta(steering(persona, persona.site(2), 2.0))
    rows = stream_shift(lm, after_prompts, PROMPTS[:1], ["so it is"]).rows
    assert rows.shape == (lm.n_blocks + 1, 1, lm.d_model)


def test_no_change_is_no_shift(lm: LM) -> None:
    found = only(lm, changes(lm, "model.layers.0.mlp.down_proj.weight", size=0.0))
    assert (found.shift.value, found.shift.z, found.predicted) == (0.0, None, "no change")


def test_a_change_orthogonal_to_v_is_no_change_of_the_trait(lm: LM) -> None:
    persona = persona_of(lm)
    v = persona.rows[2]
    other = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(7))
    other = other - (other @ v) / (v @ v) * v
    rows = persona.rows.clone()
    rows[2] = other
    away = PersonaVector("other", {"response_avg": rows})
    found = only(lm, lm.to_delta(steering(away, away.site(2), 3.0)))
    assert found.shift.value == pytest.approx(0.0, abs=1e-3)
    assert abs(found.shift.z or 0) < 1
    assert found.predicted == "no change"


def test_parts_sum_to_the_shift_whatever_changes(lm: LM) -> None:
    delta = changes(
        lm, "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight",
    )  # fmt: skip
    found = stream_shift(lm, delta, PROMPTS)
    for row in range(lm.n_blocks + 1):
        parts = [part.moved for part in found.parts if part.block < row]
        assert torch.allclose(torch.stack(parts).sum(0), found.rows[row].mean(0), atol=1e-5)
    line = only(lm, delta)
    assert sum(line.by_kind.values()) == pytest.approx(line.shift.value, abs=1e-5)
    assert sum(line.by_block.values()) == pytest.approx(line.shift.value, abs=1e-5)


def test_weights_alone_are_exact_where_nothing_before_changed(lm: LM) -> None:
    one = only(lm, changes(lm, "model.layers.1.mlp.down_proj.weight"))
    assert one.weights is not None
    assert one.weights.value == pytest.approx(one.shift.value, abs=1e-5)
    assert abs(one.weights.value) > 1e-3
    reader = only(lm, changes(lm, "model.layers.1.self_attn.q_proj.weight"))
    assert reader.weights is not None
    assert reader.weights.value == 0.0
    assert reader.shift.value != 0


@pytest.mark.parametrize("name", ["gemma2", "qwen3_moe"])
def test_what_is_not_linear_has_no_score_from_weights_alone(name: str) -> None:
    lm = interp.open_model(f"tiny:{name}")
    behind = next(w for w in lm.anatomy.block_writers if w.gain or w.fused)
    found = only(lm, changes(lm, behind.weight))
    assert found.weights is None
    assert found.shift.value != 0


def test_the_layer_is_the_middle_one_or_the_one_that_is_named(lm: LM) -> None:
    delta = changes(lm, "model.layers.0.mlp.down_proj.weight")
    assert only(lm, delta, AuditRecipe()).layer == 2
    with pytest.raises(SiteError, match="layers of the paper are"):
        only(lm, delta, AuditRecipe(layer=9))
    short = PersonaVector("keen", {"response_avg": torch.ones(2, lm.d_model)})
    with pytest.raises(PersonaError, match="this model needs"):
        audit(lm, delta, [short], PROMPTS)
    with pytest.raises(DeltaError, match="another base"):
        audit(lm, replace(delta, base="0" * 64), [persona_of(lm)], PROMPTS)


def test_more_controls_move_z_and_not_the_shift(lm: LM) -> None:
    delta = changes(lm, "model.layers.0.mlp.down_proj.weight")
    few, many = (only(lm, delta, AuditRecipe(layer=2, controls=n)) for n in (10, 500))
    assert few.shift.value == many.shift.value
    assert few.shift.z != many.shift.z


def test_the_refusal_vector_is_a_difference_of_means(lm: LM) -> None:
    found = refusal_vector(lm, PROMPTS[:2], PROMPTS[2:])
    values = lm.residuals(PROMPTS)
    assert found.trait == "refusal"
    assert torch.allclose(found.rows, values[:, :2].mean(1) - values[:, 2:].mean(1), atol=1e-6)
