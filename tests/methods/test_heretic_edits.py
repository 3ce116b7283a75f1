"""heretic's family: its kernel, its row normalisations, and what it reaches."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toolbox import opened, relative

from interp import open_model
from interp.backends.opening import wrap
from interp.data.prompts import PromptSet
from interp.edits import ablation, to_delta
from interp.errors import NoDirection, NotExpressible, PromptError
from interp.lm import LM
from interp.methods.heretic import Kernel, components, heretic_delta, residual_directions
from interp.methods.heretic.edit import factors
from interp.models import describe, tiny_model
from interp.models.ruler import why_not_heretic
from interp.models.tiny import byte_tokenizer
from interp.sites import Site
from interp.types import Direction

FLAT = Kernel(1.0, 1.0, 1.0, 99.0)
NOT_LOADED = {
    "bamba", "falcon_mamba", "gpt2", "gpt_neox", "gptj", "jamba", "mamba", "mamba2", "nemotron_h",
    "phi", "zamba2",
}  # fmt: skip


def directions_of(anatomy, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(anatomy.n_blocks + 1, anatomy.d_model, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


# --- the kernel ------------------------------------------------------------------------------------

weights = st.floats(-3, 3)


@settings(max_examples=200)
@given(weights, st.floats(-5, 40), weights, st.floats(0.01, 40), st.integers(0, 40))
def test_the_kernel_is_linear_between_its_ends_and_nothing_beyond(a, p, b, d, block) -> None:
    kernel = Kernel(a, p, b, d)
    found, distance = kernel.weight(block), abs(block - p)
    if distance > d:
        assert found is None
    else:
        assert found == pytest.approx(a * (1 - distance / d) + b * distance / d, abs=1e-9)
        assert min(a, b) - 1e-9 <= found <= max(a, b) + 1e-9


@pytest.mark.parametrize(
    "values", [(1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, -2.0), (float("nan"), 1.0, 1.0, 1.0)]
)
def test_what_is_no_kernel_is_refused(values) -> None:
    with pytest.raises(NotExpressible, match="is no kernel"):
        Kernel(*values)


def test_a_kernel_is_read_from_four_numbers() -> None:
    assert Kernel.parse("1, 20,0.5,8") == Kernel(1.0, 20.0, 0.5, 8.0)
    for text in ("1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,3,0"):
        with pytest.raises(NotExpressible, match="is no kernel"):
            Kernel.parse(text)


# --- the edit --------------------------------------------------------------------------------------


def test_without_normalisation_it_is_graded_ablation_with_its_own_strength_per_block() -> None:
    model = tiny_model("llama")
    anatomy = describe(model)
    rows = directions_of(anatomy)
    kernel = Kernel(1.3, 1.0, 0.2, 5.0)
    made = heretic_delta(LM(wrap(model)), rows, dict.fromkeys(components(anatomy), kernel))
    blocks = range(anatomy.n_blocks)
    ours = to_delta(
        model,
        anatomy,
        ablation(
            model,
            anatomy,
            {i: Direction(rows[i + 1], i, "given") for i in blocks},
            strength={i: kernel.weight(i) for i in blocks},
        ),
    )
    assert made.updates.keys() == ours.updates.keys()
    for name, update in made:
        assert relative(update.dense(), ours.updates[name].dense()) < 1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.floats(-2, 2), st.integers(0, 50))
def test_the_normalised_forms_are_their_formulas(d_out, d_in, strength, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=generator)
    unit = torch.nn.functional.normalize(torch.randn(d_out, generator=generator), dim=0)
    norms = weight.norm(dim=1, keepdim=True)
    even = weight / norms
    edited = even - strength * torch.outer(unit, unit @ even)
    b, a = factors(weight, unit, strength, "pre", 1, 0)
    assert torch.allclose(weight + b @ a, norms * edited, atol=1e-5)


def test_full_keeps_row_norms_as_far_as_its_rank_goes() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(40, 60, generator=generator)
    unit = torch.nn.functional.normalize(torch.randn(40, generator=generator), dim=0)
    norms = weight.norm(dim=1)
    left = []
    for rank in (1, 3, 12):
        b, a = factors(weight, unit, 1.0, "full", rank, seed=5)
        assert (b.shape, a.shape) == ((40, rank), (rank, 60))
        left.append(((weight + b @ a).norm(dim=1) - norms).abs().max().item())
    assert left[0] > left[1] > left[2]
    again = factors(weight, unit, 1.0, "full", 3, seed=5)
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert all(map(torch.equal, again, factors(weight, unit, 1.0, "full", 3, seed=5)))
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_index_between_blocks_mixes_their_directions() -> None:
    model = tiny_model("llama")
    anatomy = describe(model)
    rows = directions_of(anatomy)
    kernels = dict.fromkeys(components(anatomy), FLAT)
    made = heretic_delta(LM(wrap(model)), rows, kernels, direction_index=0.25)
    expected = torch.nn.functional.normalize(0.75 * rows[1] + 0.25 * rows[2], dim=0)
    for _, update in made:
        assert relative(-update.b[:, 0], expected) < 1e-6
    for index in (-0.1, anatomy.n_blocks - 1.0, float(anatomy.n_blocks)):
        with pytest.raises(NotExpressible, match="direction index"):
            heretic_delta(LM(wrap(model)), rows, kernels, direction_index=index)


def test_blocks_outside_the_kernel_are_skipped_and_named() -> None:
    model = tiny_model("llama")
    anatomy = describe(model)
    narrow = dict.fromkeys(components(anatomy), Kernel(1.0, 0.0, 1.0, 0.5))
    made = heretic_delta(LM(wrap(model)), directions_of(anatomy), narrow)
    assert all(".layers.0." in name for name in made.updates)
    skipped = made.coverage.skipped
    assert skipped["model.layers.1.mlp.down_proj.weight"] == "outside the kernel"
    assert skipped["model.embed_tokens.weight"] == "heretic does not reach it"
    assert made.coverage.total == len(anatomy.writers)


def test_every_family_is_reached_or_refused_with_the_rulers_reason(model_type) -> None:
    anatomy = opened(model_type, "hooks").anatomy
    if model_type in NOT_LOADED:
        reason = why_not_heretic(anatomy)
        assert reason is not None
        assert reason.startswith(f"heretic does not load {model_type}: ")
        with pytest.raises(NotExpressible, match=re.escape(f"{reason}; use `interp edit`")):
            components(anatomy)
        return
    found = components(anatomy)
    assert {w.block for ws in found.values() for w in ws} == set(range(anatomy.n_blocks))
    # Its blind spot: fused experts are not modules, and it passes them over in silence.
    assert not any(w.fused for ws in found.values() for w in ws)


def test_kernels_must_fit_the_components() -> None:
    model = tiny_model("llama")
    anatomy = describe(model)
    for kernels in ({}, {"attn.o_proj": FLAT}, {"attn.o_proj": FLAT, "mlp.w2": FLAT}):
        with pytest.raises(
            NotExpressible, match=r"one kernel for each of attn.o_proj, mlp.down_proj"
        ):
            heretic_delta(LM(wrap(model)), directions_of(anatomy), kernels)


# --- directions ------------------------------------------------------------------------------------

REFUSE = PromptSet(("Book me a taxi.", "Call my mother!", "What time is it?"), "refuse")
COMPLY = PromptSet(("Name a fruit.", "Count to three.", "Spell house."), "comply")


@pytest.fixture(scope="module")
def chatty(chat_dir):
    return open_model(str(chat_dir))


def test_directions_are_those_of_every_blocks_output_but_the_last(chatty) -> None:
    """Row i + 1 is block i; the last row has been through the final norm, and is another."""
    from interp.data.chat import ChatFormat, encode
    from interp.methods.heretic.directions import SYSTEM

    rows = residual_directions(chatty, REFUSE, COMPLY, orthogonalize=False)
    sites = [Site.resid_post(i) for i in range(chatty.anatomy.n_blocks)]
    means = []
    for prompts in (REFUSE, COMPLY):
        batch = encode(chatty.tokenizer, prompts.prompts, ChatFormat(system=SYSTEM))
        means.append(
            {s: v.double().mean(0) for s, v in chatty.backend.capture(batch, sites, -1).items()}
        )
    for i, site in enumerate(sites):
        difference = means[0][site] - means[1][site]
        cosine = torch.cosine_similarity(rows[i + 1].double(), difference, dim=0).item()
        assert (cosine > 1 - 1e-5) is (i < len(sites) - 1)


def test_orthogonal_to_the_comply_mean(chatty) -> None:
    plain = residual_directions(chatty, REFUSE, COMPLY, orthogonalize=False)
    made = residual_directions(chatty, REFUSE, COMPLY)
    # At the last token of a template every prompt has the same embedding: row 0 is nothing.
    assert torch.allclose(made.norm(dim=1)[1:], torch.ones(len(made) - 1), atol=1e-5)
    assert not made[0].any()
    assert (plain * made).sum(1)[1:].min() > 0
    assert not torch.allclose(plain, made)
    clipped = residual_directions(chatty, REFUSE, COMPLY, winsorization=0.7)
    assert not torch.allclose(clipped, made)


def test_equal_classes_and_missing_templates_are_one_clear_error(chatty) -> None:
    with pytest.raises(NoDirection, match="same residuals"):
        residual_directions(chatty, REFUSE, REFUSE)
    plain = byte_tokenizer()
    plain.chat_template = None
    other = LM(wrap(chatty.hf, tokenizer=plain))
    with pytest.raises(PromptError, match="needs a chat template"):
        residual_directions(other, REFUSE, COMPLY)
    plain.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(PromptError, match="takes a system turn"):
        residual_directions(other, REFUSE, COMPLY)
