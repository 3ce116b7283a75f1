"""The ruler's names, measured: what other tools find under them is what our hooks find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toolbox import opened, relative
from torch import Tensor, nn

from interp.backends.hooks import HooksBackend
from interp.cli import main
from interp.errors import SiteError
from interp.models import describe, known_model_types, tiny_model
from interp.models.anatomy import Anatomy
from interp.models.ruler import (
    COLUMNS,
    FINAL_NORM,
    TUPLE_BLOCKS,
    WITHOUT_EMBEDDING_ENTRY,
    Ruler,
)
from interp.sites import Site
from interp.types import TokenBatch

SAME = 1e-6
OTHER = 1e-2


@pytest.fixture(scope="session")
def ruler(anatomy: Anatomy) -> Ruler:
    return Ruler.of(anatomy)


def plain(ids: Tensor) -> TokenBatch:
    return TokenBatch(ids, torch.ones_like(ids))


def made(n_blocks: int, model_type: str = "llama") -> Ruler:
    return Ruler(model_type, tuple(f"model.layers.{i}" for i in range(n_blocks)), "model.norm")


# --- measured on every family ------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states_lie_where_the_ruler_says(
    tiny: nn.Module, anatomy: Anatomy, ruler: Ruler, ids: Tensor
) -> None:
    normed: list[Tensor] = []
    norm = tiny.get_submodule(anatomy.final_norm)
    handle = norm.register_forward_hook(lambda m, a, out: normed.append(out))
    out = tiny(input_ids=ids, output_hidden_states=True, use_cache=False)
    handle.remove()
    captured = HooksBackend(tiny, None, anatomy, "").capture(plain(ids), ruler.sites(), None)
    entries = out.hidden_states
    assert len(entries) == ruler.n_blocks + 1
    for k, entry in enumerate(entries[:-1]):
        site = ruler.from_transformers(k)
        assert relative(entry, captured[site]) < SAME
        others = [other for other in captured if other != site]
        assert all(relative(entry, captured[other]) > OTHER for other in others)
    assert relative(entries[-1], normed[0]) < SAME
    last = captured[Site.resid_post(ruler.n_blocks - 1)]
    assert relative(entries[-1], last) > OTHER, "the last entry is normed"


@torch.no_grad()
def test_blocks_return_tuples_where_the_ruler_says(
    tiny: nn.Module, anatomy: Anatomy, ids: Tensor
) -> None:
    kinds: set[bool] = set()
    handles = [
        tiny.get_submodule(path).register_forward_hook(
            lambda m, a, out: kinds.add(isinstance(out, tuple))
        )
        for path in anatomy.blocks
    ]
    tiny(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    assert kinds == {anatomy.model_type in TUPLE_BLOCKS}


def test_every_name_leads_back(ruler: Ruler) -> None:
    for column in COLUMNS:
        named = 0
        for site in ruler.sites():
            try:
                name = getattr(ruler, column)(site)
            except SiteError:
                continue
            named += 1
            assert getattr(ruler, f"from_{column}")(name) == site
        passed_over = len(ruler.unsteered - {0}) if column == "gguf" else 0
        assert named >= (column != "heretic") * (ruler.n_blocks - 1) - passed_over


def test_the_tables_name_described_types_only() -> None:
    assert set(known_model_types()) >= WITHOUT_EMBEDDING_ENTRY | TUPLE_BLOCKS


# --- measured in the tools themselves ----------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "mamba", "falcon_h1", "gpt2", "jamba"])
@torch.no_grad()
def test_nnsight_finds_the_stream_under_the_rulers_names(model_type: str, ids: Tensor) -> None:
    backend = opened(model_type, "nnsight")
    lm = backend.lm  # type: ignore[attr-defined]
    ruler = Ruler.of(backend.anatomy)
    expected = backend.capture(plain(ids), ruler.sites(), None)
    found = {}
    with lm.trace() as tracer:
        with tracer.invoke(input_ids=ids, use_cache=False):
            pass
        for site in ruler.sites():
            with tracer.invoke():
                # The very text that a user would write after the model's name.
                found[site] = eval(f"lm.{ruler.nnsight(site)}", {"lm": lm}).cpu()
    for site, value in found.items():
        assert relative(value, expected[site]) < SAME


@pytest.mark.parametrize("model_type", ["llama", "mamba", "gpt2", "jamba"])
@torch.no_grad()
def test_transformer_lens_finds_the_stream_under_the_rulers_names(
    model_type: str, ids: Tensor
) -> None:
    backend = opened(model_type, "transformer_lens")
    ruler = Ruler.of(backend.anatomy)
    own = opened(model_type, "hooks")
    expected = own.capture(plain(ids), ruler.sites(), None)
    _, cache = backend.bridge.run_with_cache(ids)  # type: ignore[attr-defined]
    for site in ruler.sites():
        assert relative(cache[ruler.transformer_lens(site)].cpu(), expected[site]) < SAME
    (norm,) = [row for row in ruler.rows() if row.site == FINAL_NORM]
    out = own.model(input_ids=ids, output_hidden_states=True, use_cache=False)
    found = cache[norm.values["transformer_lens"]].cpu()
    assert relative(found, out.hidden_states[norm.values["transformers"]]) < SAME


def test_hook_embed_of_gpt2_is_not_what_enters_block_0() -> None:
    ruler = Ruler.of(describe(tiny_model("gpt2")))
    with pytest.raises(SiteError, match=r"what enters block 0 is blocks\.0\.hook_resid_pre"):
        ruler.from_transformer_lens("hook_embed")
    assert made(3).from_transformer_lens("hook_embed") == Site.embed()


# --- numbers that follow from each other -------------------------------------------------------

depths = st.integers(2, 200)


@given(depths, st.data())
def test_numbers_of_a_plain_transformer(n: int, data: st.DataObject) -> None:
    ruler, block = made(n), data.draw(st.integers(0, n - 2))
    site = Site.resid_post(block)
    assert ruler.transformers(site) == ruler.persona(site) == block + 1
    assert ruler.heretic(site) == ruler.repeng(site) == block
    assert ruler.from_transformers(block - n) == site
    assert ruler.from_repeng(block - n) == site
    assert ruler.nnsight(site) == f"model.layers[{block}].output"
    assert ruler.from_nnsight(ruler.nnsight(site)) == site
    assert ruler.transformers(Site.resid_pre(block + 1)) == block + 1
    if block > 0:
        assert ruler.gguf(site) == f"direction.{block}"


@given(depths, st.data())
def test_numbers_of_a_mamba_shift_by_one(n: int, data: st.DataObject) -> None:
    ruler, block = made(n, "mamba"), data.draw(st.integers(0, n - 1))
    assert ruler.transformers(Site.resid_post(block)) == block
    assert ruler.from_persona(block) == Site.resid_post(block)
    with pytest.raises(SiteError, match="begin with the output of block 0"):
        ruler.transformers(Site.embed())


@given(depths, st.integers(-400, 400))
def test_an_entry_is_a_place_or_an_error(n: int, index: int) -> None:
    ruler = made(n)
    try:
        site = ruler.from_transformers(index)
    except SiteError:
        assert not -n - 1 <= index <= n or index in (n, -1)
    else:
        assert ruler.transformers(site) == index % (n + 1)


def refused(*call: object) -> str:
    translate, value = call
    with pytest.raises(SiteError) as caught:
        translate(value)  # type: ignore[operator]
    return str(caught.value)


def test_every_refusal_gives_its_reason() -> None:
    r, last = made(4), Site.resid_post(3)
    assert "has been through model.norm, so resid_post[3]" in refused(r.transformers, last)
    assert "no place in the stream" in refused(r.from_transformers, -1)
    assert "row -1 is outside" in refused(r.from_persona, -1)
    assert "none for embed" in refused(r.heretic, Site.embed())
    assert "after model.norm" in refused(r.heretic, last)
    assert "after model.norm" in refused(r.from_heretic, 3)
    assert "mixes the directions of blocks 1 and 2" in refused(r.from_heretic, 1.25)
    assert "refuses direction.0" in refused(r.gguf, Site.resid_post(0))
    assert "refuses direction.0" in refused(r.from_gguf, "direction.0")
    assert "no tensor of a control vector" in refused(r.from_gguf, "blk.3")
    assert "blocks are 0 … 3" in refused(r.from_gguf, "direction.4")
    assert "blocks are 0 … 3" in refused(r.repeng, Site.resid_post(4))
    assert "none before block 0" in refused(r.repeng, Site.embed())
    assert "one name only" in refused(r.nnsight, Site.resid_mid(1))
    assert "known: model.layers[0].input" in refused(r.from_nnsight, "model.layers[9].output")


def test_heretic_loads_what_it_knows() -> None:
    reasons = {t: Ruler.of(describe(tiny_model(t))).no_heretic for t in ("llama", "jamba", "mamba")}
    assert reasons["llama"] is None
    assert "no writer of block 0 (mamba.out_proj" in reasons["jamba"]
    assert "blocks at model.layers, they are at backbone.layers" in reasons["mamba"]


# --- the command -------------------------------------------------------------------------------


def test_the_command_prints_and_writes_every_row(
    chat_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ruler", str(chat_dir), "--json", str(tmp_path / "r.json")])
    assert not stop.value.code
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [r["site"] for r in rows][:2] == ["embed", "resid_post[0]"]
    assert rows[-1]["site"] == FINAL_NORM
    assert len(rows) == 2 + 3
    assert rows[1]["values"] == {
        "transformers": 1, "persona": 1, "heretic": 0, "repeng": 0, "gguf": None,
        "transformer_lens": "blocks.0.hook_resid_post", "nnsight": "model.layers[0].output",
    }  # fmt: skip
    for row in rows:
        assert {k for k, v in row["values"].items() if v is None} <= row["why"].keys()
        assert all(reason in " ".join(shown.split()) for reason in row["why"].values())


def test_llama_cpp_steers_nemotron_h_after_feed_forward_blocks_only() -> None:
    anatomy = describe(tiny_model("nemotron_h"))
    ruler = Ruler.of(anatomy)
    for block in range(1, anatomy.n_blocks):
        site, kind = Site.resid_post(block), anatomy.in_block(block)[-1].kind
        if kind in ("mlp", "expert"):
            assert ruler.gguf(site) == f"direction.{block}"
        else:
            assert "passes over" in refused(ruler.gguf, site)
    assert not Ruler.of(describe(tiny_model("llama"))).unsteered
