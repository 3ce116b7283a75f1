"""What an edit writes into the stream, learned: the least change that removes as much.

A closed-form edit reads with the probes that disturb least and writes along one direction, the difference
of means, of which "do not begin with I" is a part and much else is not. For a prompt that is read as half
a refusal all of it happens by half. So the probes stay as they are and what each of them writes is learned
through the model: every vocabulary entry of every answer says what it should leave alone, and that is
plenty for a few vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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

WORTH = 0.06
"""Nats of KL that a logit of refusal left in a request may cost, where nothing else is said."""
STEPS = 16
"""Steps of Adam, over everything at once."""
RATE = 0.1
"""Its step length, of the root mean square of what a part writes."""
TOWARD = 0.4
"""Share of the way to the refused requests at which comply prompts are read once more: prompts of the fit are
read as almost no refusal, others now and then as half of one."""
DOUBT = 0.1
"""What the KL there weighs beside that of what was read."""
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
LEARNED = (STEPS, RATE, TOWARD, DOUBT, ANSWERED, REQUESTS, LATER, CLEARANCE, STEEPNESS)
"""All of these: results that rest on others are not kept for them."""


@dataclass(slots=True, eq=False)
class _Part:
    """One writer's update as it is learned: ``out += (a (inputs + share Δ)) bᵀ``.

    toward: ``aΔ``, what the mean shift between the classes is read as, ``[rank]``. share: how much of it
    is added. step: what is learned, in root mean squares of ``b``, ``[d_model, rank]``.
    """

    a: Tensor
    b: Tensor
    toward: Tensor
    step: Tensor
    share: float = 0.0

    @classmethod
    def of(cls, update: LowRank, shift: Tensor | None, device: torch.device) -> _Part:
        a, b = update.a.float().to(device), update.b.float().to(device)
        toward = torch.zeros(len(a), device=device) if shift is None else a @ shift.to(device)
        return cls(a, b, toward, torch.zeros_like(b, requires_grad=True))

    def written(self) -> Tensor:
        return self.b + self.b.pow(2).mean(0).sqrt() * self.step

    def act(self, module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> Tensor:
        read = first_argument(args, kwargs).float() @ self.a.T + self.share * self.toward
        return out + (read @ self.written().T).to(out.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _Same:
    """Log-probabilities ``[n, keep, vocab]`` that are to stay, and what a nat at a token weighs.

    share: how much of the way to the refused requests the inputs are moved meanwhile.
    """

    tail: Tail
    base: Tensor
    weight: float
    share: float = 0.0

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
    share: float = 0.0

    def loss(self, logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device).unsqueeze(-1)
        here = logits.float()[rows, self.places]
        wanted = self.tokens.unsqueeze(-1)
        ahead = here.gather(-1, wanted).squeeze(-1)
        ahead = ahead - here.scatter(-1, wanted, -torch.inf).amax(-1)
        # The refusal is said only where all of its tokens win.
        reach = STEEPNESS * (ahead.amin(-1) + CLEARANCE)
        return self.weight * nn.functional.softplus(reach).sum() / STEEPNESS


def learned_writes(
    backend: Backend,
    fitted: Fitted,
    delta: WeightDelta,
    worth: float,
    *,
    steps: int = STEPS,
    batch_size: int = BATCH,
    watch: Watch = unwatched,
) -> WeightDelta:
    """``delta`` with what every rank-one part writes learned on what ``fitted`` was fitted on.

    Least is ``KL₁ + DOUBT · KL₁(TOWARD) + LATER · KL + worth · mean softplus(margin)``: the KL at the first
    token of answers to the comply prompts, as they are and with every writer's input moved ``TOWARD`` the
    refused requests; at later tokens of responses (in their chats and as plain text, where the fit has
    read them); and the margin in logits by which the unedited model's own next token still wins at the end
    of a refused request and again once its opener was said; the smaller of the two. worth: nats per logit.
    Only last tokens run again (:class:`interp.backends.tail.Tail`).

    What opens a refusal in other words is not seen: count refusals of the result with a judge that knows
    them, and read some.

    Biases and fused experts stay as they are. InterpError for a fit that does not know its prompts.
    """
    if fitted.requests is None or fitted.answered is None:
        raise InterpError(
            "what an edit writes is learned on the prompts of the fit, which this one does not know"
        )
    updates, rest = _parted(delta)
    if not updates:
        return delta
    parts = _parts(backend, fitted, updates)
    terms = [
        *_kept(backend, fitted, delta, batch_size),
        *_removed(backend, fitted, delta, worth, batch_size),
    ]
    optimizer = torch.optim.Adam([part.step for part in parts.values()], lr=RATE)
    progress = watch("fit: what is written", steps)
    with frozen(backend.model), backend.editing(rest), _acting(backend, parts):
        for _ in range(steps):
            optimizer.zero_grad()
            for term in terms:
                for part in parts.values():
                    part.share = term.share
                with torch.enable_grad():
                    term.loss(term.tail.logits(backend.model)).backward()
            optimizer.step()
            progress(1)
    found = {
        name: replace(update, b=parts[name].written().detach().to(update.b))
        for name, update in updates.items()
    }
    return replace(
        delta,
        updates={**delta.updates, **found},
        recipe={"worth": worth, "steps": steps, "of": dict(delta.recipe)},
        exactness=f"{delta.exactness}; then what it writes was learned",
    )


def _parted(delta: WeightDelta) -> tuple[dict[str, LowRank], WeightDelta | None]:
    """The updates whose writes are learned, and the delta of the others."""
    parts = {
        name: update
        for name, update in delta
        if isinstance(update, LowRank) and not update.axes.startswith("expert")
    }
    rest = {name: update for name, update in delta if name not in parts}
    return parts, replace(delta, updates=rest) if rest else None


def _parts(backend: Backend, fitted: Fitted, updates: Mapping[str, LowRank]) -> dict[str, _Part]:
    writers = {w.weight: w for w in backend.anatomy.writers}
    refuse, comply = fitted.statistics.refuse, fitted.statistics.comply
    parts = {}
    for name, update in updates.items():
        writer = writers[name]
        shift = None  # of embeddings, which have no inputs
        if writer.name in refuse:
            shift = refuse[writer.name].float().mean(0) - comply[writer.name].float().mean(0)
        module = backend.model.get_submodule(writer.module)
        parts[name] = _Part.of(update, shift, next(module.parameters()).device)
    return parts


@contextmanager
def _acting(backend: Backend, parts: Mapping[str, _Part]) -> Iterator[None]:
    """The parts act on what their writers' modules give."""
    modules = {w.weight: w.module for w in backend.anatomy.writers}
    with ExitStack() as stack:
        for name, part in parts.items():
            module = backend.model.get_submodule(modules[name])
            stack.callback(module.register_forward_hook(part.act, with_kwargs=True).remove)
        yield


def _kept(backend: Backend, fitted: Fitted, edit: AnyEdit, size: int) -> Iterator[_Same]:
    """Answers at their first token, and responses at their last tokens."""
    assert fitted.answered is not None
    prompts = fitted.answered.chosen(fitted.answered.spread(ANSWERED))
    for same in _same(backend, prompts, 1, 1.0, edit, size):
        yield same
        yield replace(same, weight=DOUBT * same.weight, share=TOWARD)
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
