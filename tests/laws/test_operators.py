"""The other operators: two faces over every family, hooks that say why, and runs that stay the same."""

from __future__ import annotations

import math

import pytest
import torch
from toolbox import (
    assert_untouched,
    opened,
    random_direction,
    random_vector,
    real,
    relative,
    state,
    stream,
)
from torch import Tensor, nn

from interp.backends.opening import wrap
from interp.backends.protocol import Backend
from interp.edits import Edit, applied, canonical, readable, select_writers, to_delta, writer_unit
from interp.errors import NotExpressible
from interp.hooking import hooked
from interp.models.anatomy import BoundWriter
from interp.operators import (
    Ablation,
    Addition,
    Affine,
    Angular,
    Clamp,
    Gated,
    LeastDisturbance,
    NormKept,
    NormPreserving,
    Operator,
    SubspaceAblation,
    norm_restored,
    share_left,
)
from interp.sites import Site
from interp.types import TokenBatch, WeightDelta

TOLERANCE = 1e-5  # relative, on logits, fp32
EFFECT = 1e-3
NOTHING = 1e-6


@pytest.fixture(scope="session")
def plain(tiny: nn.Module) -> Backend:
    return wrap(tiny)


@pytest.fixture(scope="session")
def unedited(plain: Backend, batch: TokenBatch) -> Tensor:
    return real(plain.logits(batch, None, None), batch)


def tolerance(plain: Backend) -> float:
    """Zamba2's shared transformers amplify rounding, which the two faces do not share (7e-6)."""
    return 1e-4 if plain.anatomy.model_type == "zamba2" else TOLERANCE


def delta_of(plain: Backend, edit: Edit) -> WeightDelta:
    return to_delta(plain.model, plain.anatomy, edit)


def assert_one_edit(plain: Backend, edit: Edit, batch: TokenBatch, unedited: Tensor) -> None:
    """The hook face and the weight face give the same logits, which are not the unedited ones."""
    hook = real(plain.logits(batch, edit, None), batch)
    weights = real(plain.logits(batch, delta_of(plain, edit), None), batch)
    assert relative(hook, unedited) > EFFECT
    assert relative(weights, hook) < tolerance(plain)


def seen_by(plain: Backend, writer: BoundWriter, count: int) -> Tensor:
    """``[count, d_model]``: random directions as the writer's output must lack them."""
    found = [random_direction(plain.anatomy.d_model, seed).vector for seed in range(count)]
    return torch.stack([writer_unit(plain.model, writer, v) for v in found])


def matrix(plain: Backend, writer: BoundWriter) -> Tensor:
    return canonical(readable(plain.model, writer.weight), writer.axes)


def takes_constant(writer: BoundWriter) -> bool:
    return writer.gain is None and not writer.fused


def own_gain(plain: Backend, writer: BoundWriter) -> float:
    """What an embedding multiplies its own rows by; 1 for every other writer."""
    if writer.kind != "embedding":
        return 1.0
    return (writer.scale or 1.0) / plain.anatomy.embed_scale


def norm_preserving(plain: Backend, axis: str, *, embeddings: bool = True) -> Edit:
    operators: dict[str, Operator] = {}
    for writer in select_writers(plain.anatomy, embeddings=embeddings):
        unit = seen_by(plain, writer, 1)[0]
        gain = own_gain(plain, writer)
        operators[writer.weight] = NormPreserving.of(unit, matrix(plain, writer), axis, gain=gain)
    return Edit(operators)


# --- both faces, every family --------------------------------------------------------------------


def test_subspace(plain: Backend, batch: TokenBatch, unedited: Tensor) -> None:
    for strength in (0.6, 1.0):
        operators = {
            w.weight: SubspaceAblation(seen_by(plain, w, 3), strength)
            for w in plain.anatomy.writers
        }
        assert_one_edit(plain, Edit(operators), batch, unedited)
    delta = delta_of(plain, Edit(operators))
    assert delta.rank == 3
    basis = torch.stack([random_direction(plain.anatomy.d_model, s).vector for s in range(3)])
    for edit in (Edit(operators), delta):
        with plain.editing(edit):
            for rows in stream(plain, batch).values():
                left = (rows @ basis.T).norm(dim=-1) / rows.norm(dim=-1)
                assert left.max() < 3 * NOTHING


def test_affine_maps_without_a_shift(plain: Backend, batch: TokenBatch, unedited: Tensor) -> None:
    """Linear, so behind norms and inside fused experts, too."""
    d = plain.anatomy.d_model
    left, right = (
        torch.stack([random_vector(d, s) for s in pair]) / d for pair in ((1, 2), (3, 4))
    )
    operators = {w.weight: Affine(left.T, 3.0 * right) for w in plain.anatomy.writers}
    assert_one_edit(plain, Edit(operators), batch, unedited)


