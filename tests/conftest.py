"""Tiny random models, one per ``model_type``, shared by a session: do not change them in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from interp.models import describe, known_model_types, tiny_model
from interp.models.anatomy import Anatomy
from interp.types import TokenBatch

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=known_model_types())
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny(model_type: str) -> nn.Module:
    return tiny_model(model_type)


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Two prompts of 17 tokens without padding, longer than every tiny sliding window."""
    return torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def anatomy(tiny: nn.Module) -> Anatomy:
    return describe(tiny)


@pytest.fixture(scope="session")
def batch() -> TokenBatch:
    """Three prompts of 17, 13 and 16 tokens, left-padded."""
    ids = torch.randint(3, 97, (3, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, :1] = 0
    return TokenBatch(ids * mask, mask)


@pytest.fixture(scope="session")
def tokenizer():  # noqa: ANN201 - a transformers class, imported late
    """A byte-level tokenizer without merges and with a chat template: any text, no download."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    inner = Tokenizer(BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    made.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    made.padding_side = "left"
    return made


@pytest.fixture(scope="session")
def chat_dir(tmp_path_factory: pytest.TempPathFactory, tokenizer):  # noqa: ANN001, ANN201
    """A directory with a tiny tied llama, its tokenizer and chat template, as a user would have it."""
    folder = tmp_path_factory.mktemp("chat-llama")
    tiny_model("llama", vocab_size=259, max_position_embeddings=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
