"""``LM``: what a user asks of a model, in one object, with every backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toolbox import opened, random_vector, relative
from torch import Tensor, nn

from interp.backends import BACKENDS
from interp.backends.opening import open_model, wrap
from interp.backends.steps import Sampling
from interp.data import ChatFormat, encode
from interp.data.prompts import PromptSet
from interp.errors import InterpError, NotExpressible, PromptError, SiteError
from interp.interventions import ablate, add, intervene, replace, scale
from interp.lm import LM
from interp.operators import Replace, Scale
from interp.sites import Site
from interp.types import TokenBatch

TEXTS = ("What is the tide?", "Name a long river in the north.", "Hm", "Who?")


@pytest.fixture(scope="module")
def lm(chat_dir: Path) -> LM:
    return LM(open_model(str(chat_dir)), batch_size=3)


def last_logits(lm: LM, text: str) -> Tensor:
    """A plain forward pass over one prompt."""
    batch = encode(lm.tokenizer, [text], lm.chat)
    with torch.no_grad():
        return lm.hf(batch.ids).logits[0, -1]


# --- prompts -------------------------------------------------------------------------------------


def test_text_sets_and_tokens_are_one_prompt(lm: LM) -> None:
    one, several = lm.logits(TEXTS[0]), lm.logits(TEXTS)
    assert one.shape == (1, lm.hf.config.vocab_size)
    for row, text in enumerate(TEXTS):
        assert relative(several[row], last_logits(lm, text)) < 1e-5
    assert torch.equal(several, lm.logits(PromptSet(TEXTS, "four")))
    assert torch.equal(several, lm.logits(lm.tokens(TEXTS)))
    assert relative(lm.using(batch_size=1).logits(TEXTS), several) < 1e-5


def test_plain_text_is_left_as_it_is(lm: LM) -> None:
    plain = lm.using(chat=None).tokens("the sea")
    assert lm.tokenizer.decode(plain.ids[0], skip_special_tokens=True) == "the sea"
    assert "user" in lm.tokenizer.decode(lm.tokens("the sea").ids[0])
    brief = lm.using(chat=ChatFormat(system="Be brief."))
    assert "Be brief." in lm.tokenizer.decode(brief.tokens("the sea").ids[0])


# --- reading -------------------------------------------------------------------------------------


def test_residuals_are_the_hidden_states(lm: LM) -> None:
    found = lm.residuals(TEXTS)
    assert found.shape == (1 + lm.n_blocks, len(TEXTS), lm.d_model)
    batch = lm.tokens(TEXTS[1])
    with torch.no_grad():
        states = lm.hf(batch.ids, output_hidden_states=True).hidden_states
    for place in range(lm.n_blocks):  # transformers norms the last one
        assert relative(found[place, 1], states[place][0, -1]) < 1e-5


def test_spans_are_those_of_each_prompt_alone(lm: LM) -> None:
    """Whatever the padding: prompts and responses of different lengths, means and whole spans."""
    answers = ["It rises.", "Ob", "No idea at all", "Me"]
    site = lm.resid_post[1]
    span = lm.activations(TEXTS, site, at="response", responses=answers)
    mean = lm.activations(TEXTS, site, at="response", responses=answers, reduce="mean")
    first = lm.activations(TEXTS, site, at=0, responses=answers)
    last = lm.activations(TEXTS, site, at=-1, responses=answers)
    assert span.mask is not None
    for row, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        alone = lm.tokens([text], [answer])
        n = len(lm.tokenizer(answer, add_special_tokens=False).input_ids)
        whole = lm.backend.capture(alone, [site], None)[site][0]
        assert int(span.mask[row].sum()) == n
        assert relative(span[site][row][span.mask[row]], whole[-n:]) < 1e-5
        assert relative(mean[site][row], whole[-n:].mean(0)) < 1e-5
        assert relative(first[site][row], whole[-n]) < 1e-5
        assert relative(last[site][row], whole[-n - 1]) < 1e-5
    with pytest.raises(PromptError, match="needs responses"):
        lm.activations(TEXTS, site, at="response")
    with pytest.raises(PromptError, match="response 2 is empty"):
        lm.activations(TEXTS, site, responses=["a", "", "b", "c"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model_type", ["llama", "mamba", "jamba", "qwen3_moe"])
def test_one_pass_gives_logits_and_cache(model_type: str, backend: str, batch: TokenBatch) -> None:
    lm = LM(opened(model_type, backend))
    passes = 0

    def count(module: nn.Module, args: object) -> None:
        nonlocal passes
        passes += 1

    handle = lm.hf.get_submodule(lm.anatomy.embeddings[0].module).register_forward_pre_hook(count)
    logits, cache = lm.run_with_cache(batch)
    handle.remove()
    assert passes == 1
    assert relative(logits[:, -1], lm.logits(batch)) < 1e-5
    assert torch.equal(cache["resid_post", 1], cache["blocks.1.hook_resid_post"])
    assert relative(cache[lm.resid_post[0]][:, -1], lm.residuals(batch)[1]) < 1e-5
    _, some = lm.run_with_cache(batch, "blocks.0.hook_resid_post")
    assert list(some) == [Site.resid_post(0)]
    with pytest.raises(SiteError, match="not in this cache"):
        some["resid_post", 1]


def test_logprobs_are_those_of_the_responses(lm: LM) -> None:
    answers = ["It rises.", "Ob", "No idea at all", "Me"]
    found = lm.logprobs(TEXTS, answers)
    for row, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        batch = lm.tokens([text], [answer])
        n = len(found.tokens[row])
        with torch.no_grad():
            logp = lm.hf(batch.ids).logits[0].log_softmax(-1)
        each = logp[-n - 1 : -1].gather(-1, batch.ids[0, -n:, None]).squeeze(-1)
        assert relative(found.tokens[row], each) < 1e-4
        assert found.sums[row].item() == pytest.approx(each.sum().item(), rel=1e-4)
        assert relative(lm.logprobs(text, answer).tokens[0], each) < 1e-4
    assert (
        lm.logprobs(TEXTS, answers, add(lm.resid_post[0], torch.ones(lm.d_model)))
        .sums.ne(found.sums)
        .all()
    )


def test_the_lens_ends_in_the_models_logits(tiny: nn.Module, batch: TokenBatch) -> None:
    lm = LM(wrap(tiny))
    lens = lm.lens(batch)
    assert relative(lens.logits(-1), lm.logits(batch)) < 1e-4
    best = lm.logits(batch).argmax(-1)
    assert lens.ranks(int(best[0]))[-1, 0] == 0
    total = sum(lens.probabilities(t)[0] for t in range(lm.hf.config.vocab_size))
    assert relative(total, torch.ones(len(batch))) < 1e-4


def test_the_lens_speaks(lm: LM) -> None:
    top = lm.lens(TEXTS[:2]).top(3)
    assert (len(top), len(top[0]), len(top[0][0])) == (1 + lm.n_blocks, 2, 3)
    with pytest.raises(PromptError, match="tokens; give one token"):
        lm.lens("x").ranks("several tokens")


def test_offsets_outside_a_prompt_are_no_padding(lm: LM) -> None:
    """Whatever the batch: the shortest prompt decides, and is named."""
    plain = lm.using(chat=None)
    texts, site = ["a long prompt of several words", "Hm"], lm.resid_post[0]
    several = plain.activations(texts, site, at=[-1, -2])[site]
    assert relative(several[:, 0], plain.activations(texts, site)[site]) < 1e-5
    assert relative(plain.logits(texts, at=(-2, -1))[:, 1], plain.logits(texts)) < 1e-5
    short = len(plain.tokenizer("Hm").input_ids)
    for call in (plain.logits, plain.residuals, plain.lens):
        with pytest.raises(SiteError, match=f"outside prompt 2, which has {short} tokens"):
            call(texts, at=-short - 1)
    with pytest.raises(SiteError, match="lies before a prompt"):
        plain.logits(texts, add(site, torch.ones(lm.d_model), where=-short - 1))


def test_means_are_of_spans_and_offsets(lm: LM) -> None:
    site = lm.resid_post[0]
    both = lm.activations(TEXTS, site, at=(-1, -3))[site]
    mean = lm.activations(TEXTS, site, at=(-1, -3), reduce="mean")[site]
    assert relative(mean, both.mean(1)) < 1e-5
    with pytest.raises(InterpError, match="over a span or several offsets"):
        lm.activations(TEXTS, site, reduce="mean")


def test_sites_have_the_names_of_the_cache(lm: LM) -> None:
    head = lm.head(1, 1)
    found = lm.activations(TEXTS, [head, "blocks.1.hook_resid_post", ("mlp", 0)])
    assert torch.equal(found[head], found[head.site][:, head.start : head.stop])
    assert torch.equal(found["resid_post", 1], found[lm.resid_post[1]])
    assert torch.equal(found["mlp_out", 0], found[lm.component("mlp", 0)])
    _, cache = lm.run_with_cache(TEXTS, ("embed", 0))
    assert torch.equal(cache["embed", 0], cache["hook_embed"])
    for wrong, message in ((("foo", 1), "no site named"), (lambda name: False, "no site matches")):
        with pytest.raises(SiteError, match=message):
            lm.run_with_cache(TEXTS, wrong)
    with pytest.raises(SiteError, match="no component"):
        lm.component("ssm", 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model_type", ["gpt2", pytest.param("jamba", marks=pytest.mark.slow)])
def test_z_and_neurons_are_those_of_transformer_lens(
    model_type: str, backend: str, batch: TokenBatch
) -> None:
    """Value for value and in its axes, in caches, filters and patches; other names say which there are."""
    lm, bridge = LM(opened(model_type, backend)), opened(model_type, "transformer_lens").bridge
    ids = batch.ids[:1]
    whole = TokenBatch(ids, torch.ones_like(ids))
    expected = bridge.run_with_cache(ids)[1]
    _, cache = lm.run_with_cache(whole)
    for name, kind in (("blocks.1.attn.hook_z", "z"), ("blocks.1.mlp.hook_post", "post")):
        assert cache[name].shape == expected[name].shape
        assert relative(cache[name], expected[name]) < 1e-5
        assert torch.equal(cache[kind, 1 - lm.n_blocks], cache[name])
        assert torch.equal(lm.activations(whole, name)[name], cache[name][:, -1])
        _, some = lm.run_with_cache(whole, lambda given, name=name: given == name)
        assert torch.equal(some[name], cache[name])
        values = torch.randn_like(cache[name])
        here, flat = lm.places(name), lm.places(lm.places(name)[0].site if kind == "z" else name)
        for given in (values, values[:, -1], values[0, -1]):
            same = replace(flat, given.flatten(-2) if kind == "z" else given)
            assert torch.equal(lm.logits(whole, replace(here, given)), lm.logits(whole, same))
        two = replace(here, values[:, -2:], where=(-2, -1))
        assert relative(lm.logits(whole, two), lm.logits(whole)) > 1e-5
    z = cache["z", 1]
    head = lm.head(1, 2)
    assert torch.equal(z[:, :, 2], cache[head])
    mask = torch.ones(z.shape[2], 1)
    mask[2] = 0
    masked = lm.logits(whole, scale(lm.places(("z", 1)), mask))
    assert torch.equal(masked, lm.logits(whole, scale(head, 0.0)))
    grid = lm.patching(whole, whole, "blocks.1.attn.hook_z", lambda logits: logits[:, 3])
    assert relative(grid.effects[0, 0], grid.clean) < 1e-5
    with pytest.raises(SiteError, match=r"attn.hook_z.*for attention patterns: lm.attention"):
        lm.activations(whole, "blocks.1.attn.hook_pattern")
    with pytest.raises(SiteError, match="blocks are 0 … "):
        lm.run_with_cache(whole, "blocks.9.attn.hook_z")


def test_what_has_no_heads_or_neurons_says_what_it_has(batch: TokenBatch) -> None:
    """State spaces and fused experts; names that errors print are names."""
    jamba, mamba = LM(opened("jamba", "hooks")), LM(opened("mamba", "hooks"))
    for lm, kind in ((jamba, "post"), (jamba, "z"), (mamba, "z"), (mamba, "post")):
        with pytest.raises(SiteError, match=r"in block 0 .*hook_ssm_out"):
            lm.run_with_cache(batch, (kind, 0))
    for lm in (jamba, mamba):
        for site in (*lm.writer_inputs, *lm.writers):
            assert lm.places(site.hook_name) == (site,)


def test_gradients_reach_heads_and_neurons(lm: LM) -> None:
    """Of a part of a site as of the site: what a part's gradient is, the site's is there."""
    head, neuron, name = lm.head(1, 1), lm.neuron(1, 3), "blocks.1.attn.hook_z"
    logits, cache = lm.run_with_cache(TEXTS, [head, neuron, name], gradients=True)
    wanted = [cache[name], cache[head], cache[head.site], cache[neuron], cache[neuron.site]]
    z, own, site, one, neurons = torch.autograd.grad(logits[:, -1, 65].sum(), wanted)
    assert z.shape[-2:] == (lm.hf.config.num_attention_heads, lm.hf.config.head_dim)
    assert torch.equal(z[..., 1, :], own)
    assert torch.equal(z.flatten(-2), site)
    assert torch.equal(one, neurons[..., 3:4])
    assert own.norm() > 0


def test_a_model_without_tokenizer_says_so(batch: TokenBatch) -> None:
    lm = LM(opened("llama", "hooks"))
    for call in (
        lambda: lm.logits("text"),
        lambda: lm.using(chat=None).logits("text"),
        lambda: lm.logprobs(batch, ["a", "b", "c"]),
        lambda: lm.generate(batch, tokens=2).texts,
        lambda: lm.generate(batch, tokens=2, until=lambda texts: [True] * len(texts)),
        lambda: lm.lens(batch).top(2),
    ):
        with pytest.raises(PromptError, match="no tokenizer"):
            call()
    with pytest.raises(PromptError, match="not int"):
        lm.logits([1, 2])  # type: ignore[list-item]


# --- editing -------------------------------------------------------------------------------------


def test_several_strengths_run_in_one_batch(lm: LM) -> None:
    vector = 3 * random_vector(lm.d_model)
    edit = add(lm.resid_post[1], vector, [-1, 0, 2], where="response")
    many = lm.generate(TEXTS, edit, tokens=6)
    assert many.axes == ("strength", "prompt")
    for place, strength in enumerate((-1, 0, 2)):
        alone = lm.generate(
            TEXTS, add(lm.resid_post[1], vector, strength, where="response"), tokens=6
        )
        assert torch.equal(many.ids[place], alone.ids)
        assert many.texts[place] == alone.texts
    assert many.texts[1] == lm.generate(TEXTS, tokens=6).texts
    assert lm.logits(TEXTS, edit).shape == (3, len(TEXTS), lm.hf.config.vocab_size)


def test_values_of_every_position_go_to_their_tokens(lm: LM) -> None:
    """Whatever padding a batch drops, for heads and strengths too; generated tokens have no value."""
    site, head = lm.resid_post[1], lm.head(0, 1)
    for texts in (TEXTS, TEXTS[:1]):
        values = 3 * torch.randn(len(texts), lm.tokens(texts).ids.shape[1], lm.d_model)
        edit = replace(site, values) + intervene(site, Replace(-values), [0.5])
        parts = replace(head, values[..., : head.stop - head.start])
        for call in (lm.logits, lambda *given: lm.generate(*given, tokens=4).ids):
            for row, (text, edited) in enumerate(
                zip(texts, call(texts, edit + parts), strict=True)
            ):
                n = lm.tokens(text).ids.shape[1]
                own, z = (
                    values[row : row + 1, -n:],
                    values[row : row + 1, -n:, : head.stop - head.start],
                )
                alone = (
                    replace(site, own) + intervene(site, Replace(-own), [0.5]) + replace(head, z)
                )
                assert relative(edited.float(), call(text, alone)[0].float()) < 1e-5
    with pytest.raises(SiteError, match="values for 2 positions, and a prompt has"):
        lm.logits(TEXTS, replace(site, torch.zeros(len(TEXTS), 2, lm.d_model)))
    _, cache = lm.run_with_cache(TEXTS, site)
    same = lm.logits(TEXTS, replace(site, cache[site]))
    assert relative(same, lm.logits(TEXTS)) < 1e-5


def test_values_of_prompts_of_other_lengths_are_refused(lm: LM) -> None:
    """Padding never goes to a token, whoever is longer; equal prompts and chosen positions are patched."""
    site, neuron = lm.resid_post[1], lm.neuron(0, 3)
    clean, other = ["abc", "a long prompt"], ["a long prompt", "abc"]
    _, cache = lm.run_with_cache(clean, [site, neuron])
    span = lm.activations(clean, [site, neuron], at="all")
    for values in (cache[site], span[site], cache, span):
        with pytest.raises(SiteError, match="another length than prompt 1"):
            lm.logits(other, replace(site, values))
        assert relative(lm.logits(clean, replace(site, values)), lm.logits(clean)) < 1e-5
    longer, shorter = ["a long prompt", "a long prompt"], ["abc", "a long prompt"]
    values = lm.activations(longer, [site, neuron], at="all")
    for call in (lm.logits, lm.forward, lambda *given: lm.generate(*given, tokens=2)):
        with pytest.raises(SiteError, match="another length than prompt 1"):
            call(shorter, replace([site, neuron], values))
    last = lm.logits(other, replace(site, span, where=-1))
    same = lm.logits(other, replace(site, span[site][:, -1], where=-1))
    assert relative(last, same) < 1e-5
    sites = [lm.resid_post[0], neuron]
    both = lm.activations(clean, sites, at=(-2, -1))
    by_hand = replace(sites[0], both[sites[0]], where=(-2, -1)) + replace(
        neuron, both[neuron], where=(-2, -1)
    )
    assert torch.equal(
        lm.logits(other, replace(sites, both, where=(-2, -1))), lm.logits(other, by_hand)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model_type", ["llama", "jamba", "qwen3_moe"])
def test_gradients_reach_activations(model_type: str, backend: str, batch: TokenBatch) -> None:
    """To first order a small step at a site moves the logits as its gradient says."""
    lm = LM(opened(model_type, backend))
    plain = next(w for w in lm.anatomy.block_writers if not w.fused)
    sites = [lm.resid_pre[1], lm.resid_post[0], *lm.components()[:2]]
    sites.append(Site.writer_in(plain.block, plain.name))
    logits, cache = lm.run_with_cache(batch, sites, gradients=True)
    slopes = torch.autograd.grad(logits[:, -1, 3].sum(), [cache[s] for s in sites])
    for site, slope in zip(sites, slopes, strict=True):
        assert slope.shape == cache[site].shape
        step = 1e-2 * slope[:1, -1] / slope[0, -1].norm() ** 2
        moved = lm.logits(
            batch, intervene(site, Scale(torch.tensor(1.0))) + add(site, step[0], where=-1)
        )
        change = (moved - lm.logits(batch))[0, 3]
        assert change.item() == pytest.approx(1e-2, rel=0.05)
    with lm.editing(None), torch.no_grad():
        assert not lm.run_with_cache(batch, sites)[0].requires_grad


def test_no_call_ignores_strengths(lm: LM) -> None:
    """One strength acts in every call; several need copies, which logits and generate alone make."""
    site, vector = lm.resid_post[0], random_vector(lm.d_model)
    answers = ["a", "bc", "d", "e"]
    calls = (
        lambda edit: lm.residuals(TEXTS, edit),
        lambda edit: lm.run_with_cache(TEXTS, site, edit)[0][:, -1],
        lambda edit: lm.forward(TEXTS, edit)[:, -1].detach(),
        lambda edit: lm.logprobs(TEXTS, answers, edit).sums,
    )
    for call in calls:
        half = call(intervene(site, Scale(torch.tensor(3.0)), [0.5]))
        assert relative(half, call(scale(site, 2.0))) < 1e-5
        with pytest.raises(SiteError, match="2 strengths need 2 copies"):
            call(add(site, vector, [1, 2]))
        with pytest.raises(SiteError, match="each of 3 prompts, and 4 prompts are given"):
            call(add(site, vector, torch.ones(3)))
        with pytest.raises(SiteError, match="each of 5 prompts"):
            call(replace(site, torch.ones(5, lm.d_model)))
    with pytest.raises(SiteError, match="give it to the call"):
        lm.editing(add(site, vector, torch.ones(4)))


def test_heads_are_patched(lm: LM) -> None:
    """Patching a head's z by hand and in a grid, from activations of that head."""
    clean, corrupted, head = ["the cat is a"], ["the dog is a"], lm.head(1, 1)
    metric = lambda logits: logits[:, 65]  # noqa: E731
    z = lm.activations(clean, head)[head]
    by_hand = metric(lm.logits(corrupted, replace(head, z, where=-1)))
    grid = lm.patching(clean, corrupted, [lm.head(1, 0), head], metric, at=-1)
    with pytest.raises(PromptError, match="same in both runs"):
        _ = lm.patching(clean, clean, head, metric).restored
    zeros = replace(head, torch.zeros(head.stop - head.start))
    assert torch.equal(lm.logits(clean, replace(head, 0.0)), lm.logits(clean, zeros))
    assert grid.effects[1, 0].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_a_delta_is_put_in_once(lm: LM) -> None:
    """However many batches: the weight is written when the call begins and when it ends."""
    delta = lm.to_delta(ablate(lm.writers[0], random_vector(lm.d_model)))
    weight = lm.hf.get_parameter(next(iter(delta.updates)))
    small, before = lm.using(batch_size=1), weight._version
    small.logits(TEXTS, delta)
    assert weight._version == before + 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_attribution_sums_to_the_logit_difference(chat_dir: Path, backend: str) -> None:
    lm = LM(open_model(str(chat_dir), backend=backend))
    found = lm.attribution(TEXTS, "A", "B")
    a, b = (lm.tokenizer(t, add_special_tokens=False).input_ids[0] for t in "AB")
    logits = lm.logits(TEXTS)
    assert relative(found.contributions.sum(1) + found.constant, logits[:, a] - logits[:, b]) < 1e-4
    edit = scale(lm.components("mlp"), 0.0)
    without = lm.attribution(TEXTS, "A", "B", edit)
    mlp = [i for i, kind in enumerate(without.kinds) if kind == "mlp"]
    assert without.contributions[:, mlp].abs().max() < 1e-6
    several = lm.attribution(TEXTS, ["A", "C"], b)
    halves = (found.measured + lm.attribution(TEXTS, "C", "B").measured) / 2
    assert relative(several.measured, halves) < 1e-6
    assert relative(several.openers.margin(logits), halves) < 1e-4
    with pytest.raises(PromptError, match="tokens; give one token"):
        lm.attribution(TEXTS, "two tokens", "B")