def test_affine_maps_with_a_shift(plain: Backend, batch: TokenBatch, unedited: Tensor) -> None:
    """The bias takes the shift: of every kind of writer alone, rows of embeddings among them."""
    writers = [w for w in plain.anatomy.writers if takes_constant(w)]
    for kind in {w.kind for w in writers}:
        operators: dict[str, Operator] = {
            w.weight: Affine.ace(random_direction(plain.anatomy.d_model, seed).vector, 0.4)
            for seed, w in enumerate(writers)
            if w.kind == kind
        }
        assert_one_edit(plain, Edit(operators), batch, unedited)


def test_a_shift_behind_a_norm_or_routing_weights_has_no_weight_form(
    plain: Backend, batch: TokenBatch
) -> None:
    shifted = Affine.ace(random_direction(plain.anatomy.d_model).vector, 0.4)
    for writer in plain.anatomy.writers:
        edit = Edit({writer.weight: shifted})
        if not takes_constant(writer):
            with pytest.raises(NotExpressible, match=r"Affine at .* adds a constant.*as a hook"):
                delta_of(plain, edit)
        if writer.fused:
            with pytest.raises(NotExpressible, match="Affine inside fused experts"):
                plain.logits(batch, edit)


def test_ace_puts_the_stream_at_its_level(plain: Backend, batch: TokenBatch) -> None:
    """The level in one embedding, nothing along the direction from any other writer."""
    unit, level = random_direction(plain.anatomy.d_model).vector, 0.7
    operators: dict[str, Operator] = {}
    for k, writer in enumerate(plain.anatomy.writers):
        written = level / (writer.scale or 1.0) if k == 0 else 0.0
        # A hook acts on the module's output; what the model multiplies that by comes after.
        written *= own_gain(plain, writer) if k == 0 else 1.0
        operators[writer.weight] = Affine.ace(seen_by(plain, writer, 1)[0], written)
    edit = Edit(operators)
    for given in (edit, delta_of(plain, edit)):
        with plain.editing(given):
            for site, rows in stream(plain, batch).items():
                gap = (rows.double() @ unit.double() - level).abs() / rows.norm(dim=-1)
                assert gap.max() < 3 * NOTHING, site


@pytest.mark.parametrize("axis", ["columns", "rows"])
def test_norm_preserving(plain: Backend, batch: TokenBatch, unedited: Tensor, axis: str) -> None:
    edit = norm_preserving(plain, axis)
    assert_one_edit(plain, edit, batch, unedited)
    delta, dim = delta_of(plain, edit), -2 if axis == "columns" else -1
    changes = [u.rank for name, u in delta if name in edit.writers]  # type: ignore[union-attr]
    assert min(changes) > 1
    for writer in plain.anatomy.writers:
        before, update = matrix(plain, writer), delta.updates[writer.weight]
        after = before + update.dense()  # type: ignore[union-attr]
        unit = seen_by(plain, writer, 1)[0]
        assert relative(after.norm(dim=dim), before.norm(dim=dim)) < 1e-6
        left = torch.einsum("d,...df->...f", unit, after).norm()
        share = (left / torch.einsum("d,...df->...f", unit, before).norm()).item()
        assert share == pytest.approx(share_left(unit, before, axis), abs=1e-5)
        assert (share < 1e-5) == (axis == "columns")


def test_norm_preserving_leaves_nothing_by_columns(plain: Backend, batch: TokenBatch) -> None:
    """Biases are ablated with the matrices, so that the whole stream is clean."""
    unit = random_direction(plain.anatomy.d_model).vector
    edit = norm_preserving(plain, "columns")
    for given in (edit, delta_of(plain, edit)):
        with plain.editing(given):
            for site, rows in stream(plain, batch).items():
                share = (rows.double() @ unit.double()).abs() / rows.norm(dim=-1)
                assert share.max() < 3 * NOTHING, site
    changed = relative(
        plain.logits(batch, edit),
        plain.logits(batch, Edit({w: op.plain for w, op in edit.writers.items()})),  # type: ignore
    )
    assert changed > EFFECT


# --- hooks only ----------------------------------------------------------------------------------


def hook_only(unit: Tensor, other: Tensor) -> list[Operator]:
    return [
        Clamp(unit, -0.05, 0.05),
        Angular(torch.stack([unit, other]), 160.0),
        Angular(torch.stack([unit, other]), 160.0, adaptive=True),
        NormKept(Ablation(unit, 2.0)),
        Gated(Addition(other, 2.0), unit, 0.05),
    ]


