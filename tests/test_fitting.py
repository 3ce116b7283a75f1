"""Directions and edits fitted on activations: planted truth is found, the promised shift is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from interp.backends.opening import wrap
from interp.edits import applied, canonical, to_delta, writer_unit
from interp.errors import SiteError
from interp.fitting import Probes, directions, least_disturbance
from interp.hooking import hooked
from interp.lm import LM
from interp.maths import best_ridge, difference_of_means, mean, unit
from interp.models import tiny_model
from interp.models.anatomy import BoundWriter
from interp.recipes import AUTO, DirectionRecipe, LeastDisturbanceEdit
from interp.samples import DECISION, OPENER, RESPONSE, Capture, Samples
from interp.sites import Site
from interp.types import Direction, TokenBatch

D_MODEL = 32


def recipe(**settings: Any) -> LeastDisturbanceEdit:
    """A recipe without open settings."""
    if settings.get("opener_strength") is not None:
        settings["after_opener"] = "I'm"
    closed = {"strength": 0.8, "first_block": 0, "block": 1, "attention": 1.0, "ridge": 0.02}
    return LeastDisturbanceEdit(**(closed | settings))


def site_of(writer: BoundWriter) -> Site:
    assert writer.block is not None
    return Site.writer_in(writer.block, writer.name)


def two(pos: torch.Tensor, neg: torch.Tensor) -> Samples:
    """Both classes at the output of block 0."""
    return Samples.of_classes({Site.resid_post(0): pos}, {Site.resid_post(0): neg})


def planted(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two classes of activations that differ by a known direction, plus a shared offset."""
    generator = torch.Generator().manual_seed(seed)
    truth = unit(torch.randn(D_MODEL, generator=generator))
    noise = torch.randn(2, 400, D_MODEL, generator=generator)
    offset = 7 * torch.randn(D_MODEL, generator=generator)
    return truth, noise[0] + 3 * truth + offset, noise[1] + offset


def test_planted_direction_is_found() -> None:
    truth, pos, neg = planted()
    found = directions(two(pos, neg), DirectionRecipe(orthogonal_to_comply=False))[0]
    assert found.vector @ truth > 0.98
    assert found.norm == pytest.approx(difference_of_means(pos, neg).norm().item())


def test_orthogonal_to_the_comply_mean() -> None:
    _, pos, neg = planted()
    found = directions(two(pos, neg))[0]
    assert abs(found.vector.double() @ unit(mean(neg))) < 1e-6


def test_one_wild_coordinate_is_winsorised_away() -> None:
    truth, pos, neg = planted()
    pos[0, 5] = 1e4
    plain = DirectionRecipe(orthogonal_to_comply=False)
    robust = DirectionRecipe(orthogonal_to_comply=False, winsor=0.9)
    assert directions(two(pos, neg), plain)[0].vector @ truth < 0.5
    assert directions(two(pos, neg), robust)[0].vector @ truth > 0.8


def test_equal_classes_have_no_direction() -> None:
    acts = torch.randn(4, D_MODEL)
    with pytest.raises(ValueError, match="do not differ"):
        directions(two(acts, acts.clone()))


def token_batches(seed: int = 0) -> tuple[TokenBatch, TokenBatch]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (2, 12, 9), generator=generator)
    ids[0, :, -2] = 5  # what makes a request
    ids[1, :, -2] = 6
    ids[:, :, -1] = 7  # the shared end of a template
    mask = torch.ones_like(ids[0])
    return TokenBatch(ids[0], mask), TokenBatch(ids[1], mask)


Fit = tuple[LM, Probes, dict[str, Direction], TokenBatch]


def fitted(model_type: str, opener: bool = False, responses: bool = False) -> Fit:
    """A tiny model, probes, the direction of block 1 at every place, and positive prompts."""
    lm = LM(wrap(tiny_model(model_type)), batch_size=5)
    pos, neg = token_batches()
    capture = Capture(lm, (*lm.resid_post, *lm.writer_inputs))
    parts = [capture(pos, DECISION, True), capture(neg, DECISION, False)]
    if opener:
        said = torch.full((len(pos), 1), 8)
        pos, neg = (TokenBatch(b.extended(said).ids, b.extended(said).mask) for b in (pos, neg))
        parts += [capture(pos, OPENER, True), capture(neg, OPENER, False)]
    if responses:
        new = lm.backend.generate(neg, tokens=3)
        longer = TokenBatch(
            torch.cat([neg.ids, new], 1), torch.ones(len(neg), neg.ids.shape[1] + 3).long()
        )
        parts.append(capture(longer, RESPONSE, False, at=(-3, -2, -1)))
    samples = Samples(tuple(parts))
    places = (DECISION, OPENER) if opener else (DECISION,)
    return lm, Probes(samples), {p: directions(samples, None, p)[1] for p in places}, pos


