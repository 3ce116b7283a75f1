"""Directions and edits fitted on activations: planted truth is found, the promised shift is made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interp.backends.hooks import writer_sites
from interp.backends.opening import wrap
from interp.edits import applied, canonical, to_delta, writer_unit
from interp.errors import SiteError
from interp.fitting import (
    DirectionRecipe,
    LeastDisturbanceRecipe,
    WriterStatistics,
    directions,
    least_disturbance,
    response_statistics,
)
from interp.hooking import hooked
from interp.lm import LM
from interp.maths import best_ridge, difference_of_means, mean, rows_of, unit
from interp.models import tiny_model
from interp.sites import Site
from interp.types import TokenBatch

recipe = LeastDisturbanceRecipe
D_MODEL = 32


def planted(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two classes of activations that differ by a known direction, plus a shared offset."""
    generator = torch.Generator().manual_seed(seed)
    truth = unit(torch.randn(D_MODEL, generator=generator))
    noise = torch.randn(2, 400, D_MODEL, generator=generator)
    offset = 7 * torch.randn(D_MODEL, generator=generator)
    return truth, noise[0] + 3 * truth + offset, noise[1] + offset


def test_planted_direction_is_found() -> None:
    truth, pos, neg = planted()
    site = Site.resid_post(0)
    found = directions({site: pos}, {site: neg}, DirectionRecipe(orthogonal_to_comply=False))[0]
    assert found.vector @ truth > 0.98
    assert found.norm == pytest.approx(difference_of_means(pos, neg).norm().item())


def test_orthogonal_to_the_comply_mean() -> None:
    _, pos, neg = planted()
    site = Site.resid_post(0)
    found = directions({site: pos}, {site: neg})[0]
    assert abs(found.vector.double() @ unit(mean(neg))) < 1e-6


def test_one_wild_coordinate_is_winsorised_away() -> None:
    truth, pos, neg = planted()
    pos[0, 5] = 1e4
    site = Site.resid_post(0)
    plain = DirectionRecipe(orthogonal_to_comply=False)
    robust = DirectionRecipe(orthogonal_to_comply=False, winsor=0.9)
    assert directions({site: pos}, {site: neg}, plain)[0].vector @ truth < 0.5
    assert directions({site: pos}, {site: neg}, robust)[0].vector @ truth > 0.8


def test_equal_classes_have_no_direction() -> None:
    acts = torch.randn(4, D_MODEL)
    site = Site.resid_post(0)
    with pytest.raises(ValueError, match="do not differ"):
        directions({site: acts}, {site: acts.clone()})


def token_batches(seed: int = 0) -> tuple[TokenBatch, TokenBatch]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (2, 12, 9), generator=generator)
    ids[0, :, -2] = 5  # what makes a request
    ids[1, :, -2] = 6
    ids[:, :, -1] = 7  # the shared end of a template
    mask = torch.ones_like(ids[0])
    return TokenBatch(ids[0], mask), TokenBatch(ids[1], mask)


def fitted(model_type: str, response_tokens: int = 0):
    lm = LM(wrap(tiny_model(model_type)))
    refuse, comply = token_batches()
    writers = writer_sites(lm.anatomy.block_writers)
    blocks = [Site.resid_post(i) for i in range(lm.n_blocks)]
    read = [lm.using(batch_size=5).activations(b, [*blocks, *writers]) for b in (refuse, comply)]
    spoken = response_statistics(lm, comply, writers, response_tokens) if response_tokens else {}
    stats = WriterStatistics(*({w.name: r[w] for w in writers} for r in read), {}, spoken)
    found = directions({s: read[0][s] for s in blocks}, {s: read[1][s] for s in blocks})
    return lm, stats, found, refuse, comply


