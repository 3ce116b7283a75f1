"""Samba computes what the paper says, caches it, and is opened like any model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from interp.architectures import known_architectures, register
from interp.errors import InterpError
from interp.models import known_model_types, tiny_model
from interp.models.loading import load, load_config

PAPER = {
    421.8: {},
    1330: {"hidden_size": 2304, "intermediate_size": 6144, "num_hidden_layers": 18,
           "num_attention_heads": 18},
    1742: {"hidden_size": 2048, "intermediate_size": 8196, "num_hidden_layers": 24,
           "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 50304},
    3864: {"hidden_size": 2816, "intermediate_size": 9984, "num_hidden_layers": 32,
           "num_attention_heads": 11, "num_key_value_heads": 1, "vocab_size": 32064},
}  # fmt: skip
"""Millions of parameters with tied embeddings → sizes that differ from the 421M model's (table 11)."""


@pytest.fixture(scope="module")
def samba() -> Any:
    return tiny_model("samba")


def config(**sizes: Any) -> Any:
    register("samba")
    return AutoConfig.for_model("samba", **sizes)


def test_every_architecture_is_described() -> None:
    assert set(known_architectures()) <= set(known_model_types())


@pytest.mark.parametrize("millions", PAPER)
def test_the_papers_sizes(millions: float) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(**PAPER[millions]))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=5e-4)


def test_with_windows_alone_it_is_mistral(ids: torch.Tensor) -> None:
    only = {"layer_types": ["sliding_attention"] * 2, "num_hidden_layers": 2}
    samba = tiny_model("samba", **only)
    same = {k: getattr(samba.config, k) for k in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "sliding_window", "rms_norm_eps", "pad_token_id",
        "tie_word_embeddings",
    )}  # fmt: skip
    mistral = MistralForCausalLM(MistralConfig(**same)).eval()
    mistral.load_state_dict(samba.state_dict())
    with torch.no_grad():
        assert_close(samba(ids).logits, mistral(ids).logits, rtol=0, atol=0)


def test_a_query_sees_its_window_and_nothing_before(ids: torch.Tensor) -> None:
    one = tiny_model("samba", layer_types=["sliding_attention"], num_hidden_layers=1)
    window, other = one.config.sliding_window, ids.clone()
    other[:, 0] = (other[:, 0] + 1) % one.config.vocab_size
    with torch.no_grad():
        changed = (one(ids).logits - one(other).logits).abs().amax((0, 2))
    assert changed[window - 1] > 1e-4
    assert changed[window:].max() == 0


@pytest.mark.parametrize("layer_types", [None, ["linear_attention"] * 2,
                                         ["full_attention", "linear_attention"]])  # fmt: skip
def test_cached_steps_of_padded_prompts_are_whole_passes(
    layer_types: list[str] | None, ids: torch.Tensor
) -> None:
    sizes = {} if layer_types is None else {"num_hidden_layers": 2, "layer_types": layer_types}
    model: Any = tiny_model("samba", **sizes)
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    written = model.generate(ids * mask, attention_mask=mask, **options)
    for row, kept in ((0, 0), (1, 6)):
        alone = ids[row : row + 1, kept:]
        for _ in range(10):
            with torch.no_grad():
                best = model(alone, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            alone = torch.cat([alone, best], 1)
        assert alone[0].tolist() == written[row, kept:].tolist()


def test_positions_matter_unless_told_otherwise(ids: torch.Tensor) -> None:
    places = torch.arange(ids.shape[1]).unsqueeze(0)
    for use_rope in (True, False):
        model = tiny_model("samba", use_rope=use_rope)
        with torch.no_grad():
            far, near = (model(ids, position_ids=p).logits for p in (3 * places, places))
        assert torch.equal(far, near) != use_rope


def test_what_writes_the_stream_starts_smaller() -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8,
             "num_attention_heads": 4, "vocab_size": 64}  # fmt: skip
    model = AutoModelForCausalLM.from_config(config(**sizes))
    for block in model.model.layers:
        mixer = block.mamba.out_proj if hasattr(block, "mamba") else block.self_attn.o_proj
        for writer in (mixer, block.mlp.down_proj):
            assert float(writer.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.05)
        assert float(block.mlp.up_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    "layer_types", [["linear_attention"], ["chunked_attention"] * 4, ["mlp"] * 4]
)
def test_mixers_that_do_not_exist_are_refused(layer_types: list[str], tmp_path: Path) -> None:
    with pytest.raises(Exception, match="layer_types"):
        config(num_hidden_layers=4, layer_types=layer_types)
    folder = tmp_path / "damaged"
    tiny_model("samba").save_pretrained(folder)
    file = folder / "config.json"
    good = '"linear_attention",\n    "sliding_attention"'
    text = file.read_text()
    assert good in text
    file.write_text(text.replace(good, '"no_such_mixer",\n    "sliding_attention"'))
    with pytest.raises(InterpError):
        load_config(str(folder))


def test_a_saved_model_is_opened_without_remote_code(
    samba: Any, ids: torch.Tensor, tmp_path: Path
) -> None:
    samba.save_pretrained(tmp_path / "saved")
    loaded, _ = load(str(tmp_path / "saved"))
    with torch.no_grad():
        assert_close(loaded(ids).logits, samba(ids).logits, rtol=0, atol=0)


def test_it_learns(ids: torch.Tensor) -> None:
    model = tiny_model("samba")
    model.train()
    model(ids, labels=ids).loss.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


@pytest.mark.slow
def test_a_fresh_process_opens_it(samba: Any, tmp_path: Path) -> None:
    samba.save_pretrained(tmp_path / "saved")
    code = (
        "import sys, interp, interp.models.loading\n"
        "assert 'interp.architectures.samba' not in sys.modules\n"
        f"lm = interp.open_model({str(tmp_path / 'saved')!r})\n"
        "print(type(lm.hf).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "SambaForCausalLM"
