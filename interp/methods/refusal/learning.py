"""Learn what an edit reads and writes, starting from its closed form.

In closed form each probe writes along one direction, the difference of means, which also holds differences
that have nothing to do with refusing. If the probe reads 0.5 on a prompt, half of the whole edit is applied
to that prompt. Learning changes what each probe writes, and the probe itself in smaller steps, through the
model: the loss compares the whole next-token distribution on answers, which determines a few vectors well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.tail import Tail, frozen
from interp.hooking import first_argument
from interp.lm import LM
from interp.methods.refusal.fit import Fitted, answering
from interp.recipes import Learning
from interp.samples import Memory
from interp.sites import Site
from interp.types import LowRank, TokenBatch, WeightDelta
from interp.watching import counted


@dataclass(slots=True, eq=False)
class LearnedUpdate:
    """One writer's update as it is learned: ``out += (a (inputs + share Δ)) bᵀ``.

    shift: Δ, the mean shift of the inputs between the classes, ``[d_in]``. share: fraction of Δ that is added
    to the inputs of the last ``keep`` tokens. reads, writes: learned changes of a and b, relative to the
    RMS of each row of ``a [rank, d_in]`` and each column of ``b [d_out, rank]``.
    """

    a: Tensor
    b: Tensor
    shift: Tensor
    reads: Tensor
    writes: Tensor
    share: float = 0.0
    keep: int = 1

    @classmethod
    def of(cls, update: LowRank, shift: Tensor, device: torch.device) -> LearnedUpdate:
        """A learned update of ``update`` whose changes are zero."""
        a, b = update.a.float().to(device), update.b.float().to(device)
        changes = (torch.zeros_like(a, requires_grad=True), torch.zeros_like(b, requires_grad=True))
        return cls(a, b, shift.float().to(device), *changes)

    def probes(self) -> Tensor:
        """The learned factor a, ``[rank, d_in]``."""
        return self.a + self.a.pow(2).mean(1, keepdim=True).sqrt() * self.reads

    def written(self) -> Tensor:
        """The learned factor b, ``[d_out, rank]``."""
        return self.b + self.b.pow(2).mean(0).sqrt() * self.writes

    def act(self, module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> Tensor:
        """A forward hook: the writer's output with the update."""
        probes = self.probes()
        read = first_argument(args, kwargs).float() @ probes.T
        if self.share:
            shifted = read[:, -self.keep :] + self.share * (probes @ self.shift)
            read = torch.cat([read[:, : -self.keep], shifted], 1)
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

    @property
    def nbytes(self) -> int:
        return self.tail.nbytes + self.base.nbytes

    def loss(self, logits: Tensor) -> Tensor:
        kl = self.base.exp() * (self.base - logits.float().log_softmax(-1))
        return self.weight * kl.sum()


@dataclass(frozen=True, slots=True, eq=False)
class RefusalMarginLoss:
    """Softplus of the margins by which refusal tokens win, ``softplus(margin + clearance)``.

    places, tokens: positions in the tail and token ids of the opening of a refusal, ``[n, places]``. Two
    margins count half each: that of the first token, and the smallest of all tokens (a refusal needs all of
    them to win). With the latter alone, "I'm sorry" becomes "I'm glad to help, but I'm not equipped to".
    weight: of the cost of one row. clearance: logits by which the opening of a refusal should lose.
    """

    tail: Tail
    places: Tensor
    tokens: Tensor
    weight: float
    clearance: float
    share: float = 0.0

    @property
    def nbytes(self) -> int:
        return self.tail.nbytes

    def loss(self, logits: Tensor) -> Tensor:
        rows = torch.arange(len(logits), device=logits.device).unsqueeze(-1)
        here = logits.float()[rows, self.places]
        wanted = self.tokens.unsqueeze(-1)
        ahead = here.gather(-1, wanted).squeeze(-1)
        ahead = ahead - here.scatter(-1, wanted, -torch.inf).amax(-1)
        margins = torch.stack([ahead[:, 0], ahead.amin(-1)])
        lost = nn.functional.softplus(margins + self.clearance).sum(-1)
        return self.weight * lost.mean()


