"""Interventions: where they act, in every backend, cached or not, and their weight form."""

from __future__ import annotations

import operator
from functools import reduce

import pytest
import torch
from toolbox import opened, random_vector, real, relative
from torch import nn

from interp.backends import BACKENDS
from interp.backends.opening import wrap
from interp.backends.protocol import Backend, all_sites
from interp.backends.reading import writer_sites
from interp.edits import Edit, to_delta
from interp.errors import NotExpressible, SiteError
from interp.interventions import (
    Interventions,
    ablate,
    add,
    intervene,
    replace,
    scale,
)
from interp.models.anatomy import BoundWriter
from interp.operators import Addition, Affine, Composed, Scale
from interp.places import SitePart
from interp.sites import Site
from interp.types import TokenBatch

TOLERANCE = 1e-5
EFFECT = 1e-4


@pytest.fixture(scope="session")
def plain(tiny: nn.Module) -> Backend:
    return wrap(tiny)


def outputs(plain: Backend) -> list[Site]:
    return [Site.writer_out(w.block, w.name) for w in plain.anatomy.block_writers]


def inputs(plain: Backend) -> list[Site]:
    return writer_sites(plain.anatomy.block_writers)


def width(writer: BoundWriter) -> int:
    return writer.d_in * (writer.shape[0] if writer.fused else 1)


def halves(plain: Backend) -> Interventions:
    """Half of the coordinates that each writer reads, masked."""
    whole = None
    for site, writer in zip(inputs(plain), plain.anatomy.block_writers, strict=True):
        mask = torch.ones(width(writer))
        mask[::2] = 0.0
        made = scale(site, mask)
        whole = made if whole is None else whole + made
    assert whole is not None
    return whole


# --- weight forms --------------------------------------------------------------------------------


@pytest.mark.every_family
def test_masks_at_what_writers_read_are_weights(plain: Backend, batch: TokenBatch) -> None:
    """``W (M − I)``: fused experts, SSM channels, heads and neurons alike."""
    edit = halves(plain)
    unedited = real(plain.logits(batch, None, None), batch)
    hook = real(plain.logits(batch, edit, None), batch)
    delta = to_delta(plain.model, plain.anatomy, edit)
    assert relative(hook, unedited) > EFFECT
    assert relative(real(plain.logits(batch, delta, None), batch), hook) < 1e-4


def test_every_linear_operator_at_what_a_writer_reads(plain: Backend, batch: TokenBatch) -> None:
    """Directions, subspaces, constants (a bias) and affine maps, each at all plain writers."""
    writers = zip(plain.anatomy.block_writers, inputs(plain), strict=True)
    edits: dict[str, list[Interventions]] = {}
    for writer, site in ((w, s) for w, s in writers if not w.fused):
        d = width(writer)
        some = random_vector(2 * d).view(2, d)
        made = {
            "direction": ablate(site, some[0]),
            "subspace": ablate(site, some, 0.5),
            "part": ablate(SitePart(site, 1, 3), torch.tensor([1.0, 2.0])),
            "affine": intervene(site, Affine(some[:1].T / d, some[1:] / d, None)),
        }
        if writer.gain is None:
            made["constant"] = add(site, some[0], 0.3)
        for name, edit in made.items():
            edits.setdefault(name, []).append(edit)
    unedited = real(plain.logits(batch, None, None), batch)
    for name, each in edits.items():
        whole = reduce(operator.add, each)
        hook = real(plain.logits(batch, whole, None), batch)
        delta = to_delta(plain.model, plain.anatomy, whole)
        assert relative(real(plain.logits(batch, delta, None), batch), hook) < 1e-4, name
        assert relative(hook, unedited) > EFFECT, name


