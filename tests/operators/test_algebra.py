"""Operators on bare vectors and matrices: identities, levels, norms, order, and what they refuse."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from toolbox import random_vector, relative
from torch import Tensor

from interp.errors import DeltaError, NoDirection, NotExpressible
from interp.maths import unit
from interp.operators import (
    Ablation,
    Addition,
    Affine,
    Angular,
    Clamp,
    Composed,
    Gated,
    Graded,
    HookOnly,
    LeastDisturbance,
    NormKept,
    NormPreserving,
    Operator,
    SubspaceAblation,
    Total,
    linear_form,
    norm_restored,
    share_left,
)

SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.integers(3, 16)
STRENGTHS = st.floats(-2, 3)
D = 12


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direction(d: int = D, seed: int = 0) -> Tensor:
    return unit(normal(d, seed=seed))


def faces_agree(operator: Operator, weight: Tensor, bias: Tensor | None, inputs: Tensor) -> None:
    """``act(Wa + b, a) = (W + ΔW)a + b + Δb``."""
    written = inputs @ weight.T + (0.0 if bias is None else bias)
    update, shift = operator.weight_update(weight), operator.bias_update(bias, weight)
    after = written if update is None else written + update.act(inputs)
    after = after if shift is None else after + shift
    assert relative(operator.act(written, inputs), after) < 1e-9


def expressible(weight: Tensor, strength: float, seed: int) -> list[Operator]:
    d, d_in = weight.shape
    u = direction(d, seed)
    return [
        Ablation(u, strength),
        SubspaceAblation(normal(2, d, seed=seed), strength),
        Affine(normal(d, 2, seed=seed), normal(2, d, seed=seed + 1)),
        Affine(normal(d, 2, seed=seed), normal(2, d, seed=seed + 1), normal(d, seed=seed + 2)),
        Affine.ace(u, strength),
        Affine.reflection(u, strength),
        LeastDisturbance(u, normal(d_in, seed=seed), strength),
        NormPreserving.of(u, weight, "columns", strength),
        NormPreserving.of(u, weight, "rows", strength),
        Composed(
            (
                Affine.ace(u, strength),
                LeastDisturbance(u, normal(d_in, seed=seed), strength),
                Ablation(direction(d, seed + 1), strength),
            )
        ),
        Total((Affine.ace(u, strength), LeastDisturbance(u, normal(d_in, seed=seed), strength))),
    ]


def hook_only(seed: int = 0) -> list[HookOnly]:
    u = direction(seed=seed)
    return [
        Clamp(u, -0.1, 0.1),
        Angular(normal(2, D, seed=seed), 200.0),
        Angular(normal(2, D, seed=seed), 120.0, adaptive=True),
        NormKept(Ablation(u)),
        Gated(Addition(normal(D, seed=seed)), u, 0.1),
    ]


# --- the two faces -------------------------------------------------------------------------------


@given(SIZES, SIZES, STRENGTHS, SEEDS, st.booleans())
def test_both_faces_are_one_edit(
    d: int, d_in: int, strength: float, seed: int, biased: bool
) -> None:
    weight, inputs = normal(d, d_in, seed=seed), normal(5, d_in, seed=seed + 9)
    bias = normal(d, seed=seed + 5) if biased else None
    for operator in expressible(weight, strength, seed):
        faces_agree(operator, weight, bias, inputs)


def test_all_of_them_are_operators() -> None:
    for operator in [*expressible(normal(D, 5), 1.0, 0), *hook_only()]:
        assert isinstance(operator, Operator)
        assert operator.exactness


def test_hooks_only_say_why() -> None:
    reasons = {
        Clamp: "depends on the token",
        Angular: "not linear in what is written",
        NormKept: "norm of what is written is not linear",
        Gated: "cannot test a condition",
    }
    weight = normal(D, 5)
    for operator in hook_only():
        reason = rf"{type(operator).__name__} has no weight form: .*{reasons[type(operator)]}"
        with pytest.raises(NotExpressible, match=rf"{reason}.*use it as a hook"):
            operator.weight_update(weight)
        with pytest.raises(NotExpressible, match=reason):
            operator.bias_update(None, weight)
        assert not operator.homogeneous


def test_what_an_operator_needs_its_wrapper_needs() -> None:
    reader = LeastDisturbance(direction(), normal(5), 0.5)
    for operator, needs in ((reader, True), (Ablation(direction()), False)):
        assert NormKept(operator).needs_input == needs
        assert Gated(operator, direction(), 0.0).needs_input == needs
    written, inputs = normal(4, D, seed=1), normal(4, 5, seed=2)
    kept = NormKept(reader).act(written, inputs)
    assert relative(kept.norm(dim=-1), written.norm(dim=-1)) < 1e-12
    assert relative(Gated(reader, direction(), -2.0).act(written, inputs), written) > 1e-3


def test_half_precision_stays_half_precision() -> None:
    written, inputs = normal(4, D).bfloat16(), normal(4, 5).bfloat16()
    for operator in [*expressible(normal(D, 5).float(), 1.0, 0), *hook_only()]:
        assert operator.act(written, inputs).dtype == torch.bfloat16


# --- subspaces -----------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(6, 16), SEEDS, st.randoms(use_true_random=False))
def test_a_subspace_is_its_span(k: int, d: int, seed: int, random: object) -> None:
    basis, y = normal(k, d, seed=seed), normal(7, d, seed=seed + 1)
    order = list(range(k))
    random.shuffle(order)  # type: ignore[attr-defined]
    removed = SubspaceAblation(basis).act(y)
    assert relative(SubspaceAblation(3.0 * basis[order]).act(y), removed) < 1e-9
    assert (removed @ basis.T).abs().max() < 1e-9 * basis.norm() * y.norm()
    assert relative(SubspaceAblation(basis).act(removed), removed) < 1e-9
    mirror = SubspaceAblation(basis, 2.0)
    assert relative(mirror.act(mirror.act(y)), y) < 1e-9
    assert relative(mirror.act(y).norm(dim=-1), y.norm(dim=-1)) < 1e-9
    assert torch.equal(SubspaceAblation(basis, 0.0).act(y), y)


def test_one_after_the_other_is_not_a_subspace() -> None:
    """Why QR: two slanted directions, removed in turn, leave some of the first."""
    basis, y = torch.eye(D, dtype=torch.float64)[:2], normal(7, D)
    slanted = torch.stack([basis[0], unit(basis[0] + basis[1])])
    for vector in slanted:
        y = Ablation(vector).act(y)
    assert (y @ slanted[0]).abs().max() > 0.1
    assert (SubspaceAblation(slanted).act(y) @ slanted[0]).abs().max() < 1e-12


def test_a_line_is_a_subspace() -> None:
    u, y = direction(), normal(7, D, seed=3)
    assert relative(SubspaceAblation(u[None], 0.7).act(y), Ablation(u, 0.7).act(y)) < 1e-12
    assert SubspaceAblation(normal(3, D)).weight_update(normal(D, 5)).rank == 3  # type: ignore[union-attr]


def test_dependent_vectors_are_refused() -> None:
    u, v = normal(D), normal(D, seed=1)
    with pytest.raises(NoDirection, match=r"vector 2 .* lies in the span of those before it"):
        SubspaceAblation(torch.stack([u, v, u - 2 * v]))
    with pytest.raises(NoDirection, match="vector 3 "):
        SubspaceAblation(normal(4, 3))
    for bad in (torch.stack([u, 0 * u]), torch.stack([u, u / 0]), torch.empty(0, D)):
        with pytest.raises(NoDirection, match="finite and not zero"):
            SubspaceAblation(bad)


# --- affine maps ---------------------------------------------------------------------------------


@given(SIZES, SEEDS, st.floats(-5, 5))
def test_ace_sets_the_level_and_nothing_else(d: int, seed: int, level: float) -> None:
    u, y = direction(d, seed), normal(6, d, seed=seed + 1)
    after = Affine.ace(u, level).act(y)
    assert torch.allclose(after @ u, torch.tensor(level, dtype=torch.float64), atol=1e-12)
    assert relative(Ablation(u).act(after), Ablation(u).act(y)) < 1e-12


def test_ace_goes_from_the_level_of_one_class_to_that_of_the_other() -> None:
    """``proj_v μ⁻ + αv``: α = 0 is the negative class, α = 1 the positive one."""
    comply, refuse = normal(20, D, seed=1), normal(30, D, seed=2) + normal(D, seed=3)
    v = refuse.mean(0) - comply.mean(0)
    u = unit(v)
    for alpha, mean in ((0.0, comply.mean(0)), (1.0, refuse.mean(0))):
        level = (u @ comply.mean(0) + alpha * v.norm()).item()
        y = normal(6, D, seed=4)
        paper = y - (y @ u)[:, None] * u + (u @ comply.mean(0)) * u + alpha * v
        assert relative(Affine.ace(u, level).act(y), paper) < 1e-12
        assert level == pytest.approx((u @ mean).item())


@given(SIZES, SEEDS, st.floats(-5, 5))
def test_a_reflection_is_its_own_inverse(d: int, seed: int, level: float) -> None:
    u, y = direction(d, seed), normal(6, d, seed=seed + 1)
    mirror = Affine.reflection(u, level)
    assert relative(mirror.act(mirror.act(y)), y) < 1e-12
    assert torch.allclose(mirror.act(y) @ u, 2 * level - y @ u, atol=1e-11)
    assert relative(Affine.reflection(u).act(y), Ablation(u, 2.0).act(y)) < 1e-12


def test_level_zero_is_linear() -> None:
    u = direction()
    assert Affine.ace(u).homogeneous
    assert Affine.reflection(u).homogeneous
    assert not Affine.ace(u, 0.1).homogeneous
    assert Affine.ace(u).bias_update(None, normal(D, 5)) is None


@pytest.mark.parametrize("n", [300, 8])
@pytest.mark.parametrize("classes", [2, 3])
def test_leace_makes_class_means_equal(n: int, classes: int) -> None:
    """Also with fewer rows than dimensions; and it moves no more than it must."""
    mixing, label = normal(D, D, seed=5), torch.arange(n) % classes
    acts = normal(n, D, seed=6) @ mixing + 3.0 * normal(classes, D, seed=7)[label] + 10.0
    one_hot = torch.nn.functional.one_hot(label).double()
    eraser = Affine.leace(acts, one_hot)
    erased = eraser.act(acts)
    means = torch.stack([erased[label == c].mean(0) for c in range(classes)])
    raw = torch.stack([acts[label == c].mean(0) for c in range(classes)])
    assert (raw - raw[0]).norm() > 1.0
    assert (means - means[0]).norm() < 1e-6
    assert relative(erased.mean(0), acts.mean(0)) < 1e-6
    assert eraser.left.shape[1] == classes - 1
    assert relative(eraser.act(erased), erased) < 1e-6
    span = SubspaceAblation(raw[1:] - raw[0]).act(acts - acts.mean(0)) + acts.mean(0)
    assert (erased - acts).norm() < (span - acts).norm()


def test_leace_is_the_formula_of_the_paper() -> None:
    acts = normal(200, D, seed=8) @ normal(D, D, seed=9)
    concept = acts[:, :1] + normal(200, 1, seed=10)
    x, z = acts - acts.mean(0), concept - concept.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / 200)
    whiten = vectors @ torch.diag(values**-0.5) @ vectors.T
    cross = whiten @ x.T @ z / 200
    erase = torch.linalg.inv(whiten) @ cross @ torch.linalg.pinv(cross) @ whiten
    assert relative(Affine.leace(acts, concept).act(acts), acts - x @ erase.T) < 1e-8


def test_leace_refuses_what_has_nothing_to_erase() -> None:
    acts = normal(20, D)
    with pytest.raises(NoDirection, match="rows of at least two classes"):
        Affine.leace(acts, torch.ones(20, 1, dtype=torch.float64))
    with pytest.raises(NoDirection, match="two classes"):
        Affine.leace(torch.ones(20, D, dtype=torch.float64), normal(20, 1))
    with pytest.raises(ValueError, match="one concept row per activation, got 20 and 19"):
        Affine.leace(acts, normal(19, 1))


def test_around_leaves_the_mean_where_it_is() -> None:
    mean = normal(D)
    moved = Affine.around(mean, normal(D, 2, seed=1), normal(2, D, seed=2))
    assert relative(moved.act(mean), mean) < 1e-12
    assert relative(moved.act(mean + normal(D, seed=3)), mean + normal(D, seed=3)) > 0.1


# --- clamps, angles, norms, gates ----------------------------------------------------------------


@given(SEEDS, st.floats(-2, 2), st.floats(0, 2))
def test_a_clamp_clips_the_component_alone(seed: int, low: float, width: float) -> None:
    u, y = direction(seed=seed), normal(30, D, seed=seed + 1)
    after = Clamp(u, low, low + width).act(y)
    assert torch.allclose(after @ u, (y @ u).clamp(low, low + width), atol=1e-12)
    assert relative(Ablation(u).act(after), Ablation(u).act(y)) < 1e-12
    inside = ((y @ u) > low) & ((y @ u) < low + width)
    assert torch.equal(after[inside], y[inside])
    assert torch.equal(Clamp(u).act(y), y)
    assert relative(Clamp(u, low, low).act(y), Affine.ace(u, low).act(y)) < 1e-12


@given(SIZES, SEEDS, st.floats(-400, 400), st.booleans())
def test_an_angle_keeps_the_norm_and_holds(
    d: int, seed: int, degrees: float, adaptive: bool
) -> None:
    basis, y = normal(2, d, seed=seed), normal(20, d, seed=seed + 1)
    turn = Angular(basis, degrees, adaptive)
    after = turn.act(y)
    assert relative(after.norm(dim=-1), y.norm(dim=-1)) < 1e-12
    assert relative(turn.act(after), after) < 1e-12
    assert relative(SubspaceAblation(basis).act(after), SubspaceAblation(basis).act(y)) < 1e-9
    hit = (y @ basis[0]) > 0 if adaptive else torch.ones(20, dtype=torch.bool)
    assert torch.equal(after[~hit], y[~hit])
    found = after[hit] @ turn.basis.T
    wanted = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    lengths = (y[hit] @ turn.basis.T).norm(dim=-1, keepdim=True)
    assert (found - lengths * wanted.double()).abs().max() < 1e-6 if hit.any() else True


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 180.0, -45.0])
def test_the_angle_that_a_vector_has_leaves_it(degrees: float) -> None:
    turn = Angular(normal(2, D), degrees)
    angle = math.radians(degrees)
    inside = 2.5 * (math.cos(angle) * turn.basis[0] + math.sin(angle) * turn.basis[1])
    y = inside + SubspaceAblation(turn.basis).act(normal(D, seed=1))
    assert relative(turn.act(y), y) < 1e-12
    assert relative(Angular(turn.basis, degrees + 60).act(y), y) > 0.1


def test_the_plane_is_counted_from_its_first_vector() -> None:
    basis = normal(2, D)
    turn = Angular(basis, 0.0)
    assert relative(turn.basis[0], unit(basis[0])) < 1e-12
    assert (turn.basis[1] @ basis[1]) > 0
    assert relative(turn.basis @ turn.basis.T, torch.eye(2).double()) < 1e-12
    y = normal(9, D, seed=1)
    assert (Angular(basis, 90.0).act(y) @ basis[0]).abs().max() < 1e-12


def test_planes_that_are_none_are_refused() -> None:
    u = normal(D)
    with pytest.raises(NoDirection, match="parallel"):
        Angular(torch.stack([u, -2 * u]), 10.0)
    with pytest.raises(NoDirection, match="no direction"):
        Angular(torch.stack([u, 0 * u]), 10.0)
    with pytest.raises(ValueError, match="number of degrees"):
        Angular(normal(2, D), math.inf)


@given(SEEDS, STRENGTHS)
def test_norm_kept_keeps_the_norm_and_the_new_direction(seed: int, strength: float) -> None:
    y, operator = normal(9, D, seed=seed), Addition(normal(D, seed=seed + 1), strength)
    after, free = NormKept(operator).act(y), operator.act(y)
    assert relative(after.norm(dim=-1), y.norm(dim=-1)) < 1e-12
    cosine = torch.nn.functional.cosine_similarity(after, free, dim=-1)
    assert torch.allclose(cosine, torch.ones(9).double(), atol=1e-9)


def test_norm_kept_of_nothing_is_nothing() -> None:
    for y in (normal(9, D), normal(9, D).bfloat16(), normal(9, D).float()):
        assert torch.equal(NormKept(Ablation(direction(), 0.0)).act(y), y)
    assert not NormKept(Ablation(direction())).act(torch.zeros(3, D)).any()
    alone = torch.eye(D)[0]
    assert not NormKept(Ablation(alone)).act(2.0 * alone).any()


@pytest.mark.parametrize("score", ["cosine", "projection"])
def test_of_two_gates_one_is_open(score: str) -> None:
    u, y, operator = direction(), normal(40, D, seed=1), Addition(normal(D, seed=2))
    y[3] = 0.0
    scale = y.norm(dim=-1) if score == "cosine" else torch.ones(40)
    found = torch.where(y.norm(dim=-1) > 0, y @ u / scale, 0.0)
    threshold = found[7].item()  # a tie, too
    over = Gated(operator, u, threshold, True, score)
    under = Gated(operator, u, threshold, False, score)
    assert torch.allclose(over.scores(y), found, atol=1e-12)
    assert torch.equal(over.open(y), ~under.open(y))
    for gate, side in ((over, found > threshold), (under, found <= threshold)):
        clear = (found - threshold).abs() > 1e-9
        assert torch.equal(gate.open(y)[clear], side[clear])
        after = gate.act(y)
        assert torch.equal(after[gate.open(y)], operator.act(y)[gate.open(y)])
        assert torch.equal(after[~gate.open(y)], y[~gate.open(y)])
    assert 0 < over.open(y).sum() < 40


@pytest.mark.parametrize(
    ("threshold", "above"), [(math.inf, True), (-math.inf, False), (1.1, True)]
)
def test_a_gate_that_stays_shut_changes_no_bit(threshold: float, above: bool) -> None:
    y = normal(9, D).float()
    shut = Gated(Addition(normal(D).float(), 1e9), direction().float(), threshold, above)
    assert torch.equal(shut.act(y), y)


def test_bad_gates_clamps_and_units_are_refused() -> None:
    u, keep = direction(), Ablation(direction())
    with pytest.raises((ValueError, TypeCheckError), match="'tanh'"):
        Gated(keep, u, 0.0, score="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inf never opens it"):
        Gated(keep, u, math.nan)
    for low, high in ((1.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="low ≤ high"):
            Clamp(u, low, high)
    makers = (
        Clamp,
        Affine.ace,
        Affine.reflection,
        lambda v: Gated(keep, v, 0.0),
        lambda v: NormPreserving.of(v, normal(D, 5)),
    )
    for make in makers:
        with pytest.raises(ValueError, match=r"needs norm 1, got 2; use interp.maths.unit"):
            make(2 * u)


# --- norms of weights ----------------------------------------------------------------------------


def one_by_one(u: Tensor, weight: Tensor, axis: str) -> Tensor:
    """The same steps in plain loops, λ = 1."""
    change = weight.clone()
    if axis == "columns":
        for j in range(weight.shape[1]):
            column = weight[:, j] / weight[:, j].norm()
            column = column - (u @ column) * u
            change[:, j] = weight[:, j].norm() * column / column.norm()
        return change
    even = torch.stack([row / row.norm() for row in weight])
    for i in range(weight.shape[0]):
        row = even[i] - u[i] * (u @ even)
        change[i] = weight[i].norm() * row / row.norm()
    return change


@pytest.mark.parametrize("axis", ["columns", "rows"])
@given(d=SIZES, d_in=SIZES, seed=SEEDS)
def test_norms_come_back(axis: str, d: int, d_in: int, seed: int) -> None:
    u, weight = direction(d, seed), normal(d, d_in, seed=seed + 1)
    after, dim = norm_restored(u, weight, axis, 1.0), 0 if axis == "columns" else 1
    assert relative(after, one_by_one(u, weight, axis)) < 1e-9
    assert relative(after.norm(dim=dim), weight.norm(dim=dim)) < 1e-9
    single = norm_restored(u.float(), weight.float(), axis, 1.0)
    assert relative(single.norm(dim=dim), weight.norm(dim=dim)) < 1e-6
    assert relative(norm_restored(u, weight, axis, 0.0), weight) < 1e-12
    made = weight + NormPreserving.of(u, weight, axis).weight_update(weight).dense()  # type: ignore
    assert relative(made, after) < 1e-9


@given(SIZES, SIZES, SEEDS)
def test_columns_leave_nothing_and_rows_do(d: int, d_in: int, seed: int) -> None:
    assume(d_in > 1)
    u, weight = direction(d, seed), normal(d, d_in, seed=seed + 1)
    for axis in ("columns", "rows"):
        share = share_left(u, weight, axis)
        measured = (u @ one_by_one(u, weight, axis)).norm() / (u @ weight).norm()
        assert share == pytest.approx(measured.item(), abs=1e-9)
        assert (share < 1e-9) == (axis == "columns")
    assert share_left(u, weight, "rows", 0.0) == pytest.approx(1.0)


def test_a_direction_of_few_coordinates_survives_rows() -> None:
    """Spread over all coordinates 0.2 % stays here, on a single one all of it (only its sign goes)."""
    weight = normal(64, 256)
    assert share_left(unit(torch.ones(64).double()), weight) < 0.1
    few = unit(torch.eye(64).double()[0] + 0.3 * direction(64, 1))
    assert share_left(few, weight) > 0.3
    zero = weight.clone()
    zero[0] = 0.0
    with pytest.raises(NoDirection, match="writes nothing along"):
        share_left(torch.eye(64).double()[0], zero)


def test_nothing_has_no_norm_to_restore() -> None:
    """Zero columns (padding tokens), zero rows, and columns that were the direction itself."""
    u, weight = direction(), normal(D, 5)
    weight[:, 1], weight[:, 3] = 0.0, 2.0 * u
    after = norm_restored(u, weight, "columns", 1.0)
    assert not after[:, [1, 3]].any()
    assert relative(after[:, [0, 2, 4]].norm(dim=0), weight[:, [0, 2, 4]].norm(dim=0)) < 1e-12
    scales = normal(1, 40, seed=2)
    single = norm_restored(u.float(), (u[:, None] * scales).float(), "columns", 1.0)
    assert not single.any()  # rounding leaves residues, which are not scaled up
    weight[2] = 0.0
    rows = norm_restored(u, weight, "rows", 1.0)
    assert not rows[2].any()
    assert rows.isfinite().all()


def test_experts_are_matrices_of_their_own() -> None:
    u, weight = direction(), normal(3, D, 5)
    for axis in ("columns", "rows"):
        apart = torch.stack([norm_restored(u, w, axis, 0.8) for w in weight])
        assert relative(norm_restored(u, weight, axis, 0.8), apart) < 1e-12
        operator = NormPreserving.of(u, weight, axis, 0.8)
        inputs = normal(7, 3, 5, seed=1)
        written = torch.einsum("nef,edf->nd", inputs, weight)
        wanted = torch.einsum("nef,edf->nd", inputs, apart)
        assert relative(operator.act(written, inputs.flatten(1)), wanted) < 1e-9
        update = operator.weight_update(weight)
        assert update is not None
        assert update.axes == "expert out in"
        assert relative(weight + update.dense(), apart) < 1e-9


def test_the_smaller_side_is_the_identity() -> None:
    for shape, rank in (((4, 9), 4), ((9, 4), 4)):
        update = NormPreserving.of(direction(shape[0]), normal(*shape)).weight_update(
            normal(*shape)
        )
        assert update is not None
        assert update.rank == rank


def test_token_ids_are_one_hot_inputs() -> None:
    u, weight, ids = direction(), normal(D, 20), torch.tensor([[3, 0, 3], [7, 19, 1]])
    for axis in ("columns", "rows"):
        operator = NormPreserving.of(u, weight, axis, gain=3.0)
        wanted = 3.0 * norm_restored(u, weight, axis, 1.0).T[ids]
        assert relative(operator.act(3.0 * weight.T[ids], ids), wanted) < 1e-9
        if axis == "columns":
            kept = NormKept(Ablation(u)).act(3.0 * weight.T[ids])
            assert relative(kept, wanted) < 1e-9


def test_norm_preserving_fits_its_own_weight_alone() -> None:
    u, weight = direction(), normal(D, 5)
    operator = NormPreserving.of(u, weight)
    for other in (weight + 0.1 * normal(D, 5, seed=1), normal(D, 6), normal(2, D, 5)):
        with pytest.raises(DeltaError, match="make one for each writer"):
            operator.weight_update(other)
    with pytest.raises(NotExpressible, match="through its input; put it at writers"):
        operator.act(normal(3, D))
    with pytest.raises((ValueError, TypeCheckError), match="'both'"):
        NormPreserving.of(u, weight, "both")  # type: ignore[arg-type]


def test_ranks() -> None:
    weight = normal(D, 5)
    ranks = [op.weight_update(weight).rank for op in expressible(weight, 1.0, 0)]  # type: ignore
    assert ranks == [1, 2, 2, 2, 1, 1, 1, 5, 5, 3, 2]
    assert all(a <= 5 for a, _ in pairwise(ranks))


# --- several operators at one writer -------------------------------------------------------------


@given(SEEDS, STRENGTHS)
def test_a_total_is_the_sum_of_changes_in_any_order(seed: int, strength: float) -> None:
    y, a = normal(4, D, seed=seed), normal(4, 5, seed=seed + 1)
    parts = (
        Ablation(direction(seed=seed), strength),
        LeastDisturbance(direction(seed=seed + 1), normal(5, seed=seed), 0.7),
        Addition(normal(D, seed=seed + 2)),
    )
    total = Total(parts)
    assert relative(total.act(y, a), Total(parts[::-1]).act(y, a)) < 1e-12
    assert relative(total.act(y, a) - y, sum(p.act(y, a) - y for p in parts)) < 1e-9
    assert relative(Total(parts[:1]).act(y), parts[0].act(y)) < 1e-9
    assert total.needs_input
    assert not total.homogeneous
    alone = Total(parts[:1])
    assert not alone.needs_input
    assert alone.homogeneous


def test_a_composition_acts_in_its_order() -> None:
    u, v = direction(seed=1), normal(D, seed=2)
    both = Composed((Addition(v), Ablation(u)))
    y, weight = normal(4, D, seed=3), normal(D, 5)
    assert relative(both.act(y), Ablation(u).act(y + v)) < 1e-12
    left, right, shift = linear_form(both, D)
    assert relative(y + y @ right.T @ left.T + shift, both.act(y)) < 1e-9
    assert relative(both.bias_update(None, weight), Ablation(u).act(v)) < 1e-9
    idle = Composed((LeastDisturbance(u, normal(5), 0.0),))
    assert idle.weight_update(weight) is None
    assert idle.bias_update(None, weight) is None
    with pytest.raises(NotExpressible, match="no weight form"):
        Composed((Ablation(u), Clamp(u, -1.0, 1.0))).weight_update(weight)
    with pytest.raises(ValueError, match="at least one"):
        Composed(())


def test_a_total_has_weights_where_all_parts_have_them() -> None:
    weight = normal(D, 5)
    idle = LeastDisturbance(direction(), normal(5), 0.0)
    assert Total((idle, idle)).weight_update(weight) is None
    assert Total((idle, idle)).bias_update(None, weight) is None
    with pytest.raises(NotExpressible):
        Total((Ablation(direction()), Clamp(direction(), -1.0, 1.0))).weight_update(weight)
    with pytest.raises(ValueError, match="at least one"):
        Total(())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_coefficient_per_row_moves_as_far_as_one_for_all_in_half_precision(
    dtype: torch.dtype,
) -> None:
    """A small vector on a large stream: the difference of two rounded streams would lose most of it."""
    stream = (100 * torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0))).to(dtype)
    vector = random_vector(4096, 1) / 64
    graded = Graded(Addition(vector, 1.0), torch.tensor([8.0]))
    once = Addition(vector, 8.0).act(stream)
    moved = [((out - stream).float() @ vector).item() for out in (graded.act(stream), once)]
    assert moved[0] == pytest.approx(moved[1], rel=0.05)
