"""How much every writer carries of an edit, learned: the shares that disturb least for what they remove.

A closed-form edit gives each writer's rank-one parts their shape, and every writer the same share of the
shift. What a part does downstream, and how the parts' errors add up over writers, is no part of that form.
Here one number a part follows the gradient through the model; directions and probes stay as they are, so
that there is too little to learn for the prompts to be learned by heart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.protocol import AnyEdit, Backend
from interp.backends.tail import Tail, frozen
from interp.errors import InterpError
from interp.fitting import BATCH
from interp.hooking import first_argument
from interp.methods.refusal.fit import Fitted
from interp.methods.refusal.prose import LAST
from interp.types import LowRank, TokenBatch, WeightDelta
from interp.watching import Watch, unwatched

STEPS = 16
"""Steps of Adam, over everything at once."""
RATE = 0.1
"""Its step length; shares begin at 1."""
ANSWERED = 240
"""Comply prompts that are read at their last token, at most."""
REQUESTS = 96
"""Refused requests, at most."""
LATER = (2.0, 3.0)
"""What the KL at later tokens weighs beside that at the first: in chats, and in plain text."""
CLEARANCE = 1.0
"""Logits by which what opens a refusal should be beaten."""
STEEPNESS = 2.0
"""Of the softplus in which a margin is counted, per logit."""


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """Log-probabilities ``[n, keep, vocab]`` that are to stay, and what a nat at a token weighs."""

    tail: Tail
    base: Tensor
    weight: float

    def loss(self, logits: Tensor) -> Tensor:
        kl = self.base.exp() * (self.base - logits.float().log_softmax(-1))
        return self.weight * kl.sum()


@dataclass(frozen=True, slots=True, eq=False)
class _Gone:
    """Tokens ``[n, places]`` at places of a tail's, not all of which are to win."""

    tail: Tail
    places: Tensor
    tokens: Tensor
    weight: float

    def loss(self, logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device).unsqueeze(-1)
        here = logits.float()[rows, self.places]
        wanted = self.tokens.unsqueeze(-1)
        ahead = here.gather(-1, wanted).squeeze(-1)
        ahead = ahead - here.scatter(-1, wanted, -torch.inf).amax(-1)
        # The refusal is said only where all of its tokens win.
        reach = STEEPNESS * (ahead.amin(-1) + CLEARANCE)
        return self.weight * nn.functional.softplus(reach).sum() / STEEPNESS


def allocated(
    backend: Backend,
    fitted: Fitted,
    delta: WeightDelta,
    worth: float,
    *,
    steps: int = STEPS,
    batch_size: int = BATCH,
    watch: Watch = unwatched,
) -> WeightDelta:
    """``delta`` with every rank-one part at a share of its own, learned on what ``fitted`` was fitted on.

    Least is ``KL₁ + LATER · KL + worth · mean softplus(margin)``: the KL at the first token of answers to
    the comply prompts, at later tokens of responses (in their chats and as plain text, where the fit has
    read them), and the margin in logits by which the unedited model's own next token still wins at the end
    of a refused request and again once its opener was said; the smaller of the two. worth: nats per logit.
    Only last tokens run again (:class:`interp.backends.tail.Tail`).

    What opens a refusal in other words is not seen: count refusals of the result with a judge that knows
    them, and read some.

    Biases and fused experts keep their share of 1. InterpError for a fit that does not know its prompts.
    """
    if fitted.requests is None or fitted.answered is None:
        raise InterpError(
            "shares are learned on the prompts of the fit, which this one does not know"
        )
    parts, rest = _parted(delta)
    if not parts:
        return delta
    shares = {name: torch.ones(part.rank, requires_grad=True) for name, part in parts.items()}
    terms = [
        *_kept(backend, fitted, delta, batch_size),
        *_removed(backend, fitted, delta, worth, batch_size),
    ]
    optimizer = torch.optim.Adam(list(shares.values()), lr=RATE)
    progress = watch("fit: shares of the writers", steps)
    with frozen(backend.model), backend.editing(rest), _acting(backend, parts, shares):
        for _ in range(steps):
            optimizer.zero_grad()
            for term in terms:
                with torch.enable_grad():
                    term.loss(term.tail.logits(backend.model)).backward()
            optimizer.step()
            progress(1)
    found = {name: share.detach() for name, share in shares.items()}
    updates = {name: replace(part, b=part.b * found[name]) for name, part in parts.items()}
    said = {name: [round(value, 4) for value in share.tolist()] for name, share in found.items()}
    return replace(
        delta,
        updates={**delta.updates, **updates},
        recipe={"shares": said, "worth": worth, "of": dict(delta.recipe)},
    )


