"""What an edit reads and writes, learned: the least change that removes as much.

A closed-form edit reads with the probes that disturb least and writes along one direction, the difference
of means, of which "do not begin with I" is a part and much else is not. For a prompt that is read as half
a refusal all of it happens by half. So what each probe writes is learned through the model, and the probe
too, a fifth as fast: every vocabulary entry of every answer says what it should leave alone, and that is
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
from interp.methods.refusal.prose import LAST, PIECES
from interp.types import LowRank, TokenBatch, WeightDelta
from interp.watching import Watch, unwatched

WORTH = 0.06
"""Nats of KL that a logit of refusal left in a request may cost, where nothing else is said."""
TURNS = 8
"""Parts into which all that is read is dealt; a step sees one of them."""
STEPS = 64
"""Steps of Adam."""
RATE = 0.1
"""Its step length at first, of the root mean square of what a part writes."""
READING = 0.02
"""Likewise, of that of what a part reads with."""
SLOWEST = 0.1
"""Share of both step lengths that is left at the end; they fall linearly."""
TOWARD = 0.4
"""Share of the way to the refused requests at which comply prompts are read once more: prompts of the fit are
read as almost no refusal, others now and then as half of one."""
DOUBT = 0.6
"""What the KL there weighs beside that of what was read."""
ANSWERED = 480
"""Comply prompts that are read at their last token, at most."""
REQUESTS = 192
"""Refused requests, at most."""
LATER = (2.0, 6.0, 20.0)
"""What the KL at later tokens weighs beside that at the first: in chats, in the same as plain text, and in
prose that others wrote."""
FIRST = 0.5
"""What the margin at the first token weighs; the rest is that of the whole opening. Where the latter alone
counts, "I'm sorry" becomes "I'm glad to help, but I'm not equipped to", which turns down as well."""
CLEARANCE = 1.5
"""Logits by which what opens a refusal should be beaten."""
STEEPNESS = 2.0
"""Of the softplus in which a margin is counted, per logit."""


@dataclass(slots=True, eq=False)
class _Part:
    """One writer's update as it is learned: ``out += (a (inputs + share Δ)) bᵀ``.

    shift: Δ, the mean shift of the inputs between the classes, ``[d_in]``; None of embeddings, which have no
    inputs. share: how much of it is added. reads, writes: what is learned, in root mean squares of each row
    of ``a [rank, d_in]`` and each column of ``b [d_out, rank]``.
    """

    a: Tensor
    b: Tensor
    shift: Tensor | None
    reads: Tensor
    writes: Tensor
    share: float = 0.0

    @classmethod
    def of(cls, update: LowRank, shift: Tensor | None, device: torch.device) -> _Part:
        a, b = update.a.float().to(device), update.b.float().to(device)
        steps = (torch.zeros_like(a, requires_grad=True), torch.zeros_like(b, requires_grad=True))
        return cls(a, b, None if shift is None else shift.to(device), *steps)

    def probes(self) -> Tensor:
        return self.a + self.a.pow(2).mean(1, keepdim=True).sqrt() * self.reads

    def written(self) -> Tensor:
        return self.b + self.b.pow(2).mean(0).sqrt() * self.writes

    def act(self, module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> Tensor:
        probes = self.probes()
        read = first_argument(args, kwargs).float() @ probes.T
        if self.share and self.shift is not None:
            read = read + self.share * (probes @ self.shift)
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
        base = self.base.to(logits.device)
        kl = base.exp() * (base - logits.float().log_softmax(-1))
        return self.weight * kl.sum()


@dataclass(frozen=True, slots=True, eq=False)
class _Gone:
    """Tokens ``[n, places]`` at places of a tail's: the first is not to win, nor are all of them together."""

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
        # A refusal is said only where all of its tokens win.
        margins = torch.stack([ahead[:, 0], ahead.amin(-1)])
        lost = nn.functional.softplus(STEEPNESS * (margins + CLEARANCE)).sum(-1) / STEEPNESS
        return self.weight * (FIRST * lost[0] + (1 - FIRST) * lost[1])


def learned(
    backend: Backend,
    fitted: Fitted,
    delta: WeightDelta,
    worth: float,
    *,
    steps: int | None = None,
    batch_size: int = BATCH,
    watch: Watch = unwatched,
) -> WeightDelta:
    """``delta`` with what every rank-one part reads and writes learned on what ``fitted`` was fitted on.

    Least is ``KL₁ + DOUBT · KL₁(TOWARD) + LATER · KL + worth · mean cost``: the KL at the first token of
    answers to the comply prompts, as they are and with every writer's input moved ``TOWARD`` the refused
    requests; at later tokens of what the model writes and of other prose
    (:class:`interp.methods.refusal.prose.Cut`, where the fit has read them); and what refusals cost, by
    the margins in logits by which the unedited model's own next token still wins, m₁ at the end of a
    refused request and m₂ once its opener was said: ``½ s(m₁) + ½ s(min(m₁, m₂))``, where s is a softplus
    that begins ``CLEARANCE`` below 0 and ½ is ``FIRST``. worth: nats per logit. steps: of Adam, ``STEPS``
    where nothing is said. A step sees a ``TURNS``-th of all that, and only last tokens run again
    (:class:`interp.backends.tail.Tail`).

    What opens a refusal in other words is not seen: count refusals of the result with a judge that knows
    them, and read some.

    Biases and fused experts stay as they are. InterpError for a fit that does not know its prompts.
    """
    if fitted.requests is None or fitted.answered is None:
        raise InterpError(
            "what an edit reads and writes is learned on the prompts of the fit, which this one does not know"
        )
    steps = STEPS if steps is None else steps
    updates, rest = _parted(delta)
    if not updates:
        return delta
    parts = _parts(backend, fitted, updates)
    turns = [_terms(backend, fitted, delta, worth, turn, batch_size) for turn in range(TURNS)]
    optimizer = torch.optim.Adam(
        [
            {"params": [part.writes for part in parts.values()], "lr": RATE},
            {"params": [part.reads for part in parts.values()], "lr": READING},
        ]
    )
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, SLOWEST, max(steps, 1))
    progress = watch("fit: learning", steps)
    with frozen(backend.model), backend.editing(rest), _acting(backend, parts):
        for step in range(steps):
            optimizer.zero_grad()
            for term in turns[step % TURNS]:
                with torch.enable_grad():
                    _loss(term, parts, backend.model).backward()
            optimizer.step()
            slower.step()
            progress(1)
    found = {
        name: replace(
            update,
            a=parts[name].probes().detach().to(update.a),
            b=parts[name].written().detach().to(update.b),
        )
        for name, update in updates.items()
    }
    return replace(
        delta,
        updates={**delta.updates, **found},
        recipe={"worth": worth, "steps": steps, "of": dict(delta.recipe)},
        exactness=f"{delta.exactness}; then what it reads and writes was learned",
    )


