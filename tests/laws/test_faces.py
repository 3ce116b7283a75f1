"""Every operator has two faces: as a hook and as a weight delta it is one edit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toolbox import (
    assert_untouched,
    random_direction,
    random_vector,
    real,
    relative,
    state,
)
from torch import Tensor, nn

from interp.backends.opening import wrap
from interp.backends.protocol import Backend
from interp.edits import Edit, ablation, applied, steering, to_delta
from interp.errors import DeltaError, NotExpressible, SiteError
from interp.hooking import hooked
from interp.models import describe, tiny_model
from interp.models.anatomy import BoundWriter
from interp.operators import Ablation, Addition, LeastDisturbance, Operator, Total
from interp.sites import Site
from interp.types import Shift, TokenBatch, WeightDelta

TOLERANCE = 1e-5  # relative, on logits, fp32
EFFECT = 1e-3


@pytest.fixture(scope="session")
def plain(tiny: nn.Module) -> Backend:
    return wrap(tiny)


@pytest.fixture(scope="session")
def unedited(plain: Backend, batch: TokenBatch) -> Tensor:
    return real(plain.logits(batch, None, None), batch)


def tolerance(plain: Backend) -> float:
    """Zamba2's shared transformers amplify rounding, which the two faces do not share (7e-6)."""
    return 1e-4 if plain.anatomy.model_type == "zamba2" else TOLERANCE


def ablate(plain: Backend, strength: float = 1.0, seed: int = 0) -> Edit:
    direction = random_direction(plain.anatomy.d_model, seed)
    return ablation(plain.model, plain.anatomy, direction, strength=strength, embeddings=True)


def delta_of(plain: Backend, edit: Edit) -> WeightDelta:
    return to_delta(plain.model, plain.anatomy, edit)


def assert_one_edit(plain: Backend, edit: Edit, batch: TokenBatch, unedited: Tensor) -> None:
    """The hook face and the weight face give the same logits, which are not the unedited ones."""
    hook = real(plain.logits(batch, edit, None), batch)
    weights = real(plain.logits(batch, delta_of(plain, edit), None), batch)
    assert relative(hook, unedited) > EFFECT
    assert relative(weights, hook) < tolerance(plain)


# --- one operator at a time ----------------------------------------------------------------------


@pytest.mark.every_family
def test_ablation(plain: Backend, batch: TokenBatch, unedited: Tensor) -> None:
    assert_one_edit(plain, ablate(plain), batch, unedited)


def test_ablation_of_another_strength(plain: Backend, batch: TokenBatch, unedited: Tensor) -> None:
    for strength in (0.5, 2.0, -1.0):
        assert_one_edit(plain, ablate(plain, strength), batch, unedited)


def test_ablation_of_strength_zero_is_nothing(
    plain: Backend, batch: TokenBatch, unedited: Tensor
) -> None:
    edit = ablate(plain, 0.0)
    for given in (edit, delta_of(plain, edit)):
        assert relative(real(plain.logits(batch, given, None), batch), unedited) < tolerance(plain)


def test_ablation_at_each_kind_of_writer_alone(
    plain: Backend, batch: TokenBatch, unedited: Tensor
) -> None:
    everywhere = ablate(plain)
    kinds = {w.kind: w for w in plain.anatomy.writers}
    for writer in kinds.values():
        alone = Edit({writer.weight: everywhere.writers[writer.weight]})
        assert_one_edit(plain, alone, batch, unedited)


def takes_addition(writer: BoundWriter) -> bool:
    return writer.gain is None and not writer.fused


def additions(writers: list[BoundWriter], d_model: int) -> dict[str, Operator]:
    return {w.weight: Addition(random_vector(d_model, seed), 0.3) for seed, w in enumerate(writers)}


