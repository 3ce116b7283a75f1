"""Plain hooks: what they leave behind, what they refuse, and how little they keep."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from toolbox import assert_untouched, opened, random_vector, real, relative, state
from torch import nn
from transformers import GenerationConfig

from interp.backends import BACKENDS
from interp.backends.hooks import HooksBackend, writer_sites
from interp.backends.opening import wrap
from interp.backends.protocol import Backend, all_sites, residual_sites
from interp.edits import steering
from interp.errors import SiteError
from interp.models import tiny_model
from interp.models.anatomy import Anatomy
from interp.sites import Site
from interp.types import TokenBatch


@pytest.fixture(scope="session")
def plain(tiny: nn.Module) -> Backend:
    return wrap(tiny)


@pytest.mark.every_family
def test_components_add_up_to_the_stream(plain: Backend, batch: TokenBatch) -> None:
    """``resid_post = resid_pre + Σ components``, and one block's output is the next one's input."""
    found = plain.capture(batch, all_sites(plain.anatomy), None)
    assert torch.equal(found[Site.embed()], found[Site.resid_pre(0)])
    for i in range(plain.anatomy.n_blocks):
        added = sum(found[Site.component(c.name)] for c in plain.anatomy.in_block(i))
        total = real(found[Site.resid_pre(i)] + added, batch)
        assert relative(total, real(found[Site.resid_post(i)], batch)) < 1e-6
        if i:
            assert torch.equal(found[Site.resid_pre(i)], found[Site.resid_post(i - 1)])


def test_positions_are_slices_of_the_whole(plain: Backend, batch: TokenBatch) -> None:
    """At some positions or all, and (one site of each kind) alone or together: a site has one value."""
    sites = all_sites(plain.anatomy) + writer_sites(plain.anatomy.writers)
    whole = plain.capture(batch, sites, None)
    last, some = plain.capture(batch, sites, -1), plain.capture(batch, sites, (-3, -1))
    for site in sites:
        assert whole[site].shape[:2] == batch.ids.shape
        # Expert inputs are recomputed for the wanted tokens: another batch, another rounding.
        assert relative(last[site], whole[site][:, -1]) < 1e-6
        assert relative(some[site], whole[site][:, [-3, -1]]) < 1e-6
    for site in {site.kind: site for site in sites}.values():
        assert torch.equal(plain.capture(batch, [site])[site], last[site])


def test_writer_inputs_give_what_the_writers_write(plain: Backend, batch: TokenBatch) -> None:
    """``W a + b`` of a plain writer's input is its output."""
    for writer in plain.anatomy.block_writers:
        if writer.fused:
            continue
        site = Site.writer_in(writer.block, writer.name)
        module, written = plain.model.get_submodule(writer.module), []
        handle = module.register_forward_hook(lambda m, a, out, kept=written: kept.append(out))
        plain.logits(batch)
        handle.remove()
        inputs = plain.capture(batch, [site], None)[site]
        assert relative(module(inputs), written[0].reshape(*batch.ids.shape, -1)) < 1e-6


def test_nothing_of_the_sequence_is_kept(plain: Backend, batch: TokenBatch) -> None:
    """What one position costs does not depend on the length of the prompt."""
    outputs: list[weakref.ref[torch.Tensor]] = []

    def keep(module: nn.Module, args: object, out: Any) -> None:
        outputs.append(weakref.ref(out[0] if isinstance(out, tuple) else out))

    with ExitStack() as stack:
        for path in plain.anatomy.blocks:
            hook = plain.model.get_submodule(path).register_forward_hook(keep)
            stack.callback(hook.remove)
        found = plain.capture(batch, residual_sites(plain.anatomy))
    assert len(outputs) == plain.anatomy.n_blocks
    assert not any(ref() is not None for ref in outputs)
    for value in found.values():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_the_pass_stops_after_the_last_site(plain: Backend, batch: TokenBatch) -> None:
    reached: list[str] = []
    paths = [*plain.anatomy.blocks, plain.anatomy.unembed]
    handles = [
        plain.model.get_submodule(path).register_forward_pre_hook(
            lambda m, args, path=path: reached.append(path)
        )
        for path in paths
    ]
    plain.capture(batch, [Site.resid_post(0)])
    for handle in handles:
        handle.remove()
    assert reached == [plain.anatomy.blocks[0]]


