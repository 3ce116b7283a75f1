"""What a model cannot be given, and numbers that it cannot have given, are one error on every backend."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.backends import open_model
from interp.backends.opening import BACKENDS, wrap
from interp.backends.tail import Tail
from interp.data import PromptSet, encode
from interp.errors import NotFinite, PromptError
from interp.evaluate.measure import Bench
from interp.lm import LM
from interp.models import tiny_model
from interp.models.loading import load_tokenizer
from interp.sites import Site
from interp.types import TokenBatch

VOCAB = 259
LAST = Site.resid_post(2)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tokenizer(chat_dir: Path) -> Any:
    """From a directory: TransformerLens opens a tokenizer a second time."""
    return load_tokenizer(str(chat_dir))


def speaking(kind: str, backend: str, tokenizer: Any, **config: int) -> Any:
    return wrap(tiny_model(kind, vocab_size=VOCAB, **config), tokenizer, backend=backend)


def test_a_padding_token_without_a_row_changes_nothing(backend: str, tokenizer: Any) -> None:
    prompts = encode(tokenizer, ["hi", "a longer prompt"])
    plain = speaking("llama", "hooks", tokenizer)
    end = int(plain.generate(prompts, tokens=1)[0])  # then the first row is padded from there on
    lm = speaking("llama", backend, tokenizer, eos_token_id=end)
    before = encode(lm.tokenizer, ["hi", "a longer prompt"])
    expected = lm.logits(before), lm.generate(before, tokens=6)
    lm.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    batch = encode(lm.tokenizer, ["hi", "a longer prompt"])
    assert int(batch.ids.max()) == VOCAB
    assert torch.equal(lm.logits(batch), expected[0])
    found = lm.generate(batch, tokens=6)
    assert int(found.max()) < VOCAB
    texts = [lm.tokenizer.batch_decode(x, skip_special_tokens=True) for x in (found, expected[1])]
    assert texts[0] == texts[1]
    assert lm.capture(batch, [LAST])[LAST].shape == (2, 32)
    assert Tail.of(lm, batch, 1).logits(lm.model).shape == (2, 1, VOCAB)


def test_a_token_without_a_row_is_named_with_its_prompt(backend: str, tokenizer: Any) -> None:
    lm = speaking("llama", backend, tokenizer)
    lm.tokenizer.add_tokens(["<extra>"])
    batch = encode(lm.tokenizer, ["fine", "with <extra> in it"])
    for run in (lm.logits, lambda b: lm.generate(b, tokens=2), lambda b: lm.capture(b, [LAST])):
        with pytest.raises(
            PromptError, match=r"with <extra> in it.*'<extra>' \(id 259\).*259 rows"
        ):
            run(batch)


@pytest.mark.parametrize(("kind", "size"), [("gpt2", "n_positions"), ("gptj", "n_positions")])
def test_a_prompt_beyond_the_positions_is_named(
    backend: str, kind: str, size: str, tokenizer: Any
) -> None:
    lm = speaking(kind, backend, tokenizer, **{size: 32})
    exact = TokenBatch(torch.full((1, 32), 70), torch.ones(1, 32, dtype=torch.long))
    assert lm.logits(exact).shape == (1, VOCAB)
    assert lm.generate(exact, tokens=1).shape == (1, 1)
    with pytest.raises(
        PromptError, match=r"ddd.*32 tokens and is to be followed by 2.*32 positions"
    ):
        lm.generate(exact, tokens=2)
    longer = TokenBatch(torch.full((1, 33), 70), torch.ones(1, 33, dtype=torch.long))
    with pytest.raises(PromptError, match=f"33 tokens; this {kind} has 32 positions"):
        lm.logits(longer)


def test_the_limit_of_rotary_positions_is_soft(tokenizer: Any) -> None:
    lm = speaking("llama", "hooks", tokenizer, max_position_embeddings=32)
    assert lm.logits(encode(lm.tokenizer, ["x" * 60])).isfinite().all()


def overflowing(dtype: torch.dtype):
    model = tiny_model("llama", vocab_size=VOCAB)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3e5)
    return model.to(dtype)


def test_an_overflow_names_the_block_and_the_dtype(backend: str, tokenizer: Any) -> None:
    wide = wrap(overflowing(torch.bfloat16), tokenizer, backend=backend)
    batch = encode(wide.tokenizer, ["hi", "a longer prompt"])
    assert wide.logits(batch).isfinite().all()
    message = "block 1 is the first to give NaN or infinity in float16.*bfloat16"
    if backend == "transformer_lens":  # the bridge is compared with the model when it is made
        with pytest.raises(NotFinite, match=message):
            wrap(overflowing(torch.float16), tokenizer, backend=backend)
        return
    lm = wrap(overflowing(torch.float16), tokenizer, backend=backend)
    for run in (
        lambda: lm.logits(batch),
        lambda: lm.logits(batch, None, None),
        lambda: lm.generate(batch, tokens=3),
        lambda: lm.capture(batch, [LAST]),
    ):
        with pytest.raises(NotFinite, match=message):
            run()
    assert lm.capture(batch, [Site.resid_post(0)])  # what lies before is read as ever


@pytest.mark.parametrize(
    ("weight", "value", "place"),
    [
        ("model.layers.2.mlp.up_proj.weight", "NaN", "block 2"),
        ("model.layers.2.mlp.up_proj.weight", "infinity", "block 2"),
        ("model.norm.weight", "infinity", "the unembedding"),
        ("lm_head.weight", "NaN", "the unembedding"),
    ],
)
def test_a_damaged_weight_is_named(weight: str, value: str, place: str, tokenizer: Any) -> None:
    lm = speaking("llama", "hooks", tokenizer, tie_word_embeddings=False)
    with torch.no_grad():
        lm.model.get_parameter(weight).flatten()[0] = float(value)
    with pytest.raises(NotFinite, match=rf"{place} .*{re.escape(weight)} holds {value}"):
        lm.logits(encode(lm.tokenizer, ["hi"]))


def test_nothing_that_is_not_finite_is_counted_as_a_refusal(chat_dir) -> None:
    lm = open_model(str(chat_dir))
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(float("inf"))
    prompts = PromptSet(("one", "two"), source="here")
    with pytest.raises(NotFinite, match="unembedding"):
        Bench(LM(lm), prompts, prompts)
