"""Results of an :class:`interp.lm.LM`: activations by site, texts, log-probabilities, lenses, patching."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.backends.protocol import Backend
from interp.data.tokens import needed, token_id
from interp.errors import InterpError, PromptError, SiteError
from interp.models.anatomy import Anatomy
from interp.places import Place
from interp.sites import Site
from interp.types import TokenBatch

Metric = Callable[[Tensor], Tensor]
"""Logits ``[prompt, vocab]`` → one number per prompt, ``[prompt]``."""

At = str | int | Sequence[int]
"""Positions to read: ``"all"``, ``"prompt"``, ``"response"``, or offsets from the end of the prompt (−1: its
last token, 0: the first token of the response)."""


def offsets_of(at: At) -> tuple[int, ...]:
    """Offsets that ``at`` lists; empty for a span."""
    if isinstance(at, str):
        return ()
    return (at,) if isinstance(at, int) else tuple(at)


def check_offsets(batch: TokenBatch, offsets: Sequence[int]) -> None:
    """Raise SiteError for an offset, counted from the end of the prompt, that lies outside some row."""
    before = batch.lengths - (batch.ids.shape[1] - batch.prompt_end)
    after = batch.ids.shape[1] - batch.prompt_end
    for offset in offsets:
        if outside := ((offset < -before) | (offset >= after)).nonzero().flatten().tolist():
            row = outside[0]
            raise SiteError(
                f"offset {offset} is outside prompt {row + 1}, which has {int(before[row])} tokens and a "
                f"response of {int(after[row])}; −1 is the last prompt token"
            )


def span(batch: TokenBatch, at: str) -> Tensor:
    """Mask ``[prompt, position]`` of the tokens of a span, padding left out.

    Raises SiteError for a span other than ``"all"``, ``"prompt"`` and ``"response"``.
    """
    offsets = torch.arange(batch.ids.shape[1]) - batch.prompt_end.unsqueeze(-1)
    spans = {"all": offsets == offsets, "prompt": offsets < 0, "response": offsets >= 0}
    if at not in spans:
        raise SiteError(f"at is one of {', '.join(spans)} or offsets, not {at!r}")
    return spans[at] & batch.mask.bool()


def span_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions of a mask, ``[prompt, d]``, summed in float32.

    values: ``[prompt, position, d]``. mask: ``[prompt, position]``. Raises PromptError for a row without any
    position.
    """
    if not bool((count := mask.sum(1, keepdim=True)).all()):
        raise PromptError("a span without tokens has no mean; leave out its prompt")
    # Padding may hold NaN, which a product with 0 would keep.
    kept = values.float().masked_fill(~mask.bool().unsqueeze(-1), 0.0)
    return (kept.sum(1) / count).to(values.dtype)


def read_at(
    backend: Backend, batch: TokenBatch, sites: tuple[Site, ...], at: At
) -> tuple[dict[Site, Tensor], Tensor | None]:
    """Activations by site of one batch, and the mask ``[prompt, position]`` of a span, else None.

    at: one offset gives ``[prompt, d]``, several ``[prompt, offset, d]``; a span gives
    ``[prompt, position, d]``, zeros outside of the span.
    """
    if isinstance(at, str):
        mask = span(batch, at)
        whole = backend.capture(batch, sites, None)
        outside = ~mask.unsqueeze(-1)
        return {s: v.masked_fill(outside.to(v.device), 0) for s, v in whole.items()}, mask
    offsets, ends = offsets_of(at), batch.prompt_end
    if (ends == ends[0]).all():  # every row is read in the same columns: no other is kept
        shift = int(ends[0]) - batch.ids.shape[1]
        columns = tuple(offset + shift for offset in offsets)
        taken = backend.capture(batch, sites, columns)
    else:
        whole = backend.capture(batch, sites, None)
        columns, rows = ends.unsqueeze(-1) + torch.tensor(offsets), torch.arange(len(batch))
        taken = {s: v[rows.unsqueeze(-1), columns] for s, v in whole.items()}
    return {s: v[:, 0] for s, v in taken.items()} if isinstance(at, int) else taken, None