def test_patching_finds_where_prompts_differ(lm: LM) -> None:
    clean, corrupted = ["the cat is a"], ["the dog is a"]
    metric = lambda logits: logits[:, 65] - logits[:, 66]  # noqa: E731
    found = lm.patching(clean, corrupted, lm.resid_post, metric, at=(-1,))
    assert found.effects.shape == (lm.n_blocks, 1, 1)
    # Nothing after the last block mixes positions: its clean stream gives the clean logits.
    assert found.restored[-1, 0].item() == pytest.approx(1.0, abs=1e-4)
    first = lm.activations(clean, lm.resid_post[0])[lm.resid_post[0]]
    by_hand = metric(lm.logits(corrupted, replace(lm.resid_post[0], first, where=-1)))
    assert found.effects[0, 0].item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_heads_and_neurons(lm: LM) -> None:
    head, neuron = lm.head(1, 1), lm.neuron(0, 5)
    assert head.stop - head.start == lm.hf.config.head_dim
    edit = scale(head, 0.0) + scale(neuron, 2.0)
    delta = lm.to_delta(edit)
    assert relative(lm.logits(TEXTS, delta), lm.logits(TEXTS, edit)) < 1e-4
    assert relative(lm.logits(TEXTS), lm.logits(TEXTS, edit)) > 1e-4
    with pytest.raises(SiteError, match="has heads 0"):
        lm.head(0, 99)
    with pytest.raises(SiteError, match="has neurons 0"):
        lm.neuron(0, 10**6)