def test_addition_at_writers(plain: Backend, batch: TokenBatch, unedited: Tensor) -> None:
    """A bias: changed where there is one, made where there is none, every row of an embedding."""
    writers = [w for w in plain.anatomy.writers if takes_addition(w)]
    for kind in {w.kind for w in writers}:
        chosen = [w for w in writers if w.kind == kind]
        edit = Edit(additions(chosen, plain.anatomy.d_model))
        assert_one_edit(plain, edit, batch, unedited)
        names = {w.bias or f"{w.module}.bias" for w in chosen if w.kind != "embedding"}
        updates = delta_of(plain, edit).updates
        assert names == {name for name, update in updates.items() if isinstance(update, Shift)}


def test_addition_behind_a_norm_or_routing_weights_is_a_hook_only(plain: Backend) -> None:
    for writer in plain.anatomy.writers:
        if not takes_addition(writer):
            edit = Edit(additions([writer], plain.anatomy.d_model))
            with pytest.raises(NotExpressible, match="use it as a hook"):
                delta_of(plain, edit)


def test_addition_inside_fused_experts_is_refused(plain: Backend, batch: TokenBatch) -> None:
    for writer in plain.anatomy.writers:
        if writer.fused:
            edit = Edit(additions([writer], plain.anatomy.d_model))
            with pytest.raises(NotExpressible, match="put it at the residual site"):
                plain.logits(batch, edit)


def test_addition_to_the_stream(plain: Backend, batch: TokenBatch, unedited: Tensor) -> None:
    """Steering after a block is a bias of its last writer, unless routing or a norm follows."""
    vector = random_vector(plain.anatomy.d_model)
    for block in range(plain.anatomy.n_blocks):
        edit = steering(Site.resid_post(block), vector, 0.5)
        hook = real(plain.logits(batch, edit, None), batch)
        if block + 1 < plain.anatomy.n_blocks:
            before = steering(Site.resid_pre(block + 1), vector, 0.5)
            assert relative(real(plain.logits(batch, before, None), batch), hook) < tolerance(plain)
        assert relative(hook, unedited) > EFFECT
        last = plain.anatomy.in_block(block)[-1].writers[-1]
        if last.scale is None or last.fused:
            with pytest.raises(NotExpressible, match="use it as a hook"):
                delta_of(plain, edit)
        else:
            assert_one_edit(plain, edit, batch, unedited)


def test_what_has_no_weight_form_says_so(plain: Backend) -> None:
    direction = random_direction(plain.anatomy.d_model)
    with pytest.raises(NotExpressible, match="put the operator at all writers"):
        delta_of(plain, Edit(sites={Site.resid_post(0): Ablation(direction.vector)}))
    with pytest.raises(NotExpressible, match="use the output of a block"):
        delta_of(plain, steering(Site.embed(), direction.vector))
    middle = Edit(sites={Site.resid_mid(0): Ablation(direction.vector)})
    with pytest.raises(SiteError, match="embed, resid_pre or resid_post"):
        hooked(plain.model, plain.anatomy, middle).__enter__()


def test_least_disturbance(plain: Backend, batch: TokenBatch, unedited: Tensor) -> None:
    """``−α u qᵀ`` at every writer, fused experts included: their inputs are recomputed."""
    unit = random_direction(plain.anatomy.d_model).vector
    for kind in {w.kind for w in plain.anatomy.block_writers}:
        operators: dict[str, Operator] = {}
        for seed, writer in enumerate(w for w in plain.anatomy.block_writers if w.kind == kind):
            shape = (writer.shape[0], writer.d_in) if writer.fused else (writer.d_in,)
            probe = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
            one = LeastDisturbance(unit, probe, 0.2)
            operators[writer.weight] = one if seed % 2 else Total((one, replace(one, amount=0.1)))
        assert_one_edit(plain, Edit(operators), batch, unedited)


def test_a_post_norm_needs_the_direction_seen_through_its_gain(plain: Backend) -> None:
    direction = random_direction(plain.anatomy.d_model)
    for weight, operator in ablate(plain).writers.items():
        writer = plain.anatomy.writer(weight)
        same = torch.allclose(operator.unit, direction.vector, atol=1e-4)
        assert same == (writer.gain is None)