FAMILIES = ("llama", "gpt2", "gemma3_text", "qwen3_moe", "gpt_oss", "jamba", "mamba2", "falcon_h1")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_least_disturbance_moves_what_it_promises(model_type: str) -> None:
    """At every writer, the class shift along u falls to (1 − α) of itself on the fit prompts."""
    lm, stats, found, *_ = fitted(model_type)
    alpha = 0.8
    edit = least_disturbance(lm, stats, found[1], recipe(alpha=alpha))
    moved = 0
    for writer in lm.anatomy.block_writers:
        operator = edit.writers[writer.weight]
        weight = canonical(lm.hf.get_parameter(writer.weight), writer.axes).detach()
        flat = weight.transpose(0, 1).flatten(1) if writer.fused else weight
        gaps = []
        for act in (lambda y, a: y, operator.act):
            inputs = [side[writer.name] for side in (stats.refuse, stats.comply)]
            written = [act(rows @ flat.T, rows) for rows in inputs]
            gaps.append((difference_of_means(*written).float() @ operator.unit).item())
        assert gaps[1] == pytest.approx((1 - alpha) * gaps[0], abs=1e-5)
        moved += abs(gaps[0]) > 1e-3
    assert moved >= len(lm.anatomy.block_writers) // 2


@pytest.mark.parametrize("model_type", FAMILIES)
def test_least_disturbance_hook_is_its_weight_edit(model_type: str) -> None:
    lm, stats, found, refuse, _ = fitted(model_type)
    edit = least_disturbance(lm, stats, found[1])
    delta = to_delta(lm.hf, lm.anatomy, edit)
    base = lm.backend.logits(refuse)
    with hooked(lm.hf, lm.anatomy, edit):
        as_hook = lm.backend.logits(refuse)
    with applied(lm.hf, lm.anatomy, delta):
        as_weights = lm.backend.logits(refuse)
    assert delta.rank == 1
    effect = (as_weights - base).abs().max()
    assert effect > 1e-3
    assert (as_hook - as_weights).abs().max() < 1e-4 * max(effect.item(), 1.0)


def opened(model_type: str):
    """The same, read once more after an opener that both classes have been given."""
    lm, stats, found, refuse, comply = fitted(model_type)
    said = torch.full((len(refuse), 1), 8)
    writers = writer_sites(lm.anatomy.block_writers)
    blocks = [Site.resid_post(i) for i in range(lm.n_blocks)]
    read = [lm.activations(b.extended(said), [*blocks, *writers], at=0) for b in (refuse, comply)]
    after = WriterStatistics(*({w.name: r[w] for w in writers} for r in read))
    then = directions(*({s: r[s] for s in blocks} for r in read))
    return lm, replace(stats, opened=after), found[1], then[1], refuse.extended(said)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_two_places_are_moved_each_by_its_own_share(model_type: str) -> None:
    """At every writer, ``ΔW Δ_j = −α_j (u_j·WΔ_j) u_j`` for both shifts at once, as hook and as weights."""
    lm, stats, first, second, after = opened(model_type)
    asked = recipe(alpha=0.6, opened=1.5)
    edit = least_disturbance(lm, stats, first, asked, second)
    delta = to_delta(lm.hf, lm.anatomy, edit)
    assert delta.rank == 2
    moved = 0
    for writer in lm.anatomy.block_writers:
        shifts = [s.shift(writer.name) for s in (stats, stats.opened)]
        weight = canonical(lm.hf.get_parameter(writer.weight), writer.axes).detach()
        update = delta.updates[writer.weight].dense()
        flat = [w.transpose(0, 1).flatten(1) if writer.fused else w for w in (weight, update)]
        for shift, direction, share in zip(shifts, (first, second), (0.6, 1.5), strict=True):
            u = writer_unit(lm.hf, writer, direction.vector)
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
    lm, stats, first, second, _ = opened("llama")
    same = {name: rows.clone() for name, rows in stats.opened.comply.items()}
    flat = replace(stats, opened=WriterStatistics(same, stats.opened.comply))
    asked = recipe(opened=1.0)
    edit = least_disturbance(lm, flat, first, asked, second)
    assert all(operator.parts[1].amount == 0.0 for operator in edit.writers.values())
    name = lm.anatomy.block_writers[0].name
    assert torch.equal(stats.refusing(stats.refuse, same).probe(name, recipe()),
                       stats.probe(name, recipe()))  # fmt: skip