def test_an_edit_is_weights_where_it_has_them(lm: LM) -> None:
    delta = lm.to_delta(ablate(lm.writers, random_vector(lm.d_model)))
    assert delta.rank == 1
    assert relative(lm.residuals(TEXTS, delta), lm.residuals(TEXTS)) > 1e-4
    once = scale(lm.head(1, 1), 0.0) + add(lm.resid_post[0], torch.ones(lm.d_model), 2)
    head, added = lm.to_delta(once).recipe["parts"]
    size = lm.hf.config.head_dim
    assert (head["operator"], head["coordinates"]) == ("Scale", [size, 2 * size])
    assert (added["operator"], added["coefficient"]) == ("Addition", 2.0)
    with pytest.raises(NotExpressible, match="outputs of its matrices"):
        lm.to_delta(scale(lm.component("mlp", 0), 0.0))
    with pytest.raises(InterpError, match="an edit is Interventions"):
        lm.logits(TEXTS, "ablate")  # type: ignore[arg-type]
    with pytest.raises(NotExpressible, match="skip path"):
        lm.to_delta(ablate(lm.resid_post[0], random_vector(lm.d_model)))


def test_gradients_reach_what_is_added(lm: LM) -> None:
    vector = torch.zeros(lm.d_model, requires_grad=True)
    lm.forward(TEXTS[0], add(lm.resid_post[0], vector, where=-1))[0, -1, 65].backward()
    assert vector.grad is not None
    assert vector.grad.norm() > 0


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backend",
    [name if name == "hooks" else pytest.param(name, marks=pytest.mark.slow) for name in BACKENDS],
)
def test_a_seed_fixes_every_draw(chat_dir: Path, backend: str) -> None:
    """Whatever the batch size, the company and the backend."""
    lm = LM(open_model(str(chat_dir), backend=backend))
    draws = Sampling(temperature=0.8, samples=3, seed=1)
    found = lm.generate(TEXTS, tokens=5, sampling=draws)
    assert found.axes == ("prompt", "sample")
    plain = LM(open_model(str(chat_dir)), batch_size=2)
    assert found.texts == plain.generate(TEXTS, tokens=5, sampling=draws).texts
    more = plain.generate(TEXTS, tokens=5, sampling=Sampling(temperature=0.8, samples=4, seed=1))
    assert torch.equal(more.ids[:, :3], found.ids)
    assert found.texts[:2] == plain.generate(TEXTS[:2], tokens=5, sampling=draws).texts
    assert len({tuple(row) for row in found.ids[0].tolist()}) == 3
    other = plain.generate(TEXTS, tokens=5, sampling=Sampling(temperature=0.8, samples=3, seed=2))
    assert other.texts != found.texts