def check_reduce(reduce: str | None, at: At) -> None:
    """Raise InterpError for a reduction that is unknown, or of one position."""
    if reduce not in (None, "mean"):
        raise InterpError(f"reduce is None or 'mean', not {reduce!r}")
    if reduce is not None and isinstance(at, int):
        raise InterpError(f"reduce='mean' is over a span or several offsets, and at={at} is one")


class Cache(Mapping[Place, Tensor]):
    """Activations by site.

    Keys are sites, heads and neurons (:class:`interp.places.SitePart`), kind and block
    (``cache["resid_post", 5]``, ``cache["mlp", 5]``), and TransformerLens names
    (``cache["blocks.5.hook_resid_post"]``, ``cache["z", 5]``). Values are ``[prompt, d]``, or
    ``[prompt, position, d]`` with zeros as padding; z has two axes in place of ``d``: ``head, d_head``.

    named: the place that a key means. mask: which ``[prompt, position]`` are real; None where values have no
    axis of positions. Raises SiteError for a site that is not in the cache.
    """

    def __init__(
        self,
        values: Mapping[Any, Tensor],
        named: Callable[[Any], Place],
        mask: Tensor | None = None,
    ) -> None:
        self._values = dict(values)
        self._named = named
        self.mask = mask

    @classmethod
    def joined(
        cls,
        sites: Sequence[Site],
        parts: Sequence[tuple[Tensor, dict[Site, Tensor], Tensor | None]],
        named: Callable[[Any], Place],
    ) -> Cache:
        """One cache of several batches, in the order of the prompts.

        parts: rows, activations by site and mask of a span, of each batch. Activations are removed from the
        parts site by site, so that memory holds each once.
        """
        back = torch.cat([rows for rows, _, _ in parts]).argsort()
        widths = [mask.shape[1] for _, _, mask in parts if mask is not None]
        width = max(widths, default=0)

        def aligned(value: Tensor, mask: Tensor | None) -> Tensor:
            if mask is None:
                return value
            return nn.functional.pad(value, (0, 0, width - value.shape[1], 0))

        values = {
            site: torch.cat([aligned(found.pop(site), mask) for _, found, mask in parts])[back]
            for site in sites
        }
        masks = [
            nn.functional.pad(mask, (width - mask.shape[1], 0))
            for _, _, mask in parts
            if mask is not None
        ]
        return cls(values, named, torch.cat(masks)[back] if masks else None)

    def __getitem__(self, key: Place | str | tuple[str, int]) -> Tensor:
        place = self._named(key)
        if (found := self._values.get(place)) is not None:
            return found
        if not isinstance(place, Site):
            return place.take(self[place.site])
        here = ", ".join(str(site) for site in list(self._values)[:4])
        raise SiteError(f"{key} is not in this cache; it holds {here} …")

    def __iter__(self) -> Iterator[Place]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(self[key], Tensor)  # type: ignore[index]
        except (SiteError, TypeError, ValueError):
            return False


@dataclass(frozen=True, eq=False)
class Generated:
    """Responses as tokens and as text.

    ids: ``[*axes, token]``, padded after the end of a response. axes: names of the axes before the last, in
    the order ``strength``, ``prompt``, ``sample``; ``strength`` and ``sample`` exist only where there are
    several.
    """

    ids: Tensor
    axes: tuple[str, ...]
    tokenizer: Any

    @cached_property
    def texts(self) -> list[Any]:
        """Responses without special tokens, as lists of texts nested in the order of ``axes``."""
        flat = self.ids.flatten(0, -2)
        texts: list[Any] = needed(self.tokenizer).batch_decode(flat, skip_special_tokens=True)
        for size in reversed(self.ids.shape[1:-1]):
            texts = [texts[i : i + size] for i in range(0, len(texts), size)]
        return texts


