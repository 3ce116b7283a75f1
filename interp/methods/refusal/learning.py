"""Learning what an edit reads and writes, starting from its closed form.

In closed form each probe writes along one direction, the difference of means, of which only part has to do
with refusing. If the probe reads 0.5 on a prompt, half of the whole edit is applied to that prompt.
Learning changes what each probe writes, and the probe itself in smaller steps, through the model: the loss
compares the whole next-token distribution on answers, which determines a few vectors well.
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
from interp.hooking import first_argument
from interp.lm import LM
from interp.methods.refusal.fit import Fitted
from interp.methods.refusal.prose import LAST, PIECES
from interp.types import LowRank, TokenBatch, WeightDelta

REFUSAL_WEIGHT = 0.06
"""Weight of the refusal-margin loss, in nats of KL per logit."""
N_MINIBATCHES = 8
STEPS = 64
"""Steps of Adam."""
WRITE_STEP = 0.1
"""Adam step size for what probes write, relative to its RMS."""
PROBE_STEP = 0.02
"""Adam step size for probes, relative to their RMS."""
FINAL_STEP_SHARE = 0.1
"""Share of both step sizes at the last step; step sizes fall linearly."""
HALF_REFUSAL_SHIFT = 0.4
"""Comply inputs are also evaluated with this fraction of the class shift added: on new prompts probes
sometimes read half a refusal, on the fit split they never do."""
HALF_REFUSAL_WEIGHT = 0.6
"""Weight of KL on shifted comply inputs beside KL on comply inputs."""
MOST_COMPLY = 480
"""Comply prompts that are evaluated at their last token, at most."""
MOST_REQUESTS = 192
"""Refused requests, at most."""
LATER_WEIGHTS = (2.0, 6.0, 20.0)
"""Weights of KL at later tokens beside KL at the first: of responses in chats, of responses as plain text, of
prose by others."""
FIRST_TOKEN_SHARE = 0.5
"""Weight of the margin at the first token; the rest is the margin of the whole opening. With the latter
alone, "I'm sorry" becomes "I'm glad to help, but I'm not equipped to", which declines as well."""
CLEARANCE = 1.5
"""Logits by which the opening of a refusal should lose."""
STEEPNESS = 2.0
"""Of the softplus of a margin, per logit."""


@dataclass(slots=True, eq=False)
class LearnedUpdate:
    """One writer's update as it is learned: ``out += (a (inputs + share Δ)) bᵀ``.

    shift: Δ, the mean shift of the inputs between the classes, ``[d_in]``; None for embeddings, which have no
    inputs. share: fraction of Δ that is added. reads, writes: learned changes of a and b, relative to the RMS
    of each row of ``a [rank, d_in]`` and each column of ``b [d_out, rank]``.
    """

    a: Tensor
    b: Tensor
    shift: Tensor | None
    reads: Tensor
    writes: Tensor
    share: float = 0.0

    @classmethod
    def of(cls, update: LowRank, shift: Tensor | None, device: torch.device) -> LearnedUpdate:
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
class KeepLoss:
    """Weighted KL from the base model's log-probabilities ``[n, keep, vocab]``.

    weight: of one nat at one token. share: fraction of the class shift that is added to the inputs.
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
class RefusalMarginLoss:
    """Softplus of the margins by which refusal tokens win.

    places, tokens: positions in the tail and token ids of the opening of a refusal, ``[n, places]``. Two
    margins count: that of the first token, and the smallest of all tokens (a refusal needs all of them to
    win).
    """

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
        return self.weight * (FIRST_TOKEN_SHARE * lost[0] + (1 - FIRST_TOKEN_SHARE) * lost[1])


