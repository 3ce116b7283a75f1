"""The merged format: a checkpoint that stands alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from interp.errors import ExportError
from interp.export import export, verify_export

pytestmark = pytest.mark.usefixtures("in_process")


def test_tokenizer_template_and_generation_config_travel_along(saved, tmp_path) -> None:
    base = saved("llama", tokenizer=True)
    export(base.ablated(), to="merged", **base.base, out=tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = "the capital of France"
    assert tokenizer(text)["input_ids"] == base.tokenizer(text)["input_ids"]
    assert tokenizer.chat_template == base.tokenizer.chat_template
    chat = [{"role": "user", "content": "now"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<user> now\n"
    assert GenerationConfig.from_pretrained(tmp_path / "merged").max_new_tokens == 7


def test_the_base_s_dtype_is_kept(saved, tmp_path) -> None:
    base = saved("qwen2", dtype="bfloat16")
    export(base.ablated(), to="merged", **base.base, out=tmp_path / "merged")
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_only_what_is_edited_changes(saved, tmp_path) -> None:
    base = saved("qwen3_moe")
    edit = base.ablated(blocks=[0])
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    export(edit, to="merged", **base.base, out=tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    plain = load_file(base.path / "model.safetensors")
    changed = {k for k in plain if not torch.equal(plain[k], merged[k])}
    assert merged.keys() == plain.keys()
    assert changed == {name for names in edit.checkpoint.values() for name in names}
    # The open model was lent, not changed.
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())


@pytest.mark.parametrize(
    ("model_type", "flag"),
    [("llama", False), ("gpt2", False), ("gemma3_text", False), ("mamba", False), ("zamba2", True)],
)
def test_a_tied_embedding_is_untied_only_when_it_is_edited(
    model_type, flag, saved, tmp_path
) -> None:
    base = saved(model_type)
    assert base.anatomy.tied
    for embeddings in (False, True):
        out = tmp_path / str(embeddings)
        export(base.ablated(embeddings=embeddings), to="merged", **base.base, out=out)
        config = json.loads((out / "config.json").read_text())
        assert config["tie_word_embeddings"] is (flag if embeddings else True)
        again = AutoModelForCausalLM.from_pretrained(out)
        table, head = again.get_input_embeddings().weight, again.get_output_embeddings().weight
        assert (table is head) is not embeddings
        # What shares a weight for another reason still does.
        shared = len(list(base.model.parameters())) + embeddings
        assert len(list(again.parameters())) == shared
        own = base.model.get_output_embeddings().weight
        assert torch.equal(head, own)
        assert base.model.get_input_embeddings().weight is own
        assert base.model.config.tie_word_embeddings is True


def test_another_tokenizer_in_the_files_is_an_error(saved, tmp_path) -> None:
    base = saved("llama", tokenizer=True)
    out = tmp_path / "merged"
    export(base.ablated(), to="merged", **base.base, out=out)
    vocabulary = json.loads((out / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["capital"], words["France"] = words["France"], words["capital"]
    (out / "tokenizer.json").write_text(json.dumps(vocabulary))
    (out / "receipt.json").unlink()
    with pytest.raises(ExportError, match=r"tokenizer in .* gives other ids"):
        verify_export(out, str(base.path))


def test_a_foreign_merge_verifies_without_a_probe(saved, tmp_path) -> None:
    base = saved("llama", tokenizer=True)
    out = tmp_path / "merged"
    export(base.ablated(), to="merged", **base.base, out=out)
    (out / "receipt.json").unlink()
    receipt = verify_export(out, str(base.path))
    assert (receipt.verdict, receipt.probe) == ("verified", "no stored probe")
    with pytest.raises(ExportError, match="loads but changes nothing"):
        verify_export(base.path, str(base.path))


def test_a_merge_of_another_model_is_an_error(saved, tmp_path) -> None:
    base, other = saved("llama"), saved("llama", vocab_size=111)
    export(base.ablated(), to="merged", **base.base, out=tmp_path / "merged")
    with pytest.raises(ExportError, match="made for another base"):
        verify_export(tmp_path / "merged", str(other.path))
    (tmp_path / "merged" / "receipt.json").unlink()
    with pytest.raises(ExportError, match=r"has 97 tokens and .* has 111"):
        verify_export(tmp_path / "merged", str(other.path))


def test_missing_and_truncated_shards_are_named(saved, tmp_path) -> None:
    base = saved("llama")
    out = tmp_path / "merged"
    export(base.ablated(), to="merged", **base.base, out=out)
    (out / "receipt.json").unlink()
    weights = out / "model.safetensors"
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        ExportError, match=r"lacks model-00001-of-00001.safetensors .*; copy it again"
    ):
        verify_export(out, str(base.path))
    (out / "model.safetensors.index.json").unlink()
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"model.safetensors is truncated"):
        verify_export(out, str(base.path))
    weights.unlink()
    with pytest.raises(ExportError, match=r"no model.safetensors and no .*; copy it again"):
        verify_export(out, str(base.path))


def test_a_base_in_another_file_format_is_saved_from_memory(saved, tmp_path) -> None:
    base = in_pickles(saved("llama", tokenizer=True), tmp_path / "base")
    receipt = export(base.ablated(), to="merged", **base.base, out=tmp_path / "merged")
    assert receipt.verdict == "verified"
    assert receipt.notes["written"] == "saved from memory"


def in_pickles(base, folder):
    """The same base with its weights in a ``pytorch_model.bin``."""
    shutil.copytree(base.path, folder)
    (folder / "model.safetensors").unlink()
    torch.save(base.model.state_dict(), folder / "pytorch_model.bin")
    return replace(base, path=folder)


def test_a_model_that_transformers_does_not_save_is_an_error(saved, tmp_path) -> None:
    base = in_pickles(saved("llama", tokenizer=True, seed=4), tmp_path / "base")
    base.model.generation_config.temperature = 0.3  # without do_sample: refused when it is saved
    with pytest.raises(ExportError, match="transformers does not save this model"):
        export(base.ablated(), to="merged", **base.base, out=tmp_path / "merged")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