def test_hooks_only_say_why(plain: Backend, batch: TokenBatch) -> None:
    """At every writer and at a site; inside fused experts they are refused as hooks, too."""
    first, second = (random_direction(plain.anatomy.d_model, s).vector for s in (0, 1))
    kinds = {w.kind: w for w in plain.anatomy.writers}
    for operator in hook_only(first, second):
        for writer in kinds.values():
            edit = Edit({writer.weight: operator})
            with pytest.raises(NotExpressible, match=r"has no weight form: .*; use it as a hook"):
                delta_of(plain, edit)
            if writer.fused:
                with pytest.raises(NotExpressible, match="put it at the residual site"):
                    plain.logits(batch, edit)
        with pytest.raises(NotExpressible, match=r"has no weight form: .*; use it as a hook"):
            delta_of(plain, Edit(sites={Site.resid_post(0): operator}))
    reader = NormKept(LeastDisturbance(first, torch.zeros(1), 0.0))
    for writer in plain.anatomy.writers:
        if writer.fused:
            with pytest.raises(NotExpressible, match="NormKept inside fused experts"):
                plain.logits(batch, Edit({writer.weight: reader}))


def test_what_hooks_only_do_to_the_stream(
    plain: Backend, batch: TokenBatch, unedited: Tensor
) -> None:
    """At the output of a block: each has an effect and the law of its own, read off the stream."""
    first, second = (random_direction(plain.anatomy.d_model, s).vector for s in (0, 1))
    site = Site.resid_post(0)
    before = stream(plain, batch)[site]
    for operator in hook_only(first, second):
        edit = Edit(sites={site: operator})
        assert relative(real(plain.logits(batch, edit, None), batch), unedited) > EFFECT
        with plain.editing(edit):
            after = stream(plain, batch)[site]
        assert relative(after, operator.act(before)) < tolerance(plain)
        if isinstance(operator, Angular | NormKept):
            assert relative(after.norm(dim=-1), before.norm(dim=-1)) < tolerance(plain)
        if isinstance(operator, Clamp):
            assert (after @ first).abs().max() < 0.05 + 1e-4


def test_a_gate_that_stays_shut_changes_no_bit(
    plain: Backend, batch: TokenBatch, unedited: Tensor
) -> None:
    first, second = (random_direction(plain.anatomy.d_model, s).vector for s in (0, 1))
    shut = Gated(Addition(second, 100.0), first, math.inf)
    writers = {w.weight: shut for w in plain.anatomy.writers if not w.fused}
    edit = Edit(writers, dict.fromkeys([Site.embed(), Site.resid_post(0)], shut))
    assert torch.equal(real(plain.logits(batch, edit, None), batch), unedited)


def test_all_but_addition_have_no_weight_form_at_a_site(plain: Backend) -> None:
    unit = random_direction(plain.anatomy.d_model).vector
    for operator in (SubspaceAblation(unit[None]), Affine.ace(unit), Affine.ace(unit, 0.3)):
        with pytest.raises(NotExpressible, match="put the operator at all writers instead"):
            delta_of(plain, Edit(sites={Site.resid_post(0): operator}))


# --- one family: runs that stay the same ---------------------------------------------------------


def llama() -> Backend:
    return opened("llama", "hooks")


def every_edit(plain: Backend) -> dict[str, Edit]:
    """Each operator where it belongs, on a tiny llama."""
    first, second = (random_direction(plain.anatomy.d_model, s).vector for s in (0, 1))
    writers = [w.weight for w in plain.anatomy.block_writers]
    probe = {w.weight: random_vector(w.d_in, 5) for w in plain.anatomy.block_writers}
    made: dict[str, Operator] = {
        "ablation": Ablation(first),
        "addition": Addition(second, 0.3),
        "subspace": SubspaceAblation(torch.stack([first, second])),
        "affine": Affine.ace(first, 0.5),
    }
    made |= {
        f"{k} {type(operator).__name__}": operator
        for k, operator in enumerate(hook_only(first, second))
    }
    edits = {name: Edit(dict.fromkeys(writers, operator)) for name, operator in made.items()}
    edits |= {
        f"{name} at sites": Edit(sites={Site.resid_post(0): made[name], Site.embed(): made[name]})
        for name in made
    }
    edits["least disturbance"] = Edit({w: LeastDisturbance(first, probe[w], 0.2) for w in writers})
    edits["gated reader"] = Edit(
        {w: Gated(NormKept(LeastDisturbance(first, probe[w], 0.5)), second, 0.0) for w in writers}
    )
    for axis in ("columns", "rows"):
        edits[f"norm-preserving {axis}"] = norm_preserving(plain, axis)
    return edits