def learned(
    lm: LM, fitted: Fitted, delta: WeightDelta, worth: float, *, steps: int | None = None
) -> WeightDelta:
    """``delta`` with what every rank-one update reads and writes learned on the prompts of ``fitted``.

    The loss is ``KL₁ + HALF_REFUSAL_WEIGHT · KL₁(shifted) + LATER_WEIGHTS · KL + worth · mean cost``: KL at
    the first token of answers to the comply prompts of the fit, as they are and with ``HALF_REFUSAL_SHIFT``
    of the class shift added to every writer's input; KL at later tokens of what the model writes and of
    other prose (:class:`interp.methods.refusal.prose.Cut`, where the fit has read them); and the cost of
    refusals, ``½ s(m₁) + ½ s(min(m₁, m₂))``, with the logit margins m₁ and m₂ by which the base model's own
    next token still wins at the end of a refused request and after its opener. s is a softplus that begins
    ``CLEARANCE`` below 0; ½ is ``FIRST_TOKEN_SHARE``.

    worth: nats per logit. steps: of Adam; None for ``STEPS``. One step uses one of ``N_MINIBATCHES``
    minibatches. Only last tokens run again (:class:`interp.backends.tail.Tail`). Biases and fused experts are
    not changed. The loss does not see refusals in other words: count refusals of the result with a judge that
    knows them, and read some. InterpError for a fit that does not know its prompts.
    """
    if fitted.requests is None or fitted.answered is None:
        raise InterpError("learning needs the prompts of the fit, which this fit does not know")
    backend, steps = lm.backend, STEPS if steps is None else steps
    updates, rest = _split_updates(delta)
    if not updates:
        return delta
    parts = _parts(backend, fitted, updates)
    minibatches = [
        _terms(backend, fitted, delta, worth, turn, lm.batch_size) for turn in range(N_MINIBATCHES)
    ]
    optimizer = torch.optim.Adam(
        [
            {"params": [part.writes for part in parts.values()], "lr": WRITE_STEP},
            {"params": [part.reads for part in parts.values()], "lr": PROBE_STEP},
        ]
    )
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, FINAL_STEP_SHARE, max(steps, 1))
    progress = lm.watch("fit: learning", steps)
    with frozen(backend.model), backend.editing(rest), _hooked_updates(backend, parts):
        for step in range(steps):
            optimizer.zero_grad()
            for term in minibatches[step % N_MINIBATCHES]:
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


def objective(lm: LM, fitted: Fitted, delta: WeightDelta, worth: float) -> float:
    """The loss of :func:`learned` at ``delta``, in nats: the mean over minibatches."""
    backend = lm.backend
    updates, rest = _split_updates(delta)
    parts, total = _parts(backend, fitted, updates), 0.0
    for turn in range(N_MINIBATCHES):
        terms = _terms(backend, fitted, delta, worth, turn, lm.batch_size)
        with torch.no_grad(), backend.editing(rest), _hooked_updates(backend, parts):
            total += sum(_loss(term, parts, backend.model).item() for term in terms)
    return total / N_MINIBATCHES


def _loss(
    term: KeepLoss | RefusalMarginLoss, parts: Mapping[str, LearnedUpdate], model: nn.Module
) -> Tensor:
    for part in parts.values():
        part.share = term.share
    return term.loss(term.tail.logits(model))


def _split_updates(delta: WeightDelta) -> tuple[dict[str, LowRank], WeightDelta | None]:
    """The updates that are learned, and the delta of the others."""
    parts = {
        name: update
        for name, update in delta
        if isinstance(update, LowRank) and not update.axes.startswith("expert")
    }
    rest = {name: update for name, update in delta if name not in parts}
    return parts, replace(delta, updates=rest) if rest else None


def _parts(
    backend: Backend, fitted: Fitted, updates: Mapping[str, LowRank]
) -> dict[str, LearnedUpdate]:
    writers = {w.weight: w for w in backend.anatomy.writers}
    refuse, comply = fitted.statistics.refuse, fitted.statistics.comply
    parts = {}
    for name, update in updates.items():
        writer = writers[name]
        shift = None  # of embeddings, which have no inputs
        if writer.name in refuse:
            shift = refuse[writer.name].float().mean(0) - comply[writer.name].float().mean(0)
        module = backend.model.get_submodule(writer.module)
        parts[name] = LearnedUpdate.of(update, shift, next(module.parameters()).device)
    return parts


