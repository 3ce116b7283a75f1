"""Three libraries, one stream: every backend gives the numbers of plain hooks."""

from __future__ import annotations

import copy
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from covering import COVERING
from toolbox import assert_untouched, opened, random_direction, real, relative, state

from interp.backends.hooks import writer_sites
from interp.backends.opening import BACKENDS, wrap
from interp.backends.protocol import Backend, all_sites
from interp.backends.support import NOT_BRIDGED, SUPPORT, require_support
from interp.edits import Edit, ablation, steering, to_delta
from interp.errors import InterpError, NotExpressible, SiteError
from interp.models import known_model_types, tiny_model
from interp.models.anatomy import Anatomy
from interp.operators import Addition, LeastDisturbance
from interp.sites import Site
from interp.types import TokenBatch

TOLERANCE = 1e-5  # relative, fp32; the bridge's own attention is what differs (about 1e-6)
TOKENS = 6

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


OTHERS = tuple(name for name in BACKENDS if name != "hooks")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``pair``: a backend beside the hooks, and a family that it runs."""
    given = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "pair" not in metafunc.fixturenames or "pair" in given:
        return
    every = metafunc.definition.get_closest_marker("every_family")
    kinds = known_model_types() if every else COVERING
    pairs = [
        pytest.param((name, kind), marks=[] if kind in COVERING else [pytest.mark.slow])
        for name in OTHERS
        for kind in kinds
        if kind in SUPPORT[name]
    ]
    metafunc.parametrize("pair", pairs, ids="-".join, indirect=True, scope="session")


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="session", params=OTHERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def plain(pair: tuple[str, str]) -> Backend:
    return opened(pair[1], "hooks")


@pytest.fixture(scope="session")
def other(pair: tuple[str, str]) -> Backend:
    return opened(pair[1], pair[0])


def bridged(anatomy: Anatomy, site: Site) -> bool:
    """Whether TransformerLens has a hook point for a stream or component site."""
    hybrid = anatomy.model_type == "zamba2" and any(
        "mamba_decoder" in c.module for c in anatomy.in_block(site.block)
    )
    return not (hybrid and site.kind == "component")


def edits(anatomy: Anatomy, model: torch.nn.Module) -> dict[str, Edit]:
    direction = random_direction(anatomy.d_model)
    at = anatomy.n_blocks - 2
    return {
        "ablation": ablation(model, anatomy, direction, embeddings=True),
        "after a block": steering(Site.resid_post(at), direction.vector, 2.0),
        "before a block": steering(Site.resid_pre(at), direction.vector, 2.0),
        "embedding": steering(Site.embed(), direction.vector, 2.0),
        "inputs": Edit({w.weight: least_disturbance(w, direction) for w in anatomy.block_writers}),
    }


def least_disturbance(writer, direction) -> LeastDisturbance:
    shape = (writer.shape[0], writer.d_in) if writer.fused else (writer.d_in,)
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return LeastDisturbance(direction.vector, probe, 0.1)


def sites_of(other: Backend) -> list[Site]:
    sites = all_sites(other.anatomy)
    if other.name == "transformer_lens":
        sites = [site for site in sites if bridged(other.anatomy, site)]
    return sites


@pytest.mark.every_family
def test_the_stream_agrees_and_so_do_logits_with_and_without_edits(
    other: Backend, plain: Backend, batch: TokenBatch
) -> None:
    before, sites = state(other.model), sites_of(other)
    actual, expected = (b.capture(batch, sites, None) for b in (other, plain))
    for site in sites:
        assert relative(*(real(v[site], batch) for v in (actual, expected))) < TOLERANCE, site
    unedited = plain.logits(batch)
    assert relative(other.logits(batch), unedited) < TOLERANCE
    made = edits(plain.anatomy, plain.model)
    for kind in ("ablation", "after a block", "inputs"):
        edit = made[kind]
        expected = plain.logits(batch, edit)
        assert relative(expected, unedited) > 1e-3, f"{kind}: an edit without effect proves nothing"
        assert relative(other.logits(batch, edit), expected) < TOLERANCE, kind
    delta = to_delta(other.model, other.anatomy, made["ablation"])
    assert relative(other.logits(batch, delta), plain.logits(batch, delta)) < TOLERANCE
    assert relative(other.logits(batch), unedited) < TOLERANCE
    assert_untouched(other.model, before)


@pytest.mark.parametrize("pair", product(OTHERS, ("jamba", "llama")), ids="-".join, indirect=True)
@pytest.mark.parametrize("positions", [-1, (-3, -1)])
def test_positions_agree(other: Backend, plain: Backend, batch: TokenBatch, positions) -> None:
    sites = sites_of(other)
    actual, expected = (b.capture(batch, sites, positions) for b in (other, plain))
    assert list(actual) == list(expected)
    for site in sites:
        assert relative(actual[site], expected[site]) < TOLERANCE, site
    actual, expected = (b.logits(batch, None, positions) for b in (other, plain))
    assert relative(actual, expected) < TOLERANCE


def test_writer_inputs_agree_or_name_the_hooks_backend(
    other: Backend, plain: Backend, batch: TokenBatch
) -> None:
    """nnsight reaches all of them, TransformerLens those that it wraps itself."""
    sites = writer_sites(plain.anatomy.block_writers)
    expected = plain.capture(batch, sites)
    refusals = []
    for site in sites:
        try:
            actual = other.capture(batch, [site])[site]
        except SiteError as error:
            refusals.append(str(error))
        else:
            assert relative(actual, expected[site]) < TOLERANCE, site
    assert len(refusals) < len(sites)
    assert not refusals or other.name == "transformer_lens"
    assert all("backend='hooks'" in text for text in refusals)


def test_unreachable_components_name_the_hooks_backend(batch: TokenBatch) -> None:
    bridge = opened("zamba2", "transformer_lens")
    hidden = [s for s in all_sites(bridge.anatomy) if not bridged(bridge.anatomy, s)]
    assert hidden
    for site in hidden:
        with pytest.raises(SiteError, match="backend='hooks'"):
            bridge.capture(batch, [site])


def test_capture_inside_an_edit_agrees(other: Backend, plain: Backend, batch: TokenBatch) -> None:
    """Also at the very module that the edit acts on: the edited value is what is read."""
    sites = [Site.embed(), *(Site.resid_post(i) for i in range(plain.anatomy.n_blocks))]
    for kind, edit in edits(plain.anatomy, plain.model).items():
        with other.editing(edit), plain.editing(edit):
            actual, expected = other.capture(batch, sites), plain.capture(batch, sites)
        for site in sites:
            assert relative(actual[site], expected[site]) < TOLERANCE, (kind, site)


def test_generation_agrees(other: Backend, plain: Backend, batch: TokenBatch) -> None:
    edit = edits(plain.anatomy, plain.model)["ablation"]
    delta = to_delta(plain.model, plain.anatomy, edit)
    for given in (None, delta):
        actual = other.generate(batch, given, tokens=TOKENS)
        assert torch.equal(actual, plain.generate(batch, given, tokens=TOKENS))
        assert actual.shape == (len(batch), TOKENS)


def test_run_with_cache_has_transformer_lens_names(other: Backend, batch: TokenBatch) -> None:
    logits, cache = other.run_with_cache(batch, ["hook_embed", "blocks.1.hook_resid_post"])
    assert list(cache) == ["hook_embed", "blocks.1.hook_resid_post"]
    assert logits.shape[:2] == cache["hook_embed"].shape[:2] == batch.ids.shape
    wanted = Site.resid_post(1)
    assert torch.equal(
        cache["blocks.1.hook_resid_post"], other.capture(batch, [wanted], None)[wanted]
    )


def test_run_with_cache_filters_by_predicate(name: str, batch: TokenBatch) -> None:
    backend = opened("llama", name)
    every = backend.run_with_cache(batch)[1]
    assert list(every) == [site.hook_name for site in all_sites(backend.anatomy)]
    one = backend.run_with_cache(batch, "blocks.0.hook_resid_post")[1]
    assert list(one) == ["blocks.0.hook_resid_post"]
    some = backend.run_with_cache(batch, lambda hook: "resid_post" in hook)[1]
    assert list(some) == [f"blocks.{i}.hook_resid_post" for i in range(3)]


def test_what_no_backend_can_do_is_refused_by_each(name: str, batch: TokenBatch) -> None:
    """Also from inside a traced or bridged forward pass, and leaving no edit behind."""
    backend = opened("mixtral", name)
    unedited = backend.logits(batch)
    experts = next(w for w in backend.anatomy.writers if w.fused)
    inside = Edit({experts.weight: Addition(torch.ones(32))})
    for call in (
        lambda: backend.logits(batch, inside),
        lambda: backend.generate(batch, inside, tokens=2),
    ):
        with pytest.raises(NotExpressible, match="put it at the residual site"):
            call()
    between = steering(Site.resid_mid(0), torch.ones(32))
    with pytest.raises(SiteError, match="use embed, resid_pre or resid_post"):
        backend.logits(batch, between)
    assert torch.equal(backend.logits(batch), unedited)
    assert backend.generate(batch, tokens=0).shape == (3, 0)


def test_sites_and_positions_are_checked(other: Backend, batch: TokenBatch) -> None:
    with pytest.raises(SiteError, match="outside this model"):
        other.capture(batch, [Site.resid_post(other.anatomy.n_blocks)])
    with pytest.raises(SiteError, match="not in the prompt"):
        other.capture(batch, [Site.embed()], 0)
    with pytest.raises(SiteError, match="not in the prompt"):
        other.logits(batch, None, (-1, -18))
    assert other.capture(batch, []) == {}


# --- what the libraries get, and what the user keeps ---------------------------------------------


def test_the_given_model_is_left_as_it_was(name: str, batch: TokenBatch) -> None:
    """Bit for bit, module by module: libraries that rewire modules get a tree of their own."""
    model = tiny_model("llama")
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
    before, expected = state(model), model(**inputs).logits
    config = copy.deepcopy(vars(model.config))
    modules = {path: (module, set(vars(module))) for path, module in model.named_modules()}
    backend = wrap(model, backend=name)
    assert isinstance(backend, Backend)
    assert backend.model is model
    assert_untouched(model, before)
    assert torch.equal(model(**inputs).logits, expected)
    for path, module in model.named_modules():
        assert (module, set(vars(module))) == modules.pop(path)
    assert not modules
    assert vars(model.config) == config


@pytest.fixture
def tokenizer(tmp_path: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[EOS]", "the", "cat", "sat"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", eos_token="[EOS]")
    fast.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path, padding_side="left")


def test_users_go_on_in_transformer_lens(tokenizer) -> None:
    """``bridge`` is a whole TransformerBridge; the tokenizer that was given stays as it was."""
    backend = wrap(tiny_model("llama"), tokenizer, backend="transformer_lens")
    text = tokenizer(["the cat sat", "the"], return_tensors="pt", padding=True)
    prompt = TokenBatch(text["input_ids"], text["attention_mask"])
    site = Site.resid_post(1)
    found = backend.capture(prompt, [site])[site]
    logits, cache = backend.bridge.run_with_cache("the cat sat", prepend_bos=False)
    assert relative(cache[site.hook_name][0, -1], found[0]) < TOLERANCE
    assert relative(logits[0, -1], backend.logits(prompt)[0]) < TOLERANCE
    assert tokenizer.padding_side == "left"
    assert tokenizer.bos_token is None  # the bridge gives its own one


def test_users_go_on_in_nnsight(tokenizer) -> None:
    """``lm`` is a whole nnsight model, which takes text when there is a tokenizer."""
    backend = wrap(tiny_model("llama"), tokenizer, backend="nnsight")
    text = tokenizer(["the cat sat", "the"], return_tensors="pt", padding=True)
    prompt = TokenBatch(text["input_ids"], text["attention_mask"])
    lm, site = backend.lm, Site.resid_post(1)
    found = backend.capture(prompt, [site])[site]
    with lm.trace("the cat sat"):
        hidden = lm.model.layers[1].output.save()
    assert relative(hidden[0, -1], found[0]) < TOLERANCE
    edit = steering(site, torch.ones(32), 2.0)
    plain = opened("llama", "hooks")
    assert relative(backend.logits(prompt, edit), plain.logits(prompt, edit)) < TOLERANCE
    expected = plain.generate(prompt, edit, tokens=TOKENS)
    assert torch.equal(backend.generate(prompt, edit, tokens=TOKENS), expected)
    assert tokenizer.padding_side == "left"


# --- the support table ---------------------------------------------------------------------------


def test_table_covers_every_backend_and_only_known_families() -> None:
    assert SUPPORT.keys() == BACKENDS.keys()
    assert all(types <= set(known_model_types()) for types in SUPPORT.values())
    assert SUPPORT["hooks"] == SUPPORT["nnsight"] == set(known_model_types())
    assert set(known_model_types()) >= NOT_BRIDGED


def test_unsupported_families_are_refused() -> None:
    for model_type in NOT_BRIDGED:
        with pytest.raises(InterpError, match="use backend='hooks' or 'nnsight'"):
            wrap(tiny_model(model_type), backend="transformer_lens")


def test_refusal_names_the_other_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUPPORT, "transformer_lens", frozenset())
    with pytest.raises(InterpError, match=r"does not run llama.*'hooks' or 'nnsight'"):
        wrap(tiny_model("llama"), backend="transformer_lens")
    require_support("hooks", "llama")


@pytest.mark.parametrize(
    ("model_type", "overrides", "why"),
    [
        ("gpt_neox", {"attention_bias": False}, "AssertionError"),
        ("phi", {"qk_layernorm": True, "head_dim": 8}, "q_layernorm"),
    ],
)
def test_configs_that_the_adapter_was_not_written_for_are_one_error(
    model_type: str, overrides: dict[str, object], why: str, batch: TokenBatch
) -> None:
    """They fail inside TransformerLens, when the bridge is built or when it first runs."""
    model = tiny_model(model_type, **overrides)
    expected = wrap(model).logits(batch)
    with pytest.raises(InterpError, match=rf"{why}.*use backend='hooks' or 'nnsight'"):
        wrap(model, backend="transformer_lens")
    assert torch.equal(wrap(model).logits(batch), expected)


def test_a_bridge_that_computes_something_else_is_refused() -> None:
    """The bridge has an attention of its own, and does not see what a model's was replaced by."""
    model = tiny_model("llama")
    attention = model.model.layers[1].self_attn
    forward = attention.forward

    def thrice(*args: object, **kwargs: object) -> tuple[object, ...]:
        out, *rest = forward(*args, **kwargs)
        return (3 * out, *rest)

    attention.forward = thrice
    with pytest.raises(InterpError, match=r"logits are off by \d\d.*backend='hooks' or 'nnsight'"):
        wrap(model, backend="transformer_lens")


def test_a_bridge_needs_one_device() -> None:
    model = tiny_model("llama")
    model.model.norm.to("meta")
    with pytest.raises(InterpError, match=r"several devices \(cpu, meta\).*backend='hooks'"):
        wrap(model, backend="transformer_lens")


def test_an_architecture_without_adapter_is_one_error() -> None:
    model = tiny_model("llama")
    model.__class__ = type("HomeGrownForCausalLM", (type(model),), {})
    with pytest.raises(InterpError, match=r"HomeGrownForCausalLM.*backend='hooks'"):
        wrap(model, backend="transformer_lens")


def test_unknown_backend_names_those_that_exist() -> None:
    with pytest.raises(InterpError, match="hooks, transformer_lens, nnsight"):
        wrap(tiny_model("llama"), backend="jax")


@pytest.mark.slow
def test_no_library_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, interp.backends, interp.edits\n"
        "loaded = {'transformer_lens', 'nnsight', 'transformers'} & sys.modules.keys()\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