def _parted(delta: WeightDelta) -> tuple[dict[str, LowRank], WeightDelta | None]:
    """The updates whose parts get shares, and the delta of the others."""
    parts = {
        name: update
        for name, update in delta
        if isinstance(update, LowRank) and not update.axes.startswith("expert")
    }
    rest = {name: update for name, update in delta if name not in parts}
    return parts, replace(delta, updates=rest) if rest else None


@contextmanager
def _acting(
    backend: Backend, parts: Mapping[str, LowRank], shares: Mapping[str, Tensor]
) -> Iterator[None]:
    """The parts, each at its share, act on what their writers' modules give."""
    modules = {w.weight: w.module for w in backend.anatomy.writers}
    with ExitStack() as stack:
        for name, part in parts.items():
            module = backend.model.get_submodule(modules[name])
            device = next(module.parameters()).device
            act = partial(_act, part.a.float().to(device), part.b.float().to(device), shares[name])
            stack.callback(module.register_forward_hook(act, with_kwargs=True).remove)
        yield


def _act(
    a: Tensor, b: Tensor, share: Tensor, module: nn.Module, args: Any, kwargs: Any, out: Tensor
) -> Tensor:
    inputs = first_argument(args, kwargs)
    added = (inputs.float() @ a.T * share.to(a.device)) @ b.T
    return out + added.to(out.dtype)


def _kept(backend: Backend, fitted: Fitted, edit: AnyEdit, size: int) -> Iterator[_Same]:
    """Answers at their first token, and responses at their last tokens."""
    assert fitted.answered is not None
    prompts = fitted.answered.chosen(fitted.answered.spread(ANSWERED))
    yield from _same(backend, prompts, 1, 1.0, edit, size)
    for batch, weight in zip((fitted.cut.chats, fitted.cut.texts), LATER, strict=True):
        if batch is not None:
            yield from _same(backend, batch, LAST, weight, edit, size)


def _same(
    backend: Backend, batch: TokenBatch, keep: int, weight: float, edit: AnyEdit, size: int
) -> Iterator[_Same]:
    places = tuple(range(-keep, 0))
    each = weight / (len(batch) * keep)
    for chunk in batch.split(size):
        base = backend.logits(chunk, None, places).float().log_softmax(-1)
        tail = Tail.of(backend, chunk, keep, edit)
        yield _Same(tail, base.to(tail.batch.ids.device), each)


def _removed(
    backend: Backend, fitted: Fitted, edit: AnyEdit, worth: float, size: int
) -> Iterator[_Gone]:
    """Refused requests with their opener said: the end of the request, and that of the opener."""
    assert fitted.requests is not None
    batch, said = fitted.requests, torch.zeros(len(fitted.requests), dtype=torch.long)
    if fitted.opened is not None and fitted.opened.requests is not None:
        batch = fitted.opened.requests
        said = batch.lengths - fitted.requests.lengths
    spread = batch.spread(REQUESTS)
    keep = int(said.max()) + 1
    for rows in spread.split(size):
        chunk, back = batch.chosen(rows), said[rows]
        places = torch.stack([keep - 1 - back, torch.full_like(back, keep - 1)], 1)
        logits = backend.logits(chunk, None, tuple(range(-keep, 0)))
        own = logits[torch.arange(len(rows)).unsqueeze(-1), places].argmax(-1)
        tail = Tail.of(backend, chunk, keep, edit)
        device = tail.batch.ids.device
        yield _Gone(tail, places.to(device), own.to(device), worth / len(spread))
