"""What happens at every step of a generation: sampling with a seed per row, and stopping early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.errors import InterpError

Decided = Callable[[list[str]], Sequence[bool]]
"""``decided(texts)``: which responses need no further token."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    temperature: divides logits; 0 is greedy. samples: responses per prompt. seed: with the numbers of prompt
    and sample it fixes every draw, whatever the batch size and the backend. top_k, top_p: as in transformers.
    """

    temperature: float = 1.0
    samples: int = 1
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise InterpError(f"a temperature is a number from 0 on, got {self.temperature}")
        if self.samples < 1:
            raise InterpError(f"samples are counted from 1, got {self.samples}")
        if self.top_k is not None and self.top_k < 1:
            raise InterpError(f"top_k is a number of tokens from 1 on, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InterpError(f"top_p is a probability above 0, got {self.top_p}")


@dataclass(frozen=True, slots=True)
class Steps:
    """Logits processors and stopping criteria of transformers, for one batch."""

    processors: tuple[Any, ...] = ()
    criteria: tuple[Any, ...] = ()


class Draws:
    """A logits processor after which the largest score is a draw from the softmax (the Gumbel-max trick).

    keys: the numbers of prompt and sample of every row; rows with one key draw alike. columns: of the
    prompts.
    """

    def __init__(self, sampling: Sampling, keys: Sequence[tuple[int, int]], columns: int) -> None:
        self.sampling, self.keys, self.columns = sampling, keys, columns

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        wide = scores.float() / self.sampling.temperature
        if self.sampling.top_k is not None:
            wide = TopKLogitsWarper(self.sampling.top_k)(ids, wide)
        if self.sampling.top_p is not None:
            wide = TopPLogitsWarper(self.sampling.top_p)(ids, wide)
        step = ids.shape[1] - self.columns
        noise = [self._noise(key, step, scores.shape[-1]) for key in self.keys]
        return wide + torch.stack(noise).to(wide)

    def _noise(self, key: tuple[int, int], step: int, vocabulary: int) -> Tensor:
        """Gumbel noise of one row at one step, drawn on the CPU so that hardware does not matter."""
        generator = torch.Generator().manual_seed(_mixed(self.sampling.seed, *key, step))
        uniform = torch.rand(vocabulary, generator=generator, dtype=torch.float64)
        return -(-uniform.clamp_min(torch.finfo(torch.float64).tiny).log()).log()


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    from interp.files import sha256_text

    return int(sha256_text(*map(str, numbers))[:15], 16)


class Until:
    """A stopping criterion: rows end when ``decided`` says so of their text, asked every few tokens."""

    EVERY = 4

    def __init__(self, tokenizer: Any, decided: Decided, columns: int) -> None:
        self.tokenizer, self.decided, self.columns = tokenizer, decided, columns

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        new = ids[:, self.columns :]
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        if new.shape[1] % self.EVERY == 0:
            texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            ended |= torch.tensor([bool(d) for d in self.decided(texts)], device=ids.device)
        return ended
