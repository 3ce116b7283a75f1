"""Probabilities of the numbers 0 to 100 as a model's reply, whatever the tokens they are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from interp.backends.limits import admitted
from interp.backends.tail import Tail
from interp.errors import JudgeError, NotFinite
from interp.judges.rubric import HIGHEST, LOWEST
from interp.lm import LM
from interp.types import TokenBatch

TokenPath: TypeAlias = tuple[int, ...]
"""Token ids from the start of a reply."""


def number_paths(tokenizer: Any, opening: str = "") -> dict[TokenPath, int]:
    """Token ids of ``opening`` and every number → the number. JudgeError where two have the same tokens."""
    paths = {
        tuple(tokenizer(f"{opening}{number}", add_special_tokens=False).input_ids): number
        for number in range(LOWEST, HIGHEST + 1)
    }
    if len(paths) != HIGHEST - LOWEST + 1 or () in paths:
        raise JudgeError("this tokenizer cannot write numbers, so its model cannot give scores")
    return paths


@torch.no_grad()
def number_probabilities(lm: LM, batch: TokenBatch) -> Float[Tensor, "n 101"]:
    """Probability that the reply to each prompt begins with each number, in float64.

    Where numbers are split into digits, the tokens of each are followed: "5", "57" and "100" take one, two
    and three. A number that could go on to another one up to 100 counts in so far as it does not. A reply
    may begin with a space where the prompt does not end in white space. The number of forward passes is
    that of the distinct beginnings (1 for one token a number, 11 for digits), each of a token or two where
    the model can keep the prompts in a cache. Raises PromptError for prompts too long, NotFinite.
    """
    paths = number_paths(lm.tokenizer)
    if not lm.tokenizer.decode(batch.ids[0, -1:])[-1:].isspace():
        paths |= number_paths(lm.tokenizer, " ")
    found = torch.zeros(len(batch), HIGHEST - LOWEST + 1, dtype=torch.float64)
    progress = lm.watch("scores", len(batch))
    for rows in batch.lengths.argsort(stable=True).split(lm.batch_size):
        found[rows] = _walked(lm, batch.chosen(rows), paths)
        progress(len(rows))
    return found


def _walked(lm: LM, batch: TokenBatch, paths: dict[TokenPath, int]) -> Float[Tensor, "n 101"]:
    """Probabilities of one batch: products along paths, begun at the prompt."""
    longest = max(map(len, paths))
    backend = lm.backend
    batch = admitted(backend.model, backend.tokenizer, backend.anatomy, batch, longest)
    start = Tail.of(backend, batch, keep=1)
    reached: dict[TokenPath, Tensor] = {(): torch.ones(len(batch), dtype=torch.float64)}
    for path in _beginnings(paths):
        chances = _next_token(lm, start, path)
        nexts = sorted({other[len(path)] for other in paths if _goes_on(path, other)})
        for token in nexts:
            reached[(*path, token)] = reached[path] * chances[:, token]
        if path in paths:
            reached[path] = reached[path] * (1.0 - chances[:, nexts].sum(-1)).clamp(min=0.0)
    found = torch.zeros(len(batch), HIGHEST - LOWEST + 1, dtype=torch.float64)
    for path, number in paths.items():
        found[:, number - LOWEST] += reached[path]
    return found


def _goes_on(path: TokenPath, other: TokenPath) -> bool:
    return len(other) > len(path) and other[: len(path)] == path


def _beginnings(paths: dict[TokenPath, int]) -> Iterator[TokenPath]:
    """Every path after which another token decides, the shortest first."""
    yield from sorted({path[:n] for path in paths for n in range(len(path))}, key=len)


def _next_token(lm: LM, start: Tail, path: TokenPath) -> Float[Tensor, "n vocab"]:
    """Probabilities of the token that follows each prompt and ``path``."""
    more = torch.tensor(path, dtype=torch.long).expand(len(start.batch), -1)
    batch = start.batch.extended(more.to(start.batch.ids)) if path else start.batch
    logits = Tail(batch, start.keep + len(path), start.past).logits(lm.hf)[:, -1]
    if not bool(logits.isfinite().all()):
        raise NotFinite("the judging model gives NaN or infinity; open it with dtype='float32'")
    return logits.double().softmax(-1).cpu()