def test_draws_follow_the_softmax(lm: LM) -> None:
    """First tokens of many samples against the model's probabilities, within four standard errors."""
    n = 400
    ids = lm.using(batch_size=n).generate(
        TEXTS[0], tokens=1, sampling=Sampling(temperature=2.0, samples=n)
    ).ids  # fmt: skip
    p = (lm.logits(TEXTS[0])[0] / 2.0).softmax(-1)
    likely = p.topk(5).indices
    for token in likely.tolist():
        share = (ids == token).float().mean().item()
        error = (p[token] * (1 - p[token]) / n).sqrt().item()
        assert abs(share - p[token].item()) < 4 * error
    few = lm.using(batch_size=n).generate(
        TEXTS[0], tokens=1, sampling=Sampling(temperature=2.0, samples=n, top_k=2)
    ).ids  # fmt: skip
    assert set(few.flatten().tolist()) <= set(p.topk(2).indices.tolist())


def test_responses_end_when_a_judge_has_decided(lm: LM) -> None:
    seen: list[int] = []

    def decided(texts: list[str]) -> list[bool]:
        seen.append(len(texts))
        return [True] * len(texts)

    ids = lm.using(batch_size=2).generate(TEXTS, tokens=40, until=decided).ids
    whole = lm.using(batch_size=2).generate(TEXTS, tokens=40).ids
    assert seen == [2, 2]
    assert torch.equal(ids[:, :4], whole[:, :4])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"samples": 0},
        {"top_k": 0},
        {"top_p": 2},
    ],
)
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InterpError):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_libraries_say_how_to_get_them(lm: LM) -> None:
    with pytest.raises(InterpError, match="open it with backend='transformer_lens'"):
        _ = lm.bridge
    with pytest.raises(InterpError, match="open it with backend='nnsight'"):
        _ = lm.nnsight