# --- the algebra of deltas -----------------------------------------------------------------------


def test_reflecting_twice_is_nothing(plain: Backend, batch: TokenBatch, unedited: Tensor) -> None:
    """λ = 2 is the Householder reflection ``I − 2uuᵀ``, its own inverse."""
    edit = ablate(plain, 2.0)
    once = delta_of(plain, edit)
    with applied(plain.model, plain.anatomy, once):
        twice = delta_of(plain, edit)
        assert relative(real(plain.logits(batch, None, None), batch), unedited) > EFFECT
        with applied(plain.model, plain.anatomy, twice):
            assert relative(real(plain.logits(batch, None, None), batch), unedited) < tolerance(
                plain
            )


def weights_under(plain: Backend, delta: WeightDelta) -> dict[str, Tensor]:
    params = dict(plain.model.named_parameters(remove_duplicate=False))
    with applied(plain.model, plain.anatomy, delta):
        return {name: params[name].double() for name, _ in delta if name in params}


def test_scaling_a_delta_scales_the_edit(plain: Backend, batch: TokenBatch) -> None:
    whole, half = delta_of(plain, ablate(plain)), delta_of(plain, ablate(plain, 0.5))
    scaled = whole.scale(0.5)
    assert scaled.norm() == pytest.approx(0.5 * whole.norm())
    assert relative(plain.logits(batch, scaled), plain.logits(batch, half)) < tolerance(plain)
    with applied(plain.model, plain.anatomy, whole.scale(0.0)):
        assert_untouched_weights(plain, whole)


def assert_untouched_weights(plain: Backend, delta: WeightDelta) -> None:
    fresh = dict(tiny_model(plain.anatomy.model_type).named_parameters(remove_duplicate=False))
    for name, value in plain.model.named_parameters(remove_duplicate=False):
        assert torch.equal(value, fresh[name]), name


def test_composition_adds(plain: Backend) -> None:
    one, two = delta_of(plain, ablate(plain)), delta_of(plain, ablate(plain, 0.7, seed=1))
    base = dict(plain.model.named_parameters(remove_duplicate=False))
    both = weights_under(plain, one.compose(two))
    assert one.compose(two).rank == 2
    for name, value in weights_under(plain, two.compose(one)).items():
        changes = [weights_under_one(delta, name) for delta in (one, two)]
        assert relative(value, base[name].double() + sum(changes)) < 1e-6
        assert relative(both[name], value) < 1e-6


def weights_under_one(delta: WeightDelta, name: str) -> Tensor:
    update = delta.updates[name]
    return update.value.double() if isinstance(update, Shift) else update.stored().double()


def test_norm_is_that_of_the_weights(plain: Backend) -> None:
    delta = delta_of(plain, ablate(plain))
    squares = sum(weights_under_one(delta, name).square().sum() for name, _ in delta)
    assert delta.norm() == pytest.approx(float(squares) ** 0.5, rel=1e-6)


# --- lending the model ---------------------------------------------------------------------------


def test_the_model_comes_back_bit_for_bit(plain: Backend, batch: TokenBatch) -> None:
    before = state(plain.model)
    changed = delta_of(plain, ablate(plain))
    writers = [w for w in plain.anatomy.block_writers if takes_addition(w) and w.bias is None]
    made = [delta_of(plain, Edit(additions(writers, plain.anatomy.d_model)))] if writers else []
    for delta in (changed, *made):
        with applied(plain.model, plain.anatomy, delta):
            assert any(not torch.equal(before[k], v) for k, v in shared(plain, before)) or made
        assert_untouched(plain.model, before)
        with (
            pytest.raises(ArithmeticError, match="in the middle"),
            applied(plain.model, plain.anatomy, delta),
        ):
            raise ArithmeticError("in the middle")
        assert_untouched(plain.model, before)
    with (
        pytest.raises(ArithmeticError, match="in the middle"),
        hooked(plain.model, plain.anatomy, ablate(plain)),
    ):
        raise ArithmeticError("in the middle")
    assert_untouched(plain.model, before)


