"""Attention patterns: weights over earlier real tokens, which times the values are what heads write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toolbox import assert_untouched, opened, relative, state
from torch import nn

from interp.backends import BACKENDS
from interp.backends.opening import wrap
from interp.errors import SiteError
from interp.interventions import scale
from interp.lm import LM
from interp.models.anatomy import Anatomy
from interp.types import TokenBatch


def attention_blocks(anatomy: Anatomy) -> list[int]:
    return sorted({w.block for w in anatomy.block_writers if w.kind == "attention"})


def test_a_pattern_is_over_real_tokens_up_to_the_query(tiny: nn.Module, batch: TokenBatch) -> None:
    lm = LM(wrap(tiny))
    if not (blocks := attention_blocks(lm.anatomy)):
        with pytest.raises(SiteError, match="blocks that have: none"):
            lm.attention(batch, 0)
        return
    before, logits = state(tiny), lm.logits(batch)
    found = lm.attention(batch, blocks[-1])
    assert_untouched(tiny, before)
    assert torch.equal(lm.logits(batch), logits), "attention runs as before"
    seq = batch.ids.shape[1]
    heads = tiny.config.get_text_config().num_attention_heads
    assert found.shape == (len(batch), heads, seq, seq)
    real = batch.mask.bool()
    totals = found.sum(-1).transpose(1, 2)
    sinks = tiny.config.model_type == "gpt_oss"  # where a part of the weight goes to no token
    assert (totals[real] <= 1 + 1e-5).all()
    assert sinks or (totals[real] >= 1 - 1e-5).all()
    assert not found.triu(1).any()
    assert not found.transpose(2, 3)[~real[:, None].expand(-1, heads, -1)].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_patterns_times_values_are_what_heads_write(backend: str, batch: TokenBatch) -> None:
    lm = LM(opened("llama", backend))
    values: list[Any] = []
    module = lm.hf.get_submodule("model.layers.1.self_attn.v_proj")
    hook = module.register_forward_hook(lambda *call: values.append(call[-1]))
    pattern = lm.attention(batch, 1)
    hook.remove()
    heads, width = pattern.shape[1], lm.head(1, 0).stop
    v = values[0].unflatten(-1, (-1, width)).transpose(1, 2)
    z = (pattern @ v.repeat_interleave(heads // v.shape[1], 1))[:, :, -1]
    for head in range(heads):
        place = lm.head(1, head)
        assert relative(z[:, head], lm.activations(batch, place)[place]) < 1e-5


def test_an_edit_changes_the_pattern_and_a_wrong_block_is_an_error(batch: TokenBatch) -> None:
    lm = LM(opened("jamba", "hooks"))
    blocks = attention_blocks(lm.anatomy)
    edit = scale(lm.resid_pre[blocks[0]], 0.0)
    edited, plain = (lm.attention(batch, blocks[0], each) for each in (edit, None))
    assert relative(edited, plain) > 1e-3
    without = min(set(range(lm.n_blocks)) - set(blocks))
    with pytest.raises(SiteError, match=f"block {without} has no attention; blocks that have: "):
        lm.attention(batch, without)
    with pytest.raises(SiteError, match="is outside this model"):
        lm.attention(batch, lm.n_blocks)
