"""What an :class:`interp.lm.LM` gives: activations by site, text, log-probabilities, lenses, patching."""

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

At = str | int | Sequence[int]
"""``"all"``, ``"prompt"``, ``"response"``, or offsets from the end of the prompt (−1: its last token, 0: the
first token of the response)."""


def offsets_of(at: At) -> tuple[int, ...]:
    """The offsets that ``at`` names; none for a span."""
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
    """Mask ``[prompt, position]`` of ``"all"``, the ``"prompt"`` or the ``"response"``. Raises SiteError."""
    offsets = torch.arange(batch.ids.shape[1]) - batch.prompt_end.unsqueeze(-1)
    spans = {"all": offsets == offsets, "prompt": offsets < 0, "response": offsets >= 0}
    if at not in spans:
        raise SiteError(f"at is one of {', '.join(spans)} or offsets, not {at!r}")
    return spans[at] & batch.mask.bool()


def span_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``[prompt, position, d]`` over the positions of a mask, ``[prompt, d]``, summed in float32."""
    if not bool((count := mask.sum(1, keepdim=True)).all()):
        raise PromptError("a response without tokens has no mean; leave out its prompt")
    return ((values.float() * mask.unsqueeze(-1)).sum(1) / count).to(values.dtype)


def read_at(
    backend: Backend, batch: TokenBatch, sites: tuple[Site, ...], at: At
) -> tuple[dict[Site, Tensor], Tensor | None]:
    """Activations of one batch at what ``at`` means, and the mask of a span."""
    if isinstance(at, str):
        mask = span(batch, at)
        whole = backend.capture(batch, sites, None)
        return {s: v * mask.unsqueeze(-1).to(v) for s, v in whole.items()}, mask
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
        """Batches as one cache, in the order of the prompts. Each part: rows, activations, mask of a span.

        Takes the activations out of the parts site by site, so that none is held twice.
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

    ids: ``[*axes, token]``, padded after the end. axes: names, ``prompt`` always, ``strength`` before and
    ``sample`` after where several were asked for.
    """

    ids: Tensor
    axes: tuple[str, ...]
    tokenizer: Any

    @cached_property
    def texts(self) -> list[Any]:
        """Responses without special tokens, in lists nested as the axes are."""
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
        """Log-probability of every response."""
        return torch.stack([each.double().sum() for each in self.tokens])

    @property
    def means(self) -> Float[Tensor, " n"]:
        """Per token of every response."""
        return torch.stack([each.double().mean() for each in self.tokens])


@dataclass(frozen=True, eq=False)
class Lens:
    """What streams read out as through the model's own final norm and unembedding.

    states: ``[1 + block, prompt, d_model]``, the embedding first.
    """

    states: Tensor
    model: nn.Module
    anatomy: Anatomy
    tokenizer: Any

    @torch.no_grad()
    def logits(self, place: int) -> Float[Tensor, "prompt vocab"]:
        """Logits of one state; 0 is the embedding, −1 the last block (the model's own logits)."""
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
        """Probability of a token at every state."""
        index = token_id(self.tokenizer, token)
        rows = [self.logits(i).softmax(-1)[:, index] for i in range(len(self.states))]
        return torch.stack(rows)

    def ranks(self, token: int | str) -> Tensor:
        """Tokens that are more likely than the given one, ``[place, prompt]``; 0 is the most likely."""
        index = token_id(self.tokenizer, token)
        rows = []
        for i in range(len(self.states)):
            logits = self.logits(i)
            rows.append((logits > logits[:, index : index + 1]).sum(-1))
        return torch.stack(rows)

    def top(self, k: int = 5) -> list[list[list[str]]]:
        """The k most likely tokens as text, by state and prompt."""
        found, tokenizer = [], needed(self.tokenizer)
        for i in range(len(self.states)):
            best = self.logits(i).topk(k, -1).indices
            found.append([[tokenizer.decode([t]) for t in row] for row in best.tolist()])
        return found


@dataclass(frozen=True, eq=False)
class Patching:
    """Effects of activation patching.

    effects: metric of the corrupted run with one clean activation in it, ``[site, offset, prompt]``. clean,
    corrupted: metric of the two runs, ``[prompt]``.
    """

    sites: tuple[Place, ...]
    offsets: tuple[int, ...]
    effects: Float[Tensor, "site offset prompt"]
    clean: Float[Tensor, " prompt"]
    corrupted: Float[Tensor, " prompt"]

    @property
    def restored(self) -> Float[Tensor, "site offset"]:
        """Share of the difference between the runs that comes back, of means over prompts.

        Raises PromptError where the metric is the same in both runs.
        """
        whole = (self.clean - self.corrupted).mean()
        if not whole:
            raise PromptError(
                "the metric is the same in both runs; choose prompts that differ in it"
            )
        return (self.effects - self.corrupted).mean(-1) / whole
