"""Directions as heretic computes them, to the last bit: the order of every rounding matters here.

Ours elsewhere (:func:`interp.fitting.directions`) reads every block's own output. heretic takes HF's
``hidden_states``: row 0 is the embedding, and the last row has been through the final norm, so that
its last direction lives in another space than the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from interp.backends.finite import all_finite
from interp.backends.generation import padding_id
from interp.backends.limits import admitted, vocabulary
from interp.backends.protocol import Backend
from interp.data.prompts import PromptSet
from interp.errors import NoDirection, NotFinite, PromptError
from interp.lm import LM
from interp.types import TokenBatch
from interp.watching import Progress

SYSTEM = "You are a helpful assistant."
"""heretic writes a system turn into every conversation; this is its default."""
BATCH = 8
"""Prompts of one forward pass; another number rounds otherwise than heretic does."""

Rows = Float[Tensor, "rows d_model"]


def residual_directions(
    lm: LM,
    refuse: PromptSet,
    comply: PromptSet,
    *,
    system: str = SYSTEM,
    prefix: str = "",
    orthogonalize: bool = True,
    winsorization: float = 1.0,
) -> Rows:
    """Unit directions ``[n_blocks + 1, d_model]`` in fp32; row i + 1 belongs to block i.

    ``r = unit(mean_refuse − mean_comply)`` and, if ``orthogonalize``, ``unit(r − (r·g) g)`` with g the
    unit comply mean. winsorization: quantile of |x| to clip each row at; 1 clips nothing.
    Raises PromptError without a chat template that takes a system turn, NoDirection where the
    classes do not differ in any row.
    """
    progress = lm.watch("directions", len(refuse) + len(comply))
    texts = (render(lm.tokenizer, side.prompts, system, prefix) for side in (comply, refuse))
    good, bad = (_mean(lm.backend, each, winsorization, progress) for each in texts)
    found = normalize(bad - good, p=2, dim=1)
    if orthogonalize:
        toward = normalize(good, p=2, dim=1)
        along = torch.sum(found * toward, dim=1)
        found = normalize(found - along.unsqueeze(1) * toward, p=2, dim=1)
    if not bool(found.isfinite().all()) or not bool(found[1:].any()):
        raise NoDirection("the two classes have the same residuals; give other prompts")
    return found


def render(tokenizer: Any, prompts: Sequence[str], system: str, prefix: str) -> list[str]:
    """Conversations as text, ending where the answer begins."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise PromptError("heretic needs a chat template, which this model does not have")
    chats = [
        [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        for prompt in prompts
    ]
    try:
        texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    except Exception as error:
        raise PromptError(
            f"heretic needs a chat template that takes a system turn; this one fails: {error}"
        ) from error
    if not all(texts) or (len(set(texts)) == 1 and len(set(prompts)) > 1):
        raise PromptError("the chat template leaves out the prompt; give the model its own")
    return [text + prefix for text in texts]


@torch.no_grad()
def _mean(backend: Backend, texts: Sequence[str], winsorization: float, progress: Progress) -> Rows:
    total, count = None, 0
    for start in range(0, len(texts), BATCH):
        rows = _residuals(backend, list(texts[start : start + BATCH]))
        if 0 <= winsorization < 1:
            limit = torch.quantile(rows.abs(), winsorization, dim=2, keepdim=True)
            rows = torch.clamp(rows, -limit, limit)
        part = rows.sum(dim=0, dtype=torch.float64).cpu()
        total = part if total is None else total + part
        count += len(rows)
        progress(len(rows))
    assert total is not None
    return (total / count).to(torch.float32)


def _residuals(backend: Backend, texts: list[str]) -> Float[Tensor, "batch rows d_model"]:
    """HF's ``hidden_states`` at the last position in fp32, by the very call that heretic makes."""
    model: Any = backend.model
    inputs = backend.tokenizer(
        texts, return_tensors="pt", padding=True, return_token_type_ids=False
    )
    batch = TokenBatch(inputs["input_ids"], inputs["attention_mask"])
    batch = admitted(model, backend.tokenizer, backend.anatomy, batch, 1).to(model.device)
    inputs["input_ids"], inputs["attention_mask"] = batch.ids, batch.mask
    output = model.generate(
        **inputs.to(model.device),
        max_new_tokens=1,
        output_hidden_states=True,
        return_dict_in_generate=True,
        use_cache=False,
        pad_token_id=padding_id(backend.tokenizer, model, vocabulary(backend.anatomy)),
        do_sample=False,
    )
    found = torch.stack([row[:, -1, :] for row in output.hidden_states[0]], dim=1).float()
    if not all_finite(found):
        backend.logits(batch)  # which names the block
        raise NotFinite("the hidden states of this model hold NaN or infinity; use another dtype")
    return found