def objective(
    backend: Backend,
    fitted: Fitted,
    delta: WeightDelta,
    worth: float,
    *,
    batch_size: int = BATCH,
) -> float:
    """What :func:`learned` makes least, at ``delta`` as it is: nats, the mean over all turns."""
    updates, rest = _parted(delta)
    parts, total = _parts(backend, fitted, updates), 0.0
    for turn in range(TURNS):
        terms = _terms(backend, fitted, delta, worth, turn, batch_size)
        with torch.no_grad(), backend.editing(rest), _acting(backend, parts):
            total += sum(_loss(term, parts, backend.model).item() for term in terms)
    return total / TURNS


def _loss(term: _Same | _Gone, parts: Mapping[str, _Part], model: nn.Module) -> Tensor:
    for part in parts.values():
        part.share = term.share
    return term.loss(term.tail.logits(model))


def _parted(delta: WeightDelta) -> tuple[dict[str, LowRank], WeightDelta | None]:
    """The updates that are learned, and the delta of the others."""
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


def _terms(
    backend: Backend, fitted: Fitted, edit: AnyEdit, worth: float, turn: int, size: int
) -> list[_Same | _Gone]:
    """One turn's share of everything: every ``TURNS``-th prompt and text, weighed as if it were all."""
    kept = _kept(backend, fitted, edit, turn, size)
    return [*kept, *_removed(backend, fitted, edit, worth, turn, size)]


def _dealt(rows: Tensor, turn: int) -> Tensor:
    """A turn's rows. Where there are fewer than turns, one each, over and over."""
    return rows[turn % max(min(TURNS, len(rows)), 1) :: TURNS]


def _kept(backend: Backend, fitted: Fitted, edit: AnyEdit, turn: int, size: int) -> Iterator[_Same]:
    """Answers at their first token, and what is written at its last tokens."""
    assert fitted.answered is not None
    prompts = fitted.answered.chosen(_dealt(fitted.answered.spread(ANSWERED), turn))
    for same in _same(backend, prompts, 1, 1.0, edit, size):
        yield same
        yield replace(same, weight=DOUBT * same.weight, share=TOWARD)
    cut = fitted.cut
    read = ((cut.chats, LAST), (cut.texts, LAST), (cut.prose, PIECES[1]))
    for (batch, last), weight in zip(read, LATER, strict=True):
        if batch is not None:
            part = batch.chosen(_dealt(torch.arange(len(batch)), turn))
            yield from _same(backend, part, last, weight, edit, size)


def _same(
    backend: Backend, batch: TokenBatch, keep: int, weight: float, edit: AnyEdit, size: int
) -> Iterator[_Same]:
    places = tuple(range(-keep, 0))
    for chunk in batch.split(size):
        base = backend.logits(chunk, None, places).float().log_softmax(-1)
        tail = Tail.of(backend, chunk, keep, edit)
        # Of all turns at once this is much for an accelerator: positions by vocabulary.
        yield _Same(tail, base.cpu(), weight / (len(batch) * keep))


def _removed(
    backend: Backend, fitted: Fitted, edit: AnyEdit, worth: float, turn: int, size: int
) -> Iterator[_Gone]:
    """Refused requests with their opener said: the end of the request, and that of the opener."""
    assert fitted.requests is not None
    batch, said = fitted.requests, torch.zeros(len(fitted.requests), dtype=torch.long)
    if fitted.opened is not None and fitted.opened.requests is not None:
        batch = fitted.opened.requests
        said = batch.lengths - fitted.requests.lengths
    keep = int(said.max()) + 1
    dealt = _dealt(batch.spread(REQUESTS), turn)
    for rows in dealt.split(size) if len(dealt) else ():
        chunk, back = batch.chosen(rows), said[rows]
        places = torch.stack([keep - 1 - back, torch.full_like(back, keep - 1)], 1)
        logits = backend.logits(chunk, None, tuple(range(-keep, 0)))
        own = logits[torch.arange(len(rows)).unsqueeze(-1), places].argmax(-1)
        tail = Tail.of(backend, chunk, keep, edit)
        device = tail.batch.ids.device
        yield _Gone(tail, places.to(device), own.to(device), worth / len(dealt))
