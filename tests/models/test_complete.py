"""Weight files that do not hold what the config says are an error that names the tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.errors import ModelNotFound
from interp.models import family_of
from interp.models.loading import load
from interp.models.tiny import save_tiny

Weights = dict[str, Tensor]


def saved(folder: Path, change: Callable[[Weights], Weights], kind: str = "llama", **config) -> str:
    save_tiny(kind, family_of(kind), folder)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return str(folder)


def same(weights: Weights) -> Weights:
    return weights


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {n: w for n, w in weights.items() if part not in n}


def beside(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: torch.zeros(3) for name in names}


def shortened(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {n: w[:8].clone() if part in n else w for n, w in weights.items()}


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("llama", without("layers.1.self_attn.q_proj"), r"missing: model\.layers\.1\.self_attn\.q"),
        ("llama", without("model.norm"), r"missing: model\.norm\.weight"),
        ("mamba", without("layers.0.mixer.D"), r"missing: backbone\.layers\.0\.mixer\.D"),
        ("qwen3_moe", without("experts.0.down_proj"), r"experts\.down_proj"),
        (
            "llama",
            shortened("layers.0.mlp.up"),
            r"of another shape: model\.layers\.0\.mlp\.up_proj",
        ),
        ("llama", beside("model.layers.0.self_attn.q_proj.bias"), "without a place.*q_proj.bias"),
        ("llama", beside("model.layers.0.self_attn.k_norm.weight"), "without a place.*k_norm"),
        ("llama", beside("model.layers.7.self_attn.q_proj.weight"), r"without a place.*layers\.7"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    kind: str, change: Callable[[Weights], Weights], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match=named):
        load(saved(tmp_path, change, kind))


def test_a_config_that_leaves_out_blocks_or_has_other_sizes(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"without a place.*layers\.1\..* more"):
        load(saved(tmp_path / "fewer", same, num_hidden_layers=1))
    with pytest.raises(ModelNotFound, match=r"embed_tokens.*instead of \[300"):
        load(saved(tmp_path / "wider", same, vocab_size=300))
    with pytest.raises(ModelNotFound, match="Padding_idx"):
        load(saved(tmp_path / "pad", same, pad_token_id=300))


@pytest.mark.parametrize(
    ("kind", "change", "config"),
    [
        ("llama", same, {}),  # tied: there is no lm_head in the file
        ("llama", beside("vision_tower.patch.weight", "mtp.layers.0.proj.weight"), {}),
        ("llama", beside("model.visual.blocks.0.weight", "score.weight"), {}),
        ("llama", beside("model.layers.0.self_attn.rotary_emb.inv_freq"), {}),
        (
            "llama",
            beside("model.layers.3.mlp.up_proj.weight"),
            {"num_hidden_layers": 3, "num_nextn_predict_layers": 1},
        ),
        ("gpt2", beside("h.0.attn.bias", "h.0.attn.masked_bias"), {}),
        ("gptj", beside("transformer.h.0.attn.bias"), {}),
    ],
)
def test_what_a_text_model_skips_is_no_fault(
    kind: str, change: Callable[[Weights], Weights], config: dict[str, int], tmp_path: Path
) -> None:
    load(saved(tmp_path, change, kind, **config))


def test_a_quantisation_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    def packed(weights: Weights) -> Weights:
        stems = {n.removesuffix("weight"): w for n, w in weights.items() if "_proj.weight" in n}
        rest = {n: w for n, w in weights.items() if "_proj.weight" not in n}
        return rest | {
            f"{n}qweight": torch.zeros(4, len(w), dtype=torch.int32) for n, w in stems.items()
        }

    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    with pytest.raises(ModelNotFound, match=r"are quantised \(GPTQ, bits 4.*unquantised"):
        load(saved(tmp_path / "gptq", packed, quantization_config=gptq))
    unheard = {"quant_method": "unheard", "bits": 3}  # transformers ignores it
    with pytest.raises(ModelNotFound, match=r"are quantised \(unheard, bits 3\)"):
        load(saved(tmp_path / "unheard", packed, quantization_config=unheard))
    with pytest.raises(ModelNotFound, match="are quantised"):
        load(saved(tmp_path / "scaled", beside("model.layers.0.mlp.up_proj.weight_scale"),
                   quantization_config=unheard))  # fmt: skip