@contextmanager
def _hooked_updates(backend: Backend, parts: Mapping[str, LearnedUpdate]) -> Iterator[None]:
    """The updates run as forward hooks of their writers."""
    modules = {w.weight: w.module for w in backend.anatomy.writers}
    with ExitStack() as stack:
        for name, part in parts.items():
            module = backend.model.get_submodule(modules[name])
            stack.callback(module.register_forward_hook(part.act, with_kwargs=True).remove)
        yield


def _terms(
    backend: Backend, fitted: Fitted, edit: AnyEdit, worth: float, turn: int, size: int
) -> list[KeepLoss | RefusalMarginLoss]:
    """Loss terms of one minibatch: every ``N_MINIBATCHES``-th prompt and text, weighted as if it were all."""
    kept = _kept(backend, fitted, edit, turn, size)
    return [*kept, *_removed(backend, fitted, edit, worth, turn, size)]


def _minibatch(rows: Tensor, turn: int) -> Tensor:
    """Rows of one minibatch; with fewer rows than minibatches, one row each, repeated."""
    return rows[turn % max(min(N_MINIBATCHES, len(rows)), 1) :: N_MINIBATCHES]


def _kept(
    backend: Backend, fitted: Fitted, edit: AnyEdit, turn: int, size: int
) -> Iterator[KeepLoss]:
    """KL terms of one minibatch: answers at their first token, written text at its last tokens."""
    assert fitted.answered is not None
    prompts = fitted.answered.chosen(_minibatch(fitted.answered.spread(MOST_COMPLY), turn))
    for same in _same(backend, prompts, 1, 1.0, edit, size):
        yield same
        yield replace(same, weight=HALF_REFUSAL_WEIGHT * same.weight, share=HALF_REFUSAL_SHIFT)
    cut = fitted.cut
    read = ((cut.chats, LAST), (cut.texts, LAST), (cut.prose, PIECES[1]))
    for (batch, last), weight in zip(read, LATER_WEIGHTS, strict=True):
        if batch is not None:
            part = batch.chosen(_minibatch(torch.arange(len(batch)), turn))
            yield from _same(backend, part, last, weight, edit, size)


def _same(
    backend: Backend, batch: TokenBatch, keep: int, weight: float, edit: AnyEdit, size: int
) -> Iterator[KeepLoss]:
    places = tuple(range(-keep, 0))
    for chunk in batch.split(size):
        base = backend.logits(chunk, None, places).float().log_softmax(-1)
        tail = Tail.of(backend, chunk, keep, edit)
        # Of all turns at once this is much for an accelerator: positions by vocabulary.
        yield KeepLoss(tail, base.cpu(), weight / (len(batch) * keep))


def _removed(
    backend: Backend, fitted: Fitted, edit: AnyEdit, worth: float, turn: int, size: int
) -> Iterator[RefusalMarginLoss]:
    """Margin terms of one minibatch: at the end of refused requests and after their opener."""
    assert fitted.requests is not None
    batch, said = fitted.requests, torch.zeros(len(fitted.requests), dtype=torch.long)
    if fitted.opened is not None and fitted.opened.requests is not None:
        batch = fitted.opened.requests
        said = batch.lengths - fitted.requests.lengths
    keep = int(said.max()) + 1
    dealt = _minibatch(batch.spread(MOST_REQUESTS), turn)
    for rows in dealt.split(size) if len(dealt) else ():
        chunk, back = batch.chosen(rows), said[rows]
        places = torch.stack([keep - 1 - back, torch.full_like(back, keep - 1)], 1)
        logits = backend.logits(chunk, None, tuple(range(-keep, 0)))
        own = logits[torch.arange(len(rows)).unsqueeze(-1), places].argmax(-1)
        tail = Tail.of(backend, chunk, keep, edit)
        device = tail.batch.ids.device
        yield RefusalMarginLoss(tail, places.to(device), own.to(device), worth / len(dealt))
