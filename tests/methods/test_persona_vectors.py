"""Persona vectors as objects: rows, files, projections, and their exact forms as weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toolbox import relative

import interp
from interp import LM, applied
from interp.errors import InterpError, NotExpressible, PersonaError, SiteError
from interp.export import save_delta
from interp.methods.persona_vectors import (
    PersonaVector,
    cosines,
    projection,
    removal,
    steering,
    steering_increments,
)
from interp.models.ruler import Ruler

PROMPTS = ["why is the sky blue", "tea", "how do I boil an egg?"]


def random_rows(lm: LM, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(lm.n_blocks + 1, lm.d_model, generator=generator)


def persona_of(lm: LM, seed: int = 0) -> PersonaVector:
    rows = {"response_avg": random_rows(lm, seed), "prompt_avg": random_rows(lm, seed + 1)}
    return PersonaVector("keen", rows, record={"counts": {"kept": 3}})


@pytest.fixture(scope="module")
def lm(chat_dir: Path) -> LM:
    return interp.open_model(str(chat_dir), batch_size=2)


# --- rows and files ----------------------------------------------------------------------------


def test_row_l_is_the_output_of_block_l_minus_1(lm: LM) -> None:
    persona = persona_of(lm)
    assert torch.equal(persona.at(lm.embed), persona.rows[0])
    for layer in range(1, lm.n_blocks + 1):
        assert persona.site(layer) == lm.resid_post[layer - 1]
        assert torch.equal(persona.at(persona.site(layer)), persona.rows[layer])
    for layer in (0, -1, lm.n_blocks + 1):
        with pytest.raises(SiteError, match=f"layers of the paper are 1 … {lm.n_blocks}"):
            persona.site(layer)
    for site in (lm.resid_pre[0], interp.Site.resid_post(lm.n_blocks)):
        with pytest.raises(SiteError, match="no row"):
            persona.at(site)


def test_a_saved_vector_is_read_back_and_in_the_authors_layout(lm: LM, tmp_path: Path) -> None:
    persona = persona_of(lm)
    folder = persona.save(tmp_path / "keen")
    authors = torch.load(folder / "keen_response_avg_diff.pt", weights_only=True)
    assert torch.equal(authors, persona.rows)
    back = PersonaVector.load(folder)
    assert torch.equal(back.rows, persona.rows)
    assert (back.trait, back.record, back.last_row) == ("keen", persona.record, "block output")
    one = PersonaVector.load(folder / "keen_prompt_avg_diff.pt")
    assert torch.equal(one.rows, persona.using("prompt_avg").rows)
    persona_of(lm, seed=5).save(folder)
    assert not torch.equal(PersonaVector.load(folder).rows, persona.rows)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(PersonaError, match=r"notes\.txt, which would be lost"):
        persona.save(folder)


def test_the_last_row_of_an_authors_file_is_refused(lm: LM, tmp_path: Path) -> None:
    path = tmp_path / "evil_response_avg_diff.pt"
    torch.save(random_rows(lm).to(torch.bfloat16), path)
    persona = PersonaVector.load(path)
    assert (persona.trait, persona.reduction) == ("evil", "response_avg")
    persona.at(lm.resid_post[0])
    for use in (lambda: persona.at(lm.resid_post[-1]), persona.increments):
        with pytest.raises(SiteError, match="final norm"):
            use()
    persona.check(Ruler.of(lm.anatomy), lm.d_model)
    with pytest.raises(PersonaError, match="this model needs"):
        persona.check(Ruler.of(lm.anatomy), lm.d_model + 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no tensor", "no file of one tensor"),
        ({"a": torch.ones(3, 4)}, "holds no tensor"),
        (torch.ones(3), "are \\[\\(3,\\)\\]"),
        (torch.full((3, 4), float("nan")), "NaN"),
    ],
)
def test_what_is_no_vector_is_refused(content: object, why: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(PersonaError, match=why):
        PersonaVector.load(path)
    with pytest.raises(PersonaError, match="describes no persona vector"):
        PersonaVector.load(tmp_path)


# --- projections, cosines, increments ------------------------------------------------------------


def test_projection_is_of_unit_scale_and_changes_its_sign_with_the_vector(lm: LM) -> None:
    acts, vector = torch.randn(2, 5, lm.d_model), torch.randn(lm.d_model)
    found = projection(acts, vector)
    assert relative(found, (acts @ vector) / vector.norm()) < 1e-6
    assert relative(projection(acts, 7 * vector), found) < 1e-6
    assert relative(projection(acts, -vector), -found) < 1e-6
    persona, site = persona_of(lm), lm.resid_post[1]
    assert relative(persona.project(acts, site), projection(acts, persona.at(site))) == 0
    with pytest.raises(InterpError, match="zero or not finite"):
        projection(acts, torch.zeros(lm.d_model))


def test_cosines_of_several_traits(lm: LM) -> None:
    one = persona_of(lm)
    flipped = PersonaVector("calm", {"response_avg": -2 * one.rows})
    table = cosines([one, flipped, persona_of(lm, 9)], lm.resid_post[0])
    assert relative(table[:2, :2], torch.tensor([[1.0, -1.0], [-1.0, 1.0]])) < 1e-5
    assert relative(table, table.T) < 1e-6


def test_increments_telescope(lm: LM) -> None:
    persona = persona_of(lm)
    found = persona.increments()
    assert found.shape == (lm.n_blocks, lm.d_model)
    assert relative(found.sum(0), persona.rows[-1] - persona.rows[0]) < 1e-5


# --- edits and their weight forms ------------------------------------------------------------------


def test_steering_adds_exactly_alpha_v_and_nothing_before(lm: LM) -> None:
    persona, block = persona_of(lm), 1
    edit = steering(persona, lm.resid_post[block], 3.0)
    plain, steered = (lm.activations(PROMPTS, lm.resid_post, e, at="all") for e in (None, edit))
    assert torch.equal(plain[lm.resid_post[0]], steered[lm.resid_post[0]])
    moved = (steered[lm.resid_post[block]] - plain[lm.resid_post[block]])[plain.mask]
    assert relative(moved, (3.0 * persona.rows[block + 1]).expand_as(moved)) < 1e-5
    none = lm.logits(PROMPTS, steering(persona, lm.resid_post[block], 0.0))
    assert torch.equal(none, lm.logits(PROMPTS))


def test_the_bias_of_the_last_matrix_is_the_steering_vector(lm: LM, tmp_path: Path) -> None:
    persona, site = persona_of(lm), lm.resid_post[0]
    edit = steering(persona, site, 2.0)
    delta = lm.to_delta(edit)
    ((name, update),) = delta
    assert name == "model.layers.0.mlp.down_proj.bias"
    assert relative(update.value, 2.0 * persona.rows[1]) < 1e-6
    hooked, text = lm.logits(PROMPTS, edit), lm.generate(PROMPTS, edit, tokens=6).ids
    save_delta(delta, tmp_path / "delta")
    with applied(lm.hf, lm.anatomy, interp.load_delta(tmp_path / "delta")):
        assert (lm.logits(PROMPTS) - hooked).abs().max() < 1e-3
        assert torch.equal(lm.generate(PROMPTS, tokens=6).ids, text)
    assert (lm.logits(PROMPTS) - hooked).abs().max() > 0.1
    wrong = interp.add(lm.writers[0], persona.rows[1], 2.0)  # the bias of o_proj
    assert lm.anatomy.block_writers[0].kind == "attention"
    with applied(lm.hf, lm.anatomy, lm.to_delta(wrong)):
        assert (lm.logits(PROMPTS) - hooked).abs().max() > 0.1


def test_increments_at_all_blocks_are_biases(lm: LM) -> None:
    persona = persona_of(lm)
    edit = steering_increments(lm, persona, 0.5)
    delta = lm.to_delta(edit)
    assert len(delta) == lm.n_blocks
    total = sum(update.value for _, update in delta)
    assert relative(total, 0.5 * (persona.rows[-1] - persona.rows[0])) < 1e-5
    with applied(lm.hf, lm.anatomy, delta):
        found = lm.logits(PROMPTS)
    assert (found - lm.logits(PROMPTS, edit)).abs().max() < 1e-3
    assert len(lm.to_delta(steering_increments(lm, persona, blocks=[1]))) == 1


def test_removal_leaves_nothing_of_the_direction_and_unties(lm: LM) -> None:
    persona, site = persona_of(lm), lm.resid_post[1]
    edit = removal(lm, persona, site)
    delta = lm.to_delta(edit)
    assert delta.untied
    assert delta.rank == 1
    head = lm.hf.get_output_embeddings()
    before = head.weight.clone()
    hooked = lm.logits(PROMPTS, edit)
    with applied(lm.hf, lm.anatomy, delta):
        for value in lm.residuals(PROMPTS):
            share = persona.project(value, site).abs() / value.norm(dim=-1)
            assert share.max() < 1e-4
        assert torch.equal(lm.hf.get_output_embeddings().weight, before)
        assert (lm.logits(PROMPTS) - hooked).abs().max() < 1e-3
        again = lm.to_delta(removal(lm, persona, site))
    assert again.norm() < 1e-4 * delta.norm()


def test_what_has_no_weight_form_says_so(lm: LM) -> None:
    persona, site = persona_of(lm), lm.resid_post[0]
    for where in ("response", "prompt", -1):
        with pytest.raises(NotExpressible, match="at every position"):
            lm.to_delta(steering(persona, site, where=where))
    with pytest.raises(NotExpressible, match="one strength"):
        lm.to_delta(steering(persona, site, [0.0, 1.0]))
    with pytest.raises(NotExpressible, match="skip path"):
        lm.to_delta(interp.ablate(site, persona.at(site)))


def test_steering_behind_a_post_norm_has_no_weight_form() -> None:
    gemma = interp.open_model("tiny:gemma2")
    edit = steering(persona_of(gemma), gemma.resid_post[0])
    with pytest.raises(NotExpressible, match="a norm"):
        gemma.to_delta(edit)


def test_response_steering_of_the_authors_is_the_last_prompt_token_and_the_response(lm: LM) -> None:
    persona, site = persona_of(lm), lm.resid_post[0]
    edit = steering(persona, site, 2.0, where=-1) + steering(persona, site, 2.0, where="response")
    written = lm.generate(PROMPTS[:1], edit, tokens=5)
    batch = lm.tokens(PROMPTS[:1])
    whole = interp.TokenBatch(
        torch.cat([batch.ids, written.ids], -1), torch.ones(1, batch.ids.shape[1] + 5).long()
    )
    n = batch.ids.shape[1]
    offsets = tuple(
        range(n - 1 - whole.ids.shape[1], 0)
    )  # from the last prompt token, teacher-forced
    logits = lm.logits(whole, interp.add(site, 2.0 * persona.at(site), where=offsets), at=offsets)
    assert torch.equal(logits[0, :-1].argmax(-1), written.ids[0])