def test_operators_at_one_place_are_composed(plain: Backend, batch: TokenBatch) -> None:
    """At what writers read and at what they write, with a constant in the stream after both."""
    some = random_vector(2 * plain.anatomy.d_model).view(2, -1)
    whole = None
    for writer, read, wrote in zip(
        plain.anatomy.block_writers, inputs(plain), outputs(plain), strict=True
    ):
        made = scale(SitePart(read, 0, 2), 0.0) + scale(SitePart(read, 1, 3), 2.0)
        if not writer.fused:
            made += ablate(read, random_vector(width(writer)))
        made += ablate(wrote, some[0], 0.5) + ablate(wrote, some[1])
        whole = made if whole is None else whole + made
    last = plain.anatomy.in_block(0)[-1].writers[-1]
    if last.scale is not None and not last.fused:
        whole += add(Site.resid_post(0), some[0], 0.1) + add(Site.resid_pre(1), some[1], 0.1)
    hook = real(plain.logits(batch, whole, None), batch)
    delta = to_delta(plain.model, plain.anatomy, whole)
    assert relative(real(plain.logits(batch, delta, None), batch), hook) < 1e-4
    assert relative(hook, real(plain.logits(batch, None, None), batch)) > EFFECT


def test_ablation_at_writers_is_that_of_the_edit(plain: Backend, batch: TokenBatch) -> None:
    """Seen through a post-norm's gain where there is one."""
    edit = ablate(outputs(plain), random_vector(plain.anatomy.d_model))
    hook = real(plain.logits(batch, edit, None), batch)
    delta = to_delta(plain.model, plain.anatomy, edit)
    assert relative(real(plain.logits(batch, delta, None), batch), hook) < 1e-4


def test_what_acts_at_some_positions_or_rows_has_no_weights() -> None:
    lm = opened("llama", "hooks")
    vector = random_vector(lm.anatomy.d_model)
    site = Site.resid_post(0)
    for edit in (
        add(site, vector, where="response"),
        add(site, vector, [1.0, 2.0]),
        add(site, vector, torch.tensor([1.0, 2.0])),
        replace(site, vector),
    ):
        with pytest.raises(NotExpressible, match=r"hook|delta for each|block"):
            to_delta(lm.model, lm.anatomy, edit)


# --- positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model_type", ["llama", "mamba", "jamba", "qwen3_moe"])
def test_a_cache_does_not_move_what_is_edited(
    model_type: str, backend: str, batch: TokenBatch
) -> None:
    """What is generated under an intervention is what teacher forcing says comes next."""
    lm = opened(model_type, backend)
    vector = 4 * random_vector(lm.anatomy.d_model)
    everywhere = ("all", "prompt", "response", -1, 0, (-2, 1))
    for where in everywhere if backend == "hooks" else ("response", (-2, 1)):
        edit = add(Site.resid_post(0), vector, where=where)
        new = lm.generate(batch, edit, tokens=4)
        logits = lm.logits(batch.extended(new), edit, tuple(range(-5, -1)))
        assert logits.argmax(-1).equal(new), where


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model_type", [pytest.param("jamba", marks=pytest.mark.slow), "llama"])
def test_every_site_is_edited_where_it_is_read(
    model_type: str, backend: str, batch: TokenBatch
) -> None:
    """A replaced value is the value that is captured and changes the logits, at every kind of site."""
    lm = opened(model_type, backend)
    unedited = lm.logits(batch)
    sites = [*all_sites(lm.anatomy), *writer_sites(lm.anatomy.block_writers)]
    sites += [Site.writer_out(w.block, w.name) for w in lm.anatomy.block_writers]
    fused = {w.name for w in lm.anatomy.block_writers if w.fused}
    for site in (s for s in sites if s.name not in fused):
        before = lm.capture(batch, [site], None)[site]
        values = random_vector(before.shape[-1])
        with lm.editing(replace(site, values, where=-2)):
            after = lm.capture(batch, [site], None)[site]
        assert relative(after[:, -2], values.expand_as(after[:, -2])) < TOLERANCE
        assert relative(after[:, :-2], before[:, :-2]) < TOLERANCE
        changed = lm.logits(batch, replace(site, values, where=-1))
        assert relative(changed, unedited) > EFFECT, site