def shared(plain: Backend, before: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(k, v) for k, v in plain.model.state_dict().items() if k in before]


def test_a_tied_unembedding_is_untied_while_its_embedding_is_edited(plain: Backend) -> None:
    model, anatomy = plain.model, plain.anatomy
    embedding = model.get_submodule(anatomy.embeddings[0].module)
    head = model.get_submodule(anatomy.unembed)
    tied, unembedding = head.weight is embedding.weight, head.weight.clone()
    assert tied == anatomy.tied
    delta = delta_of(plain, ablate(plain))
    assert delta.untied == tied
    with applied(model, anatomy, delta):
        assert head.weight is not embedding.weight
        assert torch.equal(head.weight, unembedding)
        assert not torch.equal(embedding.weight[: len(unembedding)], unembedding)
    assert (head.weight is embedding.weight) == tied
    blocks_only = ablation(model, anatomy, random_direction(anatomy.d_model))
    assert not delta_of(plain, blocks_only).untied


@pytest.mark.parametrize("model_type", ["llama", "jamba", "mamba", "gpt_oss"])
def test_half_precision_comes_back_bit_for_bit(model_type: str) -> None:
    model = tiny_model(model_type, dtype=torch.bfloat16)
    anatomy, before = describe(model), state(model)
    direction = random_direction(anatomy.d_model)
    delta = to_delta(model, anatomy, ablation(model, anatomy, direction, embeddings=True))
    with applied(model, anatomy, delta):
        for writer in anatomy.writers:
            assert not torch.equal(model.get_parameter(writer.weight), before[writer.weight])
    assert_untouched(model, before)


# --- refusals ------------------------------------------------------------------------------------


def test_another_base_is_refused_before_anything_changes(plain: Backend) -> None:
    delta = delta_of(plain, ablate(plain))
    other = tiny_model(plain.anatomy.model_type, seed=1)
    before = state(other)
    with pytest.raises(DeltaError, match="made for another base"):
        applied(other, describe(other), delta).__enter__()
    assert_untouched(other, before)


def llama() -> Backend:
    return wrap(tiny_model("llama"))


def test_blocks_outside_the_model_are_refused() -> None:
    plain = llama()
    direction = random_direction(plain.anatomy.d_model)
    for blocks in ([3], [-1], [0, 7]):
        with pytest.raises(SiteError, match="blocks are 0 … 2"):
            ablation(plain.model, plain.anatomy, direction, blocks=blocks)


def test_deltas_of_different_bases_do_not_add() -> None:
    plain = llama()
    delta = delta_of(plain, ablate(plain))
    with pytest.raises(DeltaError, match="different bases"):
        delta.compose(replace(delta, base="0" * 64))


def test_deltas_that_do_not_fit_are_refused_before_anything_changes() -> None:
    plain = llama()
    before = state(plain.model)
    delta = delta_of(plain, ablate(plain))
    name, update = next(iter(delta))
    renamed = replace(delta, updates={**delta.updates, "model.layers.9.mlp.weight": update})
    with pytest.raises(DeltaError, match=r"model.layers.9.mlp.weight, which the model does not"):
        applied(plain.model, plain.anatomy, renamed).__enter__()
    wrong = replace(update, a=update.a[..., :-1])
    with pytest.raises(DeltaError, match="the delta is for shape"):
        applied(
            plain.model, plain.anatomy, replace(delta, updates={**delta.updates, name: wrong})
        ).__enter__()
    assert_untouched(plain.model, before)


def test_edits_without_effect_are_refused() -> None:
    with pytest.raises(DeltaError, match="matched no writer"):
        Edit()
    plain = llama()
    probe = torch.zeros(52)
    idle = LeastDisturbance(random_direction(32).vector, probe, 0.0)
    with pytest.raises(DeltaError, match="matched no matrix"):
        delta_of(plain, Edit({"model.layers.0.mlp.down_proj.weight": idle}))
