"""Directions and probes: properties over random inputs, in float64 references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.errors import NoDirection
from interp.maths import (
    Ridged,
    best_ridge,
    difference_of_means,
    least_disturbance_probe,
    least_disturbance_probes,
    left_out_disturbance,
    mean,
    orthogonalise,
    through_gain,
    unit,
    weighted,
    winsorise,
)

SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.integers(1, 24)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> bool:
    gap = (actual.double() - expected.double()).norm()
    return bool(gap <= tolerance * (1.0 + expected.double().norm()))


# --- directions ----------------------------------------------------------------------------------


@given(SIZES, SEEDS, st.floats(1e-6, 1e6))
def test_unit_has_norm_one_and_forgets_scale(d: int, seed: int, scale: float) -> None:
    vector = normal(d, seed=seed)
    direction = unit(vector)
    assert direction.norm().item() == pytest.approx(1.0)
    assert close(unit(scale * vector), direction)
    assert close(direction * vector.norm(), vector)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.tensor([1.0, float("nan"), 0.0])])
def test_unit_refuses_what_has_no_direction(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="no direction; at the last template token"):
        unit(bad)
    with pytest.raises(ValueError, match="no direction"):
        unit(bad / 0.0)


@given(st.integers(1, 40), st.integers(1, 40), SIZES, SEEDS, DTYPES)
def test_difference_of_means_sums_in_double(
    n: int, m: int, d: int, seed: int, dtype: torch.dtype
) -> None:
    """An offset of 300 leaves bf16 two digits after the point; a bf16 sum would lose them."""
    pos, neg = (normal(k, d, seed=seed + k, dtype=dtype) + 300 for k in (n, m))
    expected = pos.double().sum(0) / n - neg.double().sum(0) / m
    found = difference_of_means(pos, neg)
    assert found.dtype == torch.float64
    assert close(found, expected, 1e-12)
    assert close(found, -difference_of_means(neg, pos), 1e-12)


def test_difference_of_means_refuses_an_empty_class() -> None:
    for pos, neg in ((2, 0), (0, 2)):
        with pytest.raises(ValueError, match="at least one row in each class"):
            difference_of_means(torch.ones(pos, 3), torch.ones(neg, 3))


@given(SIZES, SIZES, SEEDS)
def test_mean_is_the_mean(n: int, d: int, seed: int) -> None:
    rows = normal(n, d, seed=seed)
    assert close(mean(rows) * n, rows.sum(0))


@given(st.integers(3, 24), st.integers(1, 3), SEEDS)
def test_orthogonalise_is_the_projection_off_a_span(d: int, k: int, seed: int) -> None:
    vector, against = normal(d, seed=seed), normal(k, d, seed=seed + 1)
    rest = orthogonalise(vector, *against)
    assert (against @ rest).abs().max() < 1e-9 * (1 + against.norm())
    assert close(orthogonalise(rest, *against), rest)
    assert close(orthogonalise(vector, *reversed(list(against))), rest)
    # What was removed lies in the span: the smallest change that does it.
    removed = vector - rest
    solution = torch.linalg.lstsq(against.T, removed[:, None]).solution
    assert close(against.T @ solution, removed[:, None], 1e-7)


@given(SIZES, SEEDS, st.floats(1e-3, 1e3))
def test_orthogonalise_does_not_care_about_length(d: int, seed: int, scale: float) -> None:
    vector, other = normal(d, seed=seed), normal(d, seed=seed + 1)
    assert close(orthogonalise(vector, scale * other), orthogonalise(vector, other))


@given(SIZES, SIZES, SEEDS, st.floats(0.05, 1.0))
def test_winsorise_clips_each_row_to_its_own_quantile(
    n: int, d: int, seed: int, quantile: float
) -> None:
    rows = normal(n, d, seed=seed)
    clipped = winsorise(rows, quantile)
    limit = torch.quantile(rows.abs(), quantile, dim=-1, keepdim=True)
    assert (clipped.abs() <= limit + 1e-12).all()
    inside = rows.abs() <= limit
    assert torch.equal(clipped[inside], rows[inside])
    assert torch.equal(clipped.sign(), rows.sign())
    assert torch.equal(winsorise(rows, 1.0), rows)
    assert torch.equal(winsorise(rows[:1], quantile), clipped[:1])


@pytest.mark.parametrize("quantile", [0.0, -0.1, 1.1])
def test_winsorise_refuses_quantiles_outside(quantile: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        winsorise(torch.ones(1, 2), quantile)


@given(st.integers(2, 24), SEEDS, st.sampled_from([0.0, 1.0]))
def test_through_gain_leaves_nothing_after_the_norm(d: int, seed: int, offset: float) -> None:
    """Ablate before the norm along the seen-through direction: its output has nothing along d."""
    direction, gain = unit(normal(d, seed=seed)), normal(d, seed=seed + 1)
    before = normal(5, d, seed=seed + 2)
    seen = through_gain(direction, gain, offset)
    ablated = before - (before @ seen)[:, None] * seen
    rms = ablated.square().mean(-1, keepdim=True).sqrt()
    after = (offset + gain) * ablated / rms
    assert ((after @ direction).abs() <= 1e-9 * (1 + after.norm(dim=-1))).all()
    assert through_gain(direction, None, offset) is direction


# --- the least-disturbance probe -----------------------------------------------------------------


def covariance(comply: Tensor, ridge: float) -> tuple[Tensor, float]:
    """``Σ = E[aaᵀ] + εI`` and ε, formed as the definition says."""
    n, d = comply.shape
    second = comply.T @ comply / n
    eps = ridge * second.diagonal().mean().item()
    return second + eps * torch.eye(d, dtype=comply.dtype), eps


@given(st.integers(1, 30), st.integers(1, 30), SEEDS, st.floats(1e-3, 10.0))
def test_probe_is_its_definition_in_both_forms(n: int, d: int, seed: int, ridge: float) -> None:
    """Fewer rows than columns go through the dual: the same probe."""
    shift, comply = normal(d, seed=seed), normal(n, d, seed=seed + 1)
    sigma, _ = covariance(comply, ridge)
    solved = torch.linalg.solve(sigma, shift)
    probe = least_disturbance_probe(shift, comply, ridge)
    assert close(probe, solved / (shift @ solved), 1e-8)
    assert (probe @ shift).item() == pytest.approx(1.0)


@given(st.integers(1, 30), st.integers(2, 30), SEEDS, st.floats(1e-3, 10.0))
def test_no_other_probe_disturbs_less(n: int, d: int, seed: int, ridge: float) -> None:
    """Among all q with q·Δ = 1 it minimises ``E[(q·a)²] + ε‖q‖²``."""
    shift, comply = normal(d, seed=seed), normal(n, d, seed=seed + 1)
    sigma, _ = covariance(comply, ridge)
    probe = least_disturbance_probe(shift, comply, ridge)
    best = (probe @ sigma @ probe).item()
    for k in range(8):
        step = orthogonalise(normal(d, seed=seed + 2 + k), shift)
        for other in (probe + step, probe + 1e-3 * step):
            assert (other @ shift).item() == pytest.approx(1.0)
            assert (other @ sigma @ other).item() >= best * (1 - 1e-9)


@given(st.integers(1, 30), st.integers(1, 30), SEEDS)
def test_a_large_ridge_gives_the_difference_itself(n: int, d: int, seed: int) -> None:
    """ridge → ∞: Σ is isotropic and ``q = Δ / ‖Δ‖²``."""
    shift, comply = normal(d, seed=seed), normal(n, d, seed=seed + 1)
    probe = least_disturbance_probe(shift, comply, 1e9)
    assert close(probe, shift / shift.square().sum(), 1e-6)


@given(SIZES, SIZES, SEEDS, st.floats(0.1, 10.0))
def test_probe_scales_with_the_inputs(n: int, d: int, seed: int, scale: float) -> None:
    """The ridge is relative: other units of a give the same edit."""
    shift, comply = normal(d, seed=seed), normal(n, d, seed=seed + 1)
    here = least_disturbance_probe(shift, comply, 0.05)
    there = least_disturbance_probe(scale * shift, scale * comply, 0.05)
    assert close(scale * there, here, 1e-8)


@given(st.integers(1, 30), st.integers(3, 30), SEEDS, st.floats(1e-3, 10.0))
def test_probes_of_several_shifts_are_their_definition(
    n: int, d: int, seed: int, ridge: float
) -> None:
    """``Q = (DᵀΣ⁻¹D)⁻¹DᵀΣ⁻¹``: each reads its own shift as 1 and the others as 0."""
    shifts, comply = normal(2, d, seed=seed), normal(n, d, seed=seed + 1)
    sigma, _ = covariance(comply, ridge)
    solved = torch.linalg.solve(sigma, shifts.T)
    probes = least_disturbance_probes(shifts, comply, ridge)
    assert close(probes, torch.linalg.solve(shifts @ solved, solved.T), 1e-6)
    assert close(probes @ shifts.T, torch.eye(2, dtype=torch.float64), 1e-6)


@given(st.integers(1, 30), st.integers(3, 30), SEEDS, st.floats(1e-3, 10.0))
def test_no_other_edit_with_both_shifts_disturbs_less(
    n: int, d: int, seed: int, ridge: float
) -> None:
    """The whole matrix: of all ΔW with ``ΔWΔ_j = t_j`` it has the least ``tr(ΔW Σ ΔWᵀ)``."""
    shifts, comply = normal(2, d, seed=seed), normal(n, d, seed=seed + 1)
    wanted = normal(4, 2, seed=seed + 2)
    sigma, _ = covariance(comply, ridge)
    edit = wanted @ least_disturbance_probes(shifts, comply, ridge)
    best = (edit @ sigma @ edit.T).trace().item()
    for k in range(6):
        rows = [orthogonalise(normal(d, seed=seed + 3 + 9 * k + r), *shifts) for r in range(4)]
        for other in (edit + torch.stack(rows), edit + 1e-3 * torch.stack(rows)):
            assert close(other @ shifts.T, wanted, 1e-6)
            assert (other @ sigma @ other.T).trace().item() >= best * (1 - 1e-8)


@given(st.integers(1, 30), SIZES, SEEDS)
def test_one_shift_among_several_is_the_single_probe(n: int, d: int, seed: int) -> None:
    shift, comply = normal(d, seed=seed), normal(n, d, seed=seed + 1)
    (alone,) = least_disturbance_probes(shift[None], comply, 0.05)
    assert close(alone, least_disturbance_probe(shift, comply, 0.05), 1e-8)
    metric = Ridged.of(comply, 0.05)
    assert close(least_disturbance_probe(shift, metric), alone, 1e-8)


def test_dependent_shifts_cannot_have_effects_of_their_own() -> None:
    shift, comply = normal(6, seed=0), normal(9, 6, seed=1)
    for second in (2 * shift, 0 * shift):
        with pytest.raises(NoDirection):
            least_disturbance_probes(torch.stack([shift, second]), comply, 0.05)
    with pytest.raises(ValueError, match="ridge"):
        least_disturbance_probes(shift[None], comply, 0.0)
    nothing = least_disturbance_probes(shift[None], 0 * comply, 0.05)
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_probe_of_half_precision_rows_is_computed_in_double() -> None:
    shift, comply = normal(12, seed=0).bfloat16(), normal(7, 12, seed=1).bfloat16()
    probe = least_disturbance_probe(shift, comply, 0.05)
    assert probe.dtype == torch.float64
    assert close(probe, least_disturbance_probe(shift.double(), comply.double(), 0.05), 1e-12)


def test_no_difference_gives_no_probe() -> None:
    comply = normal(5, 4, seed=0)
    assert not least_disturbance_probe(torch.zeros(4), comply, 0.05).any()
    assert not least_disturbance_probe(normal(4, seed=1), torch.zeros(5, 4), 0.05).any()


@pytest.mark.parametrize("ridge", [0.0, -1.0])
def test_probe_refuses_a_ridge_that_is_not_positive(ridge: float) -> None:
    with pytest.raises(ValueError, match="ridge must be positive"):
        least_disturbance_probe(torch.ones(2), torch.ones(3, 2), ridge)


@given(st.lists(st.tuples(SIZES, st.floats(0.01, 10)), min_size=1, max_size=4), SEEDS)
def test_weighted_rows_have_the_weighted_second_moment(
    parts: list[tuple[int, float]], seed: int
) -> None:
    samples = [(normal(n, 3, seed=seed + k), weight) for k, (n, weight) in enumerate(parts)]
    share = sum(weight for _, weight in samples)
    expected = sum(weight / share * (rows.T @ rows) / len(rows) for rows, weight in samples)
    found = weighted(samples)
    assert len(found) == sum(n for n, _ in parts)
    assert close(found.T @ found / len(found), expected)


def test_weights_of_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="positive weight"):
        weighted([(torch.ones(2, 3), 0.0), (torch.ones(0, 3), 1.0)])


@given(st.integers(2, 10), st.integers(1, 14), SEEDS, st.floats(0.01, 2.0))
def test_the_edit_disturbs_least_of_all_with_the_same_shift(
    d_in: int, n: int, seed: int, ridge: float
) -> None:
    """The whole matrix, not the probe alone: ``min tr(ΔW Σ ΔWᵀ)`` subject to ``ΔW Δ = −α s u``."""
    weight, shift, comply = (
        normal(5, d_in, seed=seed),
        normal(d_in, seed=seed + 1),
        normal(n, d_in, seed=seed + 2),
    )
    u = unit(normal(5, seed=seed + 3))
    sigma = comply.T @ comply / n
    sigma += ridge * sigma.diagonal().mean() * torch.eye(d_in, dtype=torch.float64)
    edit = -(u @ weight @ shift) * torch.outer(u, least_disturbance_probe(shift, comply, ridge))

    def disturbance(change: Tensor) -> float:
        return torch.trace(change @ sigma @ change.T).item()

    assert close(edit @ shift, -(u @ weight @ shift) * u)
    other = normal(5, d_in, seed=seed + 4)
    other -= torch.outer(other @ shift, shift) / (shift @ shift)  # the shift stays as it is
    for size in (1e-3, 1.0):
        assert disturbance(edit + size * other) >= disturbance(edit) * (1 - 1e-9)
    # Directional ablation has the same effect on the mean shift along u, and never disturbs less.
    ablation = -torch.outer(u, u @ weight)
    assert close(ablation @ shift, edit @ shift)
    assert disturbance(ablation) >= disturbance(edit) * (1 - 1e-9)


@given(st.integers(2, 12), st.integers(2, 16), SEEDS, st.floats(0.01, 2.0))
def test_leaving_one_out_in_closed_form_is_leaving_one_out(
    n: int, d: int, seed: int, ridge: float
) -> None:
    shift, comply = normal(d, seed=seed), normal(n, d, seed=seed + 1)
    eps = ridge * comply.square().sum() / (n * d)
    moved = []
    for i in range(n):
        others = torch.cat([comply[:i], comply[i + 1 :]])
        sigma = others.T @ others / (n - 1) + eps * torch.eye(d, dtype=torch.float64)
        solved = torch.linalg.solve(sigma, shift)
        moved.append((comply[i] @ solved / (shift @ solved)).square())
    (found,) = left_out_disturbance(shift, comply, (ridge,))
    assert found.item() == pytest.approx(torch.stack(moved).mean().item(), rel=1e-6)


def test_the_best_ridge_is_larger_for_fewer_rows() -> None:
    """Few rows say little of Σ, so the ridge that holds out best leans on it less."""
    chosen = []
    for n in (10, 400):
        picks = []
        for seed in range(10):
            scale = torch.linspace(0.2, 2.0, 30, dtype=torch.float64)
            rows = normal(n, 30, seed=seed) * scale
            picks.append(best_ridge(normal(30, seed=seed + 100), rows))
        chosen.append(sum(picks) / len(picks))
    assert chosen[0] > 2 * chosen[1]


def test_leaving_one_out_of_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least two rows"):
        left_out_disturbance(torch.ones(2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="ridges above 0"):
        left_out_disturbance(torch.ones(2), torch.ones(3, 2), (0.0,))