FAMILIES = ("llama", "gpt2", "gemma3_text", "qwen3_moe", "gpt_oss", "jamba", "mamba2", "falcon_h1")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_least_disturbance_moves_what_it_promises(model_type: str) -> None:
    """At every writer, the class shift along u falls to (1 − α) of itself on the fit prompts."""
    lm, probes, along, _ = fitted(model_type)
    edit = least_disturbance(lm, probes, along, recipe(strength=0.8))
    moved = 0
    for writer in lm.anatomy.block_writers:
        operator = edit.writers[writer.weight]
        weight = canonical(lm.hf.get_parameter(writer.weight), writer.axes).detach()
        flat = weight.transpose(0, 1).flatten(1) if writer.fused else weight
        gaps = []
        for act in (lambda y, a: y, operator.act):
            inputs = [probes.samples.rows(site_of(writer), positive) for positive in (True, False)]
            written = [act(rows @ flat.T, rows) for rows in inputs]
            gaps.append((difference_of_means(*written).float() @ operator.unit).item())
        assert gaps[1] == pytest.approx((1 - 0.8) * gaps[0], abs=1e-5)
        moved += abs(gaps[0]) > 1e-3
    assert moved >= len(lm.anatomy.block_writers) // 2


@pytest.mark.parametrize("model_type", FAMILIES)
def test_least_disturbance_hook_is_its_weight_edit(model_type: str) -> None:
    lm, probes, along, batch = fitted(model_type)
    edit = least_disturbance(lm, probes, along, recipe())
    delta = to_delta(lm.hf, lm.anatomy, edit)
    base = lm.backend.logits(batch)
    with hooked(lm.hf, lm.anatomy, edit):
        as_hook = lm.backend.logits(batch)
    with applied(lm.hf, lm.anatomy, delta):
        as_weights = lm.backend.logits(batch)
    assert delta.rank == 1
    effect = (as_weights - base).abs().max()
    assert effect > 1e-3
    assert (as_hook - as_weights).abs().max() < 1e-4 * max(effect.item(), 1.0)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_two_places_are_moved_each_by_its_own_share(model_type: str) -> None:
    """At every writer, ``ΔW Δ_j = −α_j (u_j·WΔ_j) u_j`` for both shifts at once, as hook and as weights."""
    lm, probes, along, after = fitted(model_type, opener=True)
    shares = {DECISION: 0.6, OPENER: 1.5}
    edit = least_disturbance(lm, probes, along, recipe(strength=0.6, opener_strength=1.5))
    delta = to_delta(lm.hf, lm.anatomy, edit)
    assert delta.rank == 2
    moved = 0
    for writer in lm.anatomy.block_writers:
        weight = canonical(lm.hf.get_parameter(writer.weight), writer.axes).detach()
        update = delta.updates[writer.weight].dense()
        flat = [w.transpose(0, 1).flatten(1) if writer.fused else w for w in (weight, update)]
        for place, share in shares.items():
            shift = probes.shift(site_of(writer), place)
            u = writer_unit(lm.hf, writer, along[place].vector)
            before = u.double() @ flat[0].double() @ shift
            wanted = -share * before * u.double()
            assert (flat[1].double() @ shift - wanted).abs().max() < 1e-4
            moved += abs(before) > 1e-3
    assert moved > len(lm.anatomy.block_writers) // 2
    with hooked(lm.hf, lm.anatomy, edit):
        as_hook = lm.backend.logits(after)
    with applied(lm.hf, lm.anatomy, delta):
        as_weights = lm.backend.logits(after)
    effect = (as_weights - lm.backend.logits(after)).abs().max().item()
    assert (as_hook - as_weights).abs().max() < 1e-4 * max(effect, 1.0)


def test_a_place_without_a_difference_is_left_alone() -> None:
    lm, probes, along, _ = fitted("llama", opener=True)
    parts = probes.samples.parts
    same = [replace(p, rows=parts[3].rows) if p.place == OPENER else p for p in parts]
    flat = Probes(Samples(tuple(same)))
    edit = least_disturbance(lm, flat, along, recipe(opener_strength=1.0))
    assert all(operator.parts[1].amount == 0.0 for operator in edit.writers.values())


@pytest.mark.parametrize(
    ("place", "setting", "fixed"),
    [
        (RESPONSE, "response_weight", {}),
        (OPENER, "opener_weight", {"opener_strength": 1.0}),
    ],
)
def test_what_counts_more_is_disturbed_less(
    place: str, setting: str, fixed: dict[str, float]
) -> None:
    lm, probes, *_ = fitted("llama", opener=True, responses=True)
    for writer in lm.anatomy.block_writers:
        site, moved = site_of(writer), []
        rows = probes.samples.rows(site, False, place).double()
        for weight in (0.0, 0.3, 3.0):
            probe = probes.of(site, recipe(ridge=0.05, **{setting: weight}, **fixed))[0]
            moved.append((rows @ probe).square().mean())
        assert moved[0] > moved[1] > moved[2]


def test_without_a_ridge_each_writer_takes_the_one_that_holds_out_best() -> None:
    lm, probes, *_ = fitted("llama")
    for writer in lm.anatomy.block_writers:
        site = site_of(writer)
        ridge = best_ridge(probes.shift(site), probes.samples.rows(site, False))
        assert torch.equal(
            probes.of(site, recipe(ridge=AUTO)), probes.of(site, recipe(ridge=ridge))
        )


def test_missing_rows_are_an_error() -> None:
    lm, probes, along, _ = fitted("llama")
    with pytest.raises(SiteError, match="no decision rows"):
        least_disturbance(lm, Probes(Samples()), along, recipe())
    with pytest.raises(SiteError, match="no opener rows"):
        least_disturbance(lm, probes, along, recipe(opener_strength=1.0))