@pytest.mark.parametrize(("model_type", "tokens"), [("llama", 10 + 3 * 7), ("mamba", 3 * 17)])
def test_a_shared_opening_is_computed_once(model_type: str, tokens: int) -> None:
    """Where attention is all that remembers; a state-space mixer runs every prompt as a whole."""
    backend, seen = opened(model_type, "hooks"), 0
    ids = torch.randint(3, 97, (3, 17), generator=torch.Generator().manual_seed(0))
    ids[:, :10] = ids[0, :10]

    def count(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal seen
        seen += args[0].shape[:2].numel()

    block = backend.model.get_submodule(backend.anatomy.blocks[0])
    handle = block.register_forward_pre_hook(count)
    backend.logits(TokenBatch(ids, torch.ones_like(ids)))
    handle.remove()
    assert seen == tokens


def test_logits_of_positions_are_slices_of_the_whole(plain: Backend, batch: TokenBatch) -> None:
    whole = plain.logits(batch, None, None)
    assert whole.shape[:2] == batch.ids.shape
    assert relative(plain.logits(batch), whole[:, -1]) < 1e-6
    assert relative(plain.logits(batch, None, (-3, -1)), whole[:, [-3, -1]]) < 1e-6


@pytest.mark.parametrize("name", list(BACKENDS))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_errors_leave_no_hooks(name: str, batch: TokenBatch) -> None:
    """Whatever fails inside the model comes out as it is, and the next call works."""
    backend = wrap(tiny_model("llama"), backend=name)
    before, expected = state(backend.model), backend.capture(batch, [Site.resid_post(2)])
    edit = steering(Site.resid_post(1), random_vector(32))

    def fail(module: nn.Module, args: object) -> None:
        raise ArithmeticError("inside the model")

    handle = backend.model.get_submodule("model.layers.1.mlp.down_proj").register_forward_pre_hook(
        fail
    )
    sites = residual_sites(backend.anatomy)
    for call in (
        lambda: backend.capture(batch, sites),
        lambda: backend.logits(batch, edit),
        lambda: backend.generate(batch, edit, tokens=2),
    ):
        with pytest.raises(ArithmeticError, match="inside the model"):
            call()
    handle.remove()
    assert_untouched(backend.model, before)
    after = backend.capture(batch, [Site.resid_post(2)])
    assert torch.equal(after[Site.resid_post(2)], expected[Site.resid_post(2)])


def test_what_does_not_exist_is_refused(batch: TokenBatch) -> None:
    llama, mamba = opened("llama", "hooks"), opened("mamba", "hooks")
    with pytest.raises(SiteError, match="blocks are 0 … 2"):
        llama.capture(batch, [Site.resid_pre(3)])
    with pytest.raises(SiteError, match="has no resid_mid"):
        mamba.capture(batch, [Site.resid_mid(0)])
    with pytest.raises(SiteError, match=r"block 1 has blocks.1.attention, blocks.1.mlp"):
        llama.capture(batch, [Site.component("blocks.1.ssm")])
    with pytest.raises(SiteError, match="interp inspect"):
        llama.capture(batch, [Site.writer_in(0, "model.embed_tokens")])
    for positions in (0, -18, (-1, 3)):
        with pytest.raises(SiteError, match="count from its end, -17 … -1"):
            llama.capture(batch, [Site.embed()], positions)
    with pytest.raises(SiteError, match="no position"):
        llama.capture(batch, [Site.embed()], ())


def test_generation_is_greedy_whatever_the_model_prefers(batch: TokenBatch) -> None:
    """A checkpoint's own sampling settings and penalties play no part."""
    backend = wrap(tiny_model("llama"))
    plain = backend.generate(batch, tokens=8)
    backend.model.generation_config = own = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=4.0, no_repeat_ngram_size=1,
        min_new_tokens=8, suppress_tokens=plain[:, 0].tolist(), eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    assert torch.equal(backend.generate(batch, tokens=8), plain)
    assert backend.model.generation_config is own
    assert backend.generate(batch, tokens=0).shape == (3, 0)


def test_generation_pads_after_the_end_of_text(batch: TokenBatch) -> None:
    backend = wrap(tiny_model("llama"))
    free = backend.generate(batch, tokens=6)
    backend.model.generation_config.eos_token_id = int(free[0, 2])
    stopped = backend.generate(batch, tokens=6)
    assert stopped.shape == free.shape
    assert torch.equal(stopped[0, :3], free[0, :3])
    assert not stopped[0, 3:].any()


def test_mamba_keeps_its_stream_in_single_precision(batch: TokenBatch) -> None:
    """bf16 weights, fp32 stream: it is returned as it is, and edits do not change its dtype."""
    backend = wrap(tiny_model("mamba", dtype=torch.bfloat16))
    sites = [Site.resid_post(1), Site.component("blocks.1.ssm")]
    found = backend.capture(batch, sites)
    assert [found[site].dtype for site in sites] == [torch.float32, torch.bfloat16]
    edit = steering(Site.resid_post(1), random_vector(32))
    with backend.editing(edit):
        steered = backend.capture(batch, sites)
    assert steered[sites[0]].dtype == torch.float32
    assert relative(steered[sites[0]] - found[sites[0]], random_vector(32).expand(3, -1)) < 1e-5


def test_devices_of_offloaded_parameters_are_skipped() -> None:
    model = tiny_model("llama")
    anatomy: Anatomy = wrap(model).anatomy
    model.model.embed_tokens.to("meta")
    assert HooksBackend(model, None, anatomy, "").device.type == "cpu"