NAMES = sorted(every_edit(llama()))


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_and_the_padding_change_nothing(name: str, batch: TokenBatch) -> None:
    """Cached greedy search is the argmax of the whole text; a row alone is the row in the batch."""
    plain, edit, text = llama(), every_edit(llama())[name], batch
    assert relative(plain.logits(batch, edit), plain.logits(batch)) > 1e-4
    new, ended = plain.generate(batch, edit, tokens=4), torch.zeros(len(batch), dtype=torch.bool)
    for step in range(4):
        best = plain.logits(text, edit).argmax(-1)
        best[ended] = 0  # padding after the end of text
        assert torch.equal(new[:, step], best)
        ended |= best == plain.model.generation_config.eos_token_id
        text = text.extended(best[:, None])
    apart = torch.cat([plain.logits(part, edit) for part in batch.split(1)])
    assert [part.ids.shape[1] for part in batch.split(1)] == [17, 13, 16]
    assert relative(apart, plain.logits(batch, edit)) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_hooks_go_after_an_error(name: str) -> None:
    plain, edit = llama(), every_edit(llama())[name]
    before = state(plain.model)
    with (
        pytest.raises(ArithmeticError, match="in the middle"),
        hooked(plain.model, plain.anatomy, edit),
    ):
        raise ArithmeticError("in the middle")
    assert_untouched(plain.model, before)


def test_hooks_go_when_the_operator_itself_fails(batch: TokenBatch) -> None:
    plain = llama()
    before = state(plain.model)
    unit, weight = random_direction(plain.anatomy.d_model).vector, plain.anatomy.block_writers[0]
    misplaced = NormPreserving.of(unit, matrix(plain, weight))
    with pytest.raises(NotExpressible, match="put it at writers"):
        plain.logits(batch, Edit(sites={Site.resid_post(0): misplaced}))
    assert_untouched(plain.model, before)


def test_ablating_twice_is_ablating_once_and_mirrors_undo_themselves(batch: TokenBatch) -> None:
    """In the weights: the delta of the edited model. GPT-2, all of whose writers have a bias."""
    plain = opened("gpt2", "hooks")
    d = plain.anatomy.d_model
    basis = torch.stack([random_direction(d, s).vector for s in (0, 1)])
    unit, unedited = basis[0], plain.logits(batch)
    ace = Edit({w.weight: Affine.ace(unit, 0.3) for w in plain.anatomy.block_writers})
    flat = Edit({w.weight: SubspaceAblation(basis) for w in plain.anatomy.writers})
    for edit in (ace, flat):
        once = plain.logits(batch, edit)
        with applied(plain.model, plain.anatomy, delta_of(plain, edit)):
            assert relative(plain.logits(batch, delta_of(plain, edit)), once) < TOLERANCE
    mirror = Edit({w.weight: Affine.reflection(unit, 0.2) for w in plain.anatomy.writers})
    turned = Edit({w.weight: SubspaceAblation(basis, 2.0) for w in plain.anatomy.writers})
    for edit in (mirror, turned):
        with applied(plain.model, plain.anatomy, delta_of(plain, edit)):
            assert relative(plain.logits(batch), unedited) > EFFECT
            assert relative(plain.logits(batch, delta_of(plain, edit)), unedited) < TOLERANCE


def test_norms_restored_and_cut_to_rank_three_is_another_edit() -> None:
    """Why the weight form keeps full rank: a truncation would be an approximation."""
    weight = matrix(llama(), llama().anatomy.block_writers[-1])
    unit = random_direction(weight.shape[0]).vector
    change = norm_restored(unit, weight, "rows", 1.0) - weight
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    cut = left[:, :3] @ torch.diag(values[:3]) @ right[:3]
    assert relative(cut, change) > 0.1
    update = NormPreserving.of(unit, weight, "rows").weight_update(weight)
    assert update is not None
    assert relative(update.dense(), change) < 1e-5


def test_leace_of_a_writer_makes_its_class_means_equal(batch: TokenBatch) -> None:
    """Fitted on what a writer writes, applied in its weights."""
    plain = llama()
    writer = plain.anatomy.block_writers[0]
    component = next(c for c in plain.anatomy.components if writer in c.writers)
    site = Site.component(component.name)
    acts = real(plain.capture(batch, [site], None)[site], batch)
    label = (torch.arange(len(acts)) % 2).float()
    assert (acts[label == 1].mean(0) - acts[label == 0].mean(0)).norm() > 1e-2 * acts.norm(
        dim=-1
    ).mean()
    edit = Edit({writer.weight: Affine.leace(acts, label[:, None])})
    for given in (edit, delta_of(plain, edit)):
        with plain.editing(given):
            erased = real(plain.capture(batch, [site], None)[site], batch)
        gap = (erased[label == 1].mean(0) - erased[label == 0].mean(0)).norm()
        assert gap < 1e-5 * acts.norm(dim=-1).mean()