def test_what_was_not_read_after_an_opener_cannot_be_moved_there() -> None:
    lm, stats, found, *_ = fitted("llama")
    with pytest.raises(SiteError, match="opener"):
        least_disturbance(lm, stats, found[1], None, found[1])


def test_response_tokens_join_the_statistics() -> None:
    lm, stats, _, _, comply = fitted("llama", response_tokens=3)
    name = lm.anatomy.block_writers[0].name
    assert stats.spoken[name].shape[0] == 3 * len(comply)
    counted, not_counted = (recipe(ridge=0.05, spoken_weight=w) for w in (0.3, 0.0))
    without = WriterStatistics(stats.refuse, stats.comply).probe(name, counted)
    assert not torch.allclose(stats.probe(name, counted), without)
    torch.testing.assert_close(stats.probe(name, not_counted), without)


@pytest.mark.parametrize("part", ["spoken", "prose"])
def test_what_counts_more_is_disturbed_less(part: str) -> None:
    lm, stats, *_ = fitted("llama", response_tokens=3)
    rows = stats.spoken
    stats = WriterStatistics(stats.refuse, stats.comply, {}, **{part: rows})
    for writer in lm.anatomy.block_writers:
        moved = []
        for weight in (0.0, 0.3, 3.0):
            probe = stats.probe(writer.name, recipe(ridge=0.05, **{f"{part}_weight": weight}))
            moved.append((rows[writer.name].double() @ probe).square().mean())
        assert moved[0] > moved[1] > moved[2]


def test_answers_are_disturbed_less_after_the_opener_when_they_count_more() -> None:
    lm, stats, *_ = opened("llama")
    for writer in lm.anatomy.block_writers:
        rows, moved = stats.opened.comply[writer.name].double(), []
        for weight in (0.0, 0.3, 3.0):
            first, _ = stats.probes(writer.name, recipe(ridge=0.05, opened_weight=weight))
            moved.append((rows @ first).square().mean())
        assert moved[0] > moved[1] > moved[2]


def test_a_second_moment_takes_part_as_the_rows_that_it_was_made_of() -> None:
    lm, stats, *_ = fitted("llama", response_tokens=3)
    moments = {
        name: rows_of(rows.double().T @ rows.double() / len(rows))
        for name, rows in stats.spoken.items()
    }
    as_rows = WriterStatistics(stats.refuse, stats.comply, {}, {}, None, stats.spoken)
    as_moments = WriterStatistics(stats.refuse, stats.comply, {}, {}, None, moments)
    for writer in lm.anatomy.block_writers:
        # Shares of the same mean diagonal: ridges agree where rows of unlike number do.
        torch.testing.assert_close(
            as_moments.probe(writer.name, recipe(ridge=0.05)),
            as_rows.probe(writer.name, recipe(ridge=0.05)),
            rtol=1e-4, atol=1e-7,
        )  # fmt: skip


def test_without_a_ridge_each_writer_takes_the_one_that_holds_out_best() -> None:
    lm, stats, *_ = fitted("llama")
    for writer in lm.anatomy.block_writers:
        ridge = best_ridge(stats.shift(writer.name), stats.decisions(writer.name))
        left_out, named = (recipe(ridge=r, spoken_weight=0.1) for r in (None, ridge))
        assert torch.equal(stats.probe(writer.name, left_out), stats.probe(writer.name, named))


def test_missing_statistics_are_an_error() -> None:
    lm, _, found, *_ = fitted("llama")
    with pytest.raises(SiteError, match="no statistics"):
        least_disturbance(lm, WriterStatistics({}, {}), found[1])