Term = KeepLoss | RefusalMarginLoss
FINAL_STEP_SHARE = 0.1
"""Share of both step sizes at the last step; step sizes fall linearly."""


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """The loss that learning lowers, as terms of one minibatch at a time.

    ``KL₁ + half_weight · KL₁(shifted) + later_weight · KL(texts) + weight · mean cost of refusals``:
    KL at the first token of answers to the answerable prompts of the fit, as they are and with ``half_shift``
    of the class shift added to every writer's input; KL at later tokens of each kind of text
    (:class:`interp.methods.refusal.texts.Texts`); and :class:`RefusalMarginLoss` at the base model's own next
    token, at the end of refused requests and after their opener. Only last tokens run again
    (:class:`interp.backends.tail.Tail`). Terms are made when they are asked for, and kept while ``memory``
    lasts, so that memory does not grow with the prompts.

    weight: of the cost of refusals, in nats of KL per logit of margin.
    """

    lm: LM
    fitted: Fitted
    weight: float
    recipe: Learning
    memory: Memory = field(default_factory=Memory)
    _made: dict[int, list[Term]] = field(default_factory=dict, init=False, repr=False)

    @torch.no_grad()
    def terms(self, turn: int) -> list[Term]:
        """Terms of one minibatch, weighted as if it were all prompts and texts."""
        turn %= self.recipe.minibatches
        if turn in self._made:
            return self._made[turn]
        made: list[Term] = [*self._kept(turn), *self._removed(turn)]
        # A tail and base log-probabilities that two terms share count once.
        size = sum({id(t.tail): t.nbytes for t in made}.values())
        if size <= self.memory.left:
            self.memory.left -= size
            self._made[turn] = made
        return made

    def value(self, delta: WeightDelta) -> float:
        """The loss at a delta, in nats: the mean over minibatches."""
        learner, total = Learner.of(self.lm, self.fitted, delta), 0.0
        for turn in range(self.recipe.minibatches):
            terms = self.terms(turn)
            with torch.no_grad(), learner.editing():
                total += sum(learner.loss(term).item() for term in terms)
        return total / self.recipe.minibatches

    def _minibatch(self, rows: Tensor, turn: int) -> Tensor:
        """Rows of one minibatch; with fewer rows than minibatches, one row each, repeated."""
        deals = self.recipe.minibatches
        return rows[turn % max(min(deals, len(rows)), 1) :: deals]

    def _kept(self, turn: int) -> Iterator[KeepLoss]:
        """KL terms: answers at their first token, texts at their last tokens."""
        recipe = self.recipe
        answered = self.lm.tokens(self.fitted.answered)
        prompts = answered.chosen(self._minibatch(answered.spread(recipe.most_answers), turn))
        for same in self._same(prompts, 1, 1.0):
            yield same
            yield replace(same, weight=recipe.half_weight * same.weight, share=recipe.half_shift)
        for batch, last in self.fitted.texts:
            part = batch.chosen(self._minibatch(batch.spread(recipe.most_texts), turn))
            passages = batch is self.fitted.texts.passages
            weight = recipe.passage_weight if passages else recipe.later_weight
            yield from self._same(part, last, weight)

    def _same(self, batch: TokenBatch, keep: int, weight: float) -> Iterator[KeepLoss]:
        for chunk in batch.split(self.lm.batch_size):
            tail = Tail.of(self.lm.backend, chunk, keep)
            base = tail.logits(self.lm.hf).float().log_softmax(-1)
            yield KeepLoss(tail, base, weight / (len(batch) * keep))

    def _removed(self, turn: int) -> Iterator[RefusalMarginLoss]:
        """Margin terms: at the end of refused requests and after their opener."""
        lm, opener = self.lm, self.fitted.opener
        before = lm.tokens(self.fitted.requests)
        batch = answering(lm, opener).tokens(self.fitted.requests) if opener else before
        said = batch.lengths - before.lengths
        keep = int(said.max()) + 1
        dealt = self._minibatch(batch.spread(self.recipe.most_requests), turn)
        for rows in dealt.split(lm.batch_size) if len(dealt) else ():
            chunk, back = batch.chosen(rows), said[rows]
            places = torch.stack([keep - 1 - back, torch.full_like(back, keep - 1)], 1)
            tail = Tail.of(lm.backend, chunk, keep)
            device = tail.batch.ids.device
            logits, places = tail.logits(lm.hf), places.to(device)
            own = logits[torch.arange(len(rows), device=device).unsqueeze(-1), places].argmax(-1)
            weight = self.weight / len(dealt)
            yield RefusalMarginLoss(tail, places, own, weight, self.recipe.clearance)


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """A delta whose low-rank updates of block writers are learned; its other updates stay as they are.

    updates: by weight name. rest: the other updates, as a delta; None without any.
    """

    lm: LM
    updates: Mapping[str, LearnedUpdate]
    rest: WeightDelta | None

    @classmethod
    def of(cls, lm: LM, fitted: Fitted, delta: WeightDelta) -> Learner:
        """A learner of ``delta``, nothing learned yet. Updates of other kinds are not learned."""
        writers = {writer.weight: writer for writer in lm.anatomy.writers}
        updates, rest = {}, {}
        for name, update in delta:
            writer = writers.get(name)  # None for biases
            low_rank = isinstance(update, LowRank) and not update.axes.startswith("expert")
            if not low_rank or writer is None or writer.block is None:
                rest[name] = update
                continue
            shift = fitted.probes.shift(Site.writer_in(writer.block, writer.name))
            device = next(lm.hf.get_submodule(writer.module).parameters()).device
            updates[name] = LearnedUpdate.of(update, shift, device)
        return cls(lm, updates, replace(delta, updates=rest) if rest else None)

    @contextmanager
    def editing(self) -> Iterator[None]:
        """The model with the delta in place, learned updates as forward hooks of their writers."""
        modules = {w.weight: w.module for w in self.lm.anatomy.writers}
        with ExitStack() as stack:
            stack.enter_context(self.lm.backend.editing(self.rest))
            for name, update in self.updates.items():
                module = self.lm.hf.get_submodule(modules[name])
                hook = module.register_forward_hook(update.act, with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def loss(self, term: Term) -> Tensor:
        """The value of one term, while :meth:`editing` is in place."""
        for update in self.updates.values():
            update.share, update.keep = term.share, term.tail.keep
        return term.loss(term.tail.logits(self.lm.hf))

    def optimizer(self, recipe: Learning) -> tuple[Any, Any]:
        """Adam with a step size for writes and one for probes, and the scheduler that lets both fall."""
        groups = [
            {"params": [u.writes for u in self.updates.values()], "lr": recipe.write_step},
            {"params": [u.reads for u in self.updates.values()], "lr": recipe.probe_step},
        ]
        adam = torch.optim.Adam(groups)
        last = max(recipe.steps - 1, 1)
        return adam, torch.optim.lr_scheduler.LinearLR(adam, 1.0, FINAL_STEP_SHARE, last)

    def delta(self, before: WeightDelta) -> WeightDelta:
        """``before`` with what was learned."""
        found = dict(before.updates)
        for name, learned in self.updates.items():
            old = before.updates[name]
            a, b = learned.probes().detach().to(old.a), learned.written().detach().to(old.b)
            found[name] = replace(old, a=a, b=b)
        return replace(before, updates=found)


def learned(
    lm: LM,
    fitted: Fitted,
    delta: WeightDelta,
    weight: float,
    recipe: Learning | None = None,
) -> WeightDelta:
    """``delta`` with both factors of every low-rank update learned on the prompts of ``fitted``.

    The loss is :class:`Objective`; one step of Adam uses one minibatch. weight: nats of KL that a logit of
    refusal margin may cost. The loss does not see refusals in other words: count refusals of the result with
    a judge that knows them, and read some.
    """
    recipe = recipe or Learning()
    learner = Learner.of(lm, fitted, delta)
    if not learner.updates:
        return delta
    objective = Objective(lm, fitted, weight, recipe)
    optimizer, scheduler = learner.optimizer(recipe)
    with frozen(lm.hf):
        for step in counted(lm.watch, "fit: learning", range(recipe.steps)):
            optimizer.zero_grad()
            terms = objective.terms(step)
            with torch.enable_grad(), learner.editing():
                for term in terms:
                    learner.loss(term).backward()
            optimizer.step()
            scheduler.step()
    about = {"learn": weight, "learning": asdict(recipe), "of": dict(delta.recipe)}
    return replace(
        learner.delta(delta),
        recipe=about,
        exactness=f"{delta.exactness}; then what it reads and writes was learned",
    )
