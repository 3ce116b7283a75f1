"""Tiny random models from configs: every law runs on one per family, with no network.

Sizes of experts are multiples of 8, which the grouped matrix product needs in bf16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.models.anatomy import Family

_NORM = re.compile(r"norm|\.ln_")


def build(
    model_type: str, family: Family, *, seed: int = 0, dtype: Any = None, **overrides: Any
) -> nn.Module:
    """A seeded random model of ``model_type`` in eval mode, fp32 unless ``dtype`` is given."""
    from transformers import AutoConfig

    from interp.architectures import register
    from interp.models import auto_class

    register(model_type)
    config = AutoConfig.for_model(model_type, **_sizes(family.tiny[model_type], overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto_class(config).from_config(config, dtype=torch.float32)
        _randomise(model)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the default kernel knows no fp64
    return model.to(dtype or torch.float32).eval()


def _sizes(tiny: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Config values; what is not set beside a text stack is a value of the text stack."""
    if "text_config" not in tiny:
        return {**tiny, **overrides}
    inner = {k: v for k, v in overrides.items() if k not in tiny}
    outer = {k: v for k, v in overrides.items() if k in tiny}
    text = {**tiny["text_config"], **outer.pop("text_config", {}), **inner}
    return {**tiny, **outer, "text_config": text}


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Give every gain, bias and matrix a value that is neither 0 nor 1.

    SSM time constants (``A_log``, ``dt_*``) keep their own initialisation: random ones make the
    recurrence blow up.
    """
    for name, param in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "D" or _NORM.search(name):
            param.add_(0.3 * torch.randn_like(param))
        elif leaf == "A_log" or ".dt_" in name:
            continue
        elif param.ndim == 1 or leaf.endswith("bias"):
            param.copy_(0.2 * torch.randn_like(param))
        else:
            param.copy_(torch.randn_like(param) * (1.2 / param.shape[-1] ** 0.5))


BYTES = 256
SPECIAL = ("<pad>", "<s>", "</s>")
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_tokenizer() -> Any:
    """A byte-level tokenizer without merges and with a chat template: any text, no download."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(BPE(vocab={t: i for i, t in enumerate([*SPECIAL, *alphabet])}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, bos_token=bos, eos_token=eos
    )
    made.chat_template = TEMPLATE
    made.padding_side = "left"
    return made


def save_tiny(model_type: str, family: Family, folder: Path) -> None:
    """A tiny model that speaks bytes, as a directory like any other: what ``tiny:TYPE`` opens."""
    vocab = len(SPECIAL) + BYTES
    build(model_type, family, vocab_size=vocab, max_position_embeddings=512).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
