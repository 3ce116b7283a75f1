"""Tiny models saved to disk, deltas of them, and a reload that stays in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from interp.edits import Edit, ablation, to_delta
from interp.export import exchange, reload
from interp.models import describe, tiny_model
from interp.models.anatomy import Anatomy
from interp.models.loading import load
from interp.operators import LeastDisturbance
from interp.types import Direction, LowRank, WeightDelta

TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"


@dataclass(frozen=True)
class Saved:
    """A base model on disk, opened from there as a user would open it."""

    path: Path
    model: nn.Module
    tokenizer: Any
    anatomy: Anatomy

    @property
    def base(self) -> dict[str, Any]:
        """The arguments of ``export`` that name the base, for edits without a figure card."""
        opened = (self.model, self.tokenizer, self.anatomy)
        return {"base": opened, "base_name": str(self.path), "unproven": True}

    def ablated(self, *, seed: int = 1, weights: bool = False, **options: Any) -> WeightDelta:
        """Ablation of a random direction; ``weights`` leaves the bias updates out."""
        generator = torch.Generator().manual_seed(seed)
        vector = torch.randn(self.anatomy.d_model, generator=generator)
        unit = Direction(vector / vector.norm(), 0, "random")
        delta = to_delta(
            self.model, self.anatomy, ablation(self.model, self.anatomy, unit, **options)
        )
        kept = {k: u for k, u in delta if isinstance(u, LowRank) or not weights}
        return replace(delta, updates=kept)

    def disturbed(self) -> WeightDelta:
        """A rank-1 update with its own probe in every expert, which ablation does not have."""
        generator = torch.Generator().manual_seed(2)
        operators = {}
        for writer in self.anatomy.block_writers:
            unit = torch.randn(writer.d_out, generator=generator)
            shape = (writer.shape[0], writer.d_in) if writer.fused else (writer.d_in,)
            probe = torch.randn(shape, generator=generator) / writer.d_in**0.5
            operators[writer.weight] = LeastDisturbance(unit / unit.norm(), probe, 0.7)
        return to_delta(self.model, self.anatomy, Edit(operators, recipe={"method": "probe"}))


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[EOS]", "the", "capital", "of", "France", "is", "time", "now", "2"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Saved]:
    """``saved(model_type, seed=…, dtype=…, tokenizer=True)``: shared, not to be changed."""

    @cache
    def make(
        model_type: str, *, tokenizer: bool = False, dtype: str = "float32", **options: Any
    ) -> Saved:
        path = tmp_path_factory.mktemp(model_type)
        model = tiny_model(model_type, dtype=getattr(torch, dtype), **options)
        model.generation_config.max_new_tokens = 7  # type: ignore[union-attr]
        model.save_pretrained(path)  # type: ignore[operator]
        if tokenizer:
            word_tokenizer().save_pretrained(path)
        opened, own = load(str(path))
        return Saved(path, opened, own, describe(opened))

    return make


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer reload requests here instead of in a fresh process."""
    monkeypatch.setattr(exchange, "ask", reload.answer)