@dataclass(frozen=True, eq=False)
class LogProbs:
    """Log-probabilities of given responses in nats: one tensor ``[token]`` per response."""

    tokens: tuple[Tensor, ...]

    @property
    def sums(self) -> Float[Tensor, " n"]:
        """Log-probability of every response, in nats."""
        return torch.stack([each.double().sum() for each in self.tokens])

    @property
    def means(self) -> Float[Tensor, " n"]:
        """Mean log-probability per token of every response, in nats."""
        return torch.stack([each.double().mean() for each in self.tokens])


@dataclass(frozen=True, eq=False)
class Lens:
    """Predictions from the stream of every block, through the model's final norm and unembedding.

    states: ``[place, prompt, d_model]``; place 0 is the embedding, place 1 + i the output of block i.
    """

    states: Tensor
    model: nn.Module
    anatomy: Anatomy
    tokenizer: Any

    @torch.no_grad()
    def logits(self, place: int) -> Float[Tensor, "prompt vocab"]:
        """Logits at one place; 0 is the embedding, −1 the last block, which gives the model's own logits."""
        anatomy = self.anatomy
        norm = self.model.get_submodule(anatomy.final_norm)
        head = self.model.get_submodule(anatomy.unembed)
        weight = next(head.parameters())
        state = self.states[place].to(weight)
        found = head(norm(state)) * anatomy.logit_scale
        if anatomy.logit_cap is not None:
            found = anatomy.logit_cap * torch.tanh(found / anatomy.logit_cap)
        return found.float().cpu()

    def probabilities(self, token: int | str) -> Float[Tensor, "place prompt"]:
        """Probability of a token at every place."""
        index = token_id(self.tokenizer, token)
        rows = [self.logits(i).softmax(-1)[:, index] for i in range(len(self.states))]
        return torch.stack(rows)

    def ranks(self, token: int | str) -> Tensor:
        """Rank of a token at every place, ``[place, prompt]``; the most likely token has rank 0."""
        index = token_id(self.tokenizer, token)
        rows = []
        for i in range(len(self.states)):
            logits = self.logits(i)
            rows.append((logits > logits[:, index : index + 1]).sum(-1))
        return torch.stack(rows)

    def top(self, k: int = 5) -> list[list[list[str]]]:
        """The k most likely tokens as text, most likely first: ``[place][prompt][k]``."""
        found, tokenizer = [], needed(self.tokenizer)
        for i in range(len(self.states)):
            best = self.logits(i).topk(k, -1).indices
            found.append([[tokenizer.decode([t]) for t in row] for row in best.tolist()])
        return found


def measured(metric: Metric, logits: Tensor) -> Tensor:
    """The metric of logits ``[prompt, vocab]``, ``[prompt]``. SiteError for a metric of another shape."""
    found = torch.as_tensor(metric(logits))
    if found.shape != logits.shape[:1]:
        raise SiteError(
            f"the metric gives shape {list(found.shape)}; give one number per prompt, {len(logits)} here"
        )
    return found


@dataclass(frozen=True, eq=False)
class Patching:
    """Effects of activation patching.

    effects: metric of the corrupted run with one clean activation in it. clean, corrupted: metric of the two
    runs without a patch.
    """

    sites: tuple[Place, ...]
    offsets: tuple[int, ...]
    effects: Float[Tensor, "site offset prompt"]
    clean: Float[Tensor, " prompt"]
    corrupted: Float[Tensor, " prompt"]

    @property
    def restored(self) -> Float[Tensor, "site offset"]:
        """Share of the difference between the two runs that a patch restores, of means over prompts.

        0: the patch changes nothing; 1: the metric is that of the clean run. Raises PromptError where the
        metric is the same in both runs.
        """
        whole = (self.clean - self.corrupted).mean()
        if not whole:
            raise PromptError(
                "the metric is the same in both runs; choose prompts that differ in it"
            )
        return (self.effects - self.corrupted).mean(-1) / whole
