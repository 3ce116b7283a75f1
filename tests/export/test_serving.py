"""The Python lines of the README's serving notes, and a merged model in transformers and vLLM.

Its commands are not run; what llama.cpp computes is compared in ``test_llama_cpp.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.export import export
from interp.models.loading import load

pytestmark = pytest.mark.usefixtures("in_process")
README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
IDS = torch.arange(3, 20).unsqueeze(0)
CLOSE = 1e-4


@pytest.fixture
def served(saved, tmp_path):
    """``(base, adapter, merged, logits of the edit)`` of one edit."""
    base = saved("qwen3_moe", tokenizer=True)
    edit = base.disturbed()
    paths = {}
    for to in ("peft", "merged"):
        paths[to] = tmp_path / to
        export(edit, to=to, **base.base, out=paths[to])
    from interp.edits import applied

    with torch.no_grad(), applied(base.model, base.anatomy, edit) as model:
        logits = model(IDS).logits
    return str(base.path), paths["peft"], paths["merged"], logits


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_with_peft(served) -> None:
    from peft import PeftModel

    base, adapter, _, expected = served
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    assert "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE)" in README
    assert (logits_of(model) - expected).abs().max() <= CLOSE * expected.abs().max()
    assert (
        logits_of(model.merge_and_unload()) - expected
    ).abs().max() <= CLOSE * expected.abs().max()


def test_with_transformers(served) -> None:
    base, adapter, _, expected = served
    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_adapter(str(adapter))
    assert 'model.load_adapter("out/adapter")' in README
    assert (logits_of(model) - expected).abs().max() <= CLOSE * expected.abs().max()


def test_merged_with_transformers(served) -> None:
    base, _, merged, expected = served
    model, tokenizer = load(str(merged))
    assert (logits_of(model) - expected).abs().max() <= CLOSE * expected.abs().max()
    assert tokenizer("the capital")["input_ids"] == load(base)[1]("the capital")["input_ids"]


def test_merged_with_vllm(served) -> None:
    vllm = pytest.importorskip(
        "vllm", reason="vLLM is not installed: no merged model is tested in it"
    )
    _, _, merged, expected = served
    engine = vllm.LLM(str(merged), dtype="float32", enforce_eager=True)
    prompt = {"prompt_token_ids": IDS[0].tolist()}
    options = vllm.SamplingParams(max_tokens=1, temperature=0.0)
    (answer,) = engine.generate([prompt], options)
    assert answer.outputs[0].token_ids[0] == expected[0, -1].argmax().item()