@pytest.mark.parametrize("model_type", ["llama", "mamba", "jamba", "qwen3_moe", "gpt2"])
def test_backends_agree_on_interventions(model_type: str, batch: TokenBatch) -> None:
    found = []
    for backend in BACKENDS:
        lm = opened(model_type, backend)
        d = lm.anatomy.d_model
        rows = torch.tensor([0.0, 1.0, 2.0])
        edit = halves(lm) + add(Site.resid_post(1), random_vector(d), rows, where=-2)
        edit += ablate(outputs(lm), random_vector(d, 1), where=(-1, -3))
        edit += replace(Site.embed(), torch.zeros(d), where=-4)
        found.append(real(lm.logits(batch, edit, None), batch))
    for other in found[1:]:
        assert relative(other, found[0]) < TOLERANCE


def test_rows_have_strengths_of_their_own(batch: TokenBatch) -> None:
    lm = opened("llama", "hooks")
    vector = random_vector(lm.anatomy.d_model)
    site = Site.resid_post(1)
    each = torch.tensor([-1.0, 0.0, 2.0])
    together = lm.logits(batch, add(site, vector, each))
    for row, strength in enumerate(each.tolist()):
        alone = lm.logits(batch, add(site, vector, strength))[row]
        assert relative(together[row], alone) < TOLERANCE


def test_patching_everything_restores_the_clean_run(batch: TokenBatch) -> None:
    lm = opened("llama", "hooks")
    site = Site.resid_post(1)
    clean = lm.capture(batch, [site], None)[site]
    other = TokenBatch(batch.ids.flip(0) * batch.mask + 1 - batch.mask, batch.mask)
    patched = lm.logits(other, replace(site, clean))
    assert relative(patched, lm.logits(batch)) < TOLERANCE
    assert relative(lm.logits(other), patched) > EFFECT


@pytest.mark.parametrize("backend", BACKENDS)
def test_editing_reaches_the_transformers_model(backend: str, batch: TokenBatch) -> None:
    """At inputs and outputs; gradients, too; and each backend does it to its own library once."""
    lm = opened("jamba", backend)
    d = lm.anatomy.d_model
    writer = next(w for w in lm.anatomy.block_writers if not w.fused)
    edit = add(Site.resid_pre(1), random_vector(d)) + scale(Site.resid_post(0), 1.5)
    same = Edit(sites={Site.resid_pre(1): Scale(torch.tensor(2.0))},
                inputs={writer.weight: Scale(torch.tensor(0.2))})  # fmt: skip
    for each in (edit, same):
        expected = real(opened("jamba", "hooks").logits(batch, each, None), batch)
        assert relative(real(lm.logits(batch, each, None), batch), expected) < TOLERANCE
        assert relative(real(lm.forward(batch, each).detach(), batch), expected) < TOLERANCE
        with lm.editing(each), torch.no_grad():
            inside = lm.model(input_ids=batch.ids[:1]).logits[0]
        assert relative(inside, expected[: len(inside)]) < TOLERANCE


def test_where_prompts_end_is_known_to_one_call(batch: TokenBatch) -> None:
    """A direct call after one through the backend is of another batch."""
    lm = opened("llama", "hooks")
    with lm.editing(add(Site.resid_post(0), torch.ones(lm.anatomy.d_model), where=-1)):
        lm.logits(batch)
        with pytest.raises(SiteError, match="run the model through the LM"):
            lm.model(input_ids=batch.ids)