# --- input that would go wrong in silence -------------------------------------------------------


def test_a_position_after_the_prompt_is_an_error_where_there_is_none(lm: LM) -> None:
    vector = random_vector(lm.d_model, 2)
    for where in (0, 7):
        with pytest.raises(SiteError, match="is in the response"):
            lm.logits("What is a key?", add(lm.resid_post[0], vector, where=where))
    late = lm.generate("What is a key?", add(lm.resid_post[0], vector, where=0), tokens=2)
    assert late.ids.shape == (1, 2)


def test_a_metric_gives_one_number_per_prompt(lm: LM) -> None:
    with pytest.raises(SiteError, match="one number per prompt"):
        lm.patching("a", "b", lm.resid_post[0], lambda logits: logits.mean())


def test_a_recipe_tells_edits_with_other_numbers_apart(lm: LM) -> None:
    recipes = [scale(lm.resid_post[0], factor).recipe for factor in (0.5, 2.0)]
    assert recipes[0] != recipes[1]


def test_a_name_is_no_site_and_a_mapping_is_its_sites(lm: LM) -> None:
    with pytest.raises(SiteError, match="is a name"):
        add("blocks.0.hook_resid_post", random_vector(lm.d_model, 2))
    assert set(lm.activations("a", lm.resid_mid)) == set(lm.resid_mid.values())