def test_padding_outside_the_embedding_keeps_the_response(batch: TokenBatch) -> None:
    lm = opened("llama", "hooks")
    edit = add(Site.resid_post(0), 4 * random_vector(lm.anatomy.d_model), where="response")
    given = TokenBatch(batch.ids, batch.mask, torch.tensor([2, 2, 2]))
    odd = TokenBatch(batch.ids.masked_fill(batch.mask == 0, 10**6), batch.mask, given.response)
    assert torch.equal(lm.logits(odd, edit), lm.logits(given, edit))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_that_do_not_fit_are_named(backend: str, batch: TokenBatch) -> None:
    lm = opened("llama", backend)
    site, d = Site.resid_post(0), lm.anatomy.d_model
    wrong = [replace(site, torch.ones(d + 1)), replace(site, torch.ones(2, d)),
             scale(site, torch.ones(d - 1)), add(site, torch.ones(d), torch.ones(2))]  # fmt: skip
    for edit in wrong:
        with pytest.raises(SiteError, match=r"do not fit blocks.0.hook_resid_post"):
            lm.logits(batch, edit)
    with pytest.raises(SiteError, match="where=-15 lies before a prompt of 13 tokens"):
        lm.logits(batch, add(site, torch.ones(d), where=-15))
    with pytest.raises(SiteError, match="3 strengths need 3 copies"):
        lm.logits(batch, add(site, torch.ones(d), [-1, 0, 1]))


def test_one_strength_of_any_operator_is_weights(batch: TokenBatch) -> None:
    """In a list, a tensor or as a number: at a writer's input and output."""
    lm = opened("llama", "hooks")
    unit = random_vector(lm.anatomy.d_model)
    site = outputs(lm)[0]
    for strength in (0.5, [0.5], torch.tensor(0.5), torch.tensor([0.5])):
        for there in (site, SitePart(site, 0, 2)):
            edit = intervene(there, Scale(torch.tensor(0.1)), strength)
            same = scale(there, 0.55)
            assert relative(lm.logits(batch, edit), lm.logits(batch, same)) < TOLERANCE
            delta = to_delta(lm.model, lm.anatomy, edit)
            assert relative(lm.logits(batch, delta), lm.logits(batch, same)) < 1e-4
        ablated = ablate(site, unit, strength)
        assert relative(lm.logits(batch, ablated), lm.logits(batch, ablate(site, unit, 0.5))) == 0


def test_what_adds_a_constant_to_the_stream_is_weights(batch: TokenBatch) -> None:
    """However the addition is written; with anything beside it there is no weight form."""
    lm = opened("llama", "hooks")
    vector, site = random_vector(lm.anatomy.d_model), Site.resid_post(0)
    expected = lm.logits(batch, add(site, vector, 0.5))
    halves = Composed((Addition(vector, 0.25), Addition(vector, 0.25)))
    for edit in (
        intervene(site, Addition(vector), 0.5),
        intervene(site, Addition(vector), torch.tensor([0.5])),
        intervene(site, halves),
        intervene(site, Composed((Addition(vector), Addition(vector, -0.5)))),
        intervene(
            site, Affine(torch.zeros(len(vector), 0), torch.zeros(0, len(vector)), vector), 0.5
        ),
    ):
        assert relative(lm.logits(batch, edit), expected) < TOLERANCE
        assert relative(lm.logits(batch, to_delta(lm.model, lm.anatomy, edit)), expected) < 1e-4
    both = intervene(site, Composed((Addition(vector), Scale(torch.tensor(2.0)))))
    with pytest.raises(NotExpressible, match="skip path"):
        to_delta(lm.model, lm.anatomy, both)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s, v: add(s, v, []), "strengths are a number"),
        (lambda s, v: add(s, v, torch.ones(2, 2)), "strengths are a number"),
        (lambda s, v: add(s, v, where=1.5), "where is one of"),
        (lambda s, v: add(s, v, where="answers"), "where is one of all, prompt, response"),
        (lambda s, v: add(s, v, where=()), "no position asked for"),
        (lambda s, v: add([], v), "no site"),
        (lambda s, v: add(s, v, [1, 2]) + add(s, v, [1, 2, 3]), "2 and 3 strengths"),
        (lambda s, v: add([s, s], torch.stack([v] * 3)), "3 vectors for 2 sites"),
    ],
)
def test_wrong_interventions_say_what_is_wrong(make, message: str) -> None:
    with pytest.raises(SiteError, match=message):
        make(Site.resid_post(0), torch.ones(4))
