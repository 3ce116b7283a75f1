"""One row of measures per edit, on one bench of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.backends.protocol import AnyEdit
from interp.data.prompts import PromptSet
from interp.data.thinking import response_texts
from interp.evaluate.divergence import CONTINUATION, Divergence, Reference, divergence, reference
from interp.evaluate.neutral import neutral_batch, neutral_nll
from interp.evaluate.refusal import Judged, generate_ids, judge
from interp.evaluate.replacement import Replacement, measured, replaced
from interp.evaluate.scores import Scores
from interp.judges.keywords import ENGLISH_JUDGE
from interp.judges.protocol import Judge
from interp.lm import LM
from interp.types import Ids, TokenBatch
from interp.watching import within

RESPONSE = 24
EXAMPLES = 3
"""Requests whose responses are kept to be read side by side."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Measures of one edit. Counts with Wilson 95 % intervals; KL and NLL in nats per token.

    refusals of n_refuse: refused requests; over_refusals of n_comply: refused answerable twins. Both counts
    are of responses that could be judged; unscored: how many could not, of both classes.
    replacement: measures of the responses to requests that the base refused and the edit does not; for the
    base itself, of its responses to the answerable prompts, for comparison. examples: ``{prompt,
    response}`` for the first ``EXAMPLES`` requests that the base refused, the same for every edit.
    scores: of further judges, by name and class (``refuse``, ``comply``).
    """

    name: str
    refusals: int
    n_refuse: int
    refusal_interval: tuple[float, float]
    over_refusals: int
    n_comply: int
    over_refusal_interval: tuple[float, float]
    kl_first: float
    kl_first_se: float
    kl_continuation: float
    kl_continuation_se: float
    nll: float
    unscored: int = 0
    replacement: Replacement | None = None
    examples: tuple[dict[str, str], ...] = ()
    scores: Mapping[str, Mapping[str, Scores]] | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``scores`` is left out without further judges."""
        found = asdict(self)
        return found if self.scores else {k: v for k, v in found.items() if k != "scores"}


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Held-out prompts of both classes with the base model's reference, ready to measure edits."""

    lm: LM
    prompts: tuple[PromptSet, PromptSet]
    refuse: TokenBatch
    comply: TokenBatch
    neutral: TokenBatch
    reference: Reference
    base_ids: Ids
    response_tokens: int = RESPONSE
    judge: Judge = ENGLISH_JUDGE
    judges: tuple[Judge, ...] = ()

    @classmethod
    def prepare(
        cls,
        lm: LM,
        refuse: PromptSet,
        comply: PromptSet,
        *,
        response_tokens: int = RESPONSE,
        continuation: int = CONTINUATION,
        passages: Sequence[str] | None = None,
        judge: Judge = ENGLISH_JUDGE,
        judges: Sequence[Judge] = (),
    ) -> Bench:
        """Tokenise both classes and run the base model once on each.

        passages: neutral text; None for all that is shipped. judge: of refusals. judges: further ones, whose
        mean scores become part of every row.
        """
        r, c = (lm.tokens(side) for side in (refuse, comply))
        ref = reference(lm, c, tokens=continuation)
        base = generate_ids(lm.using(watch=within(lm.watch, "base")), r, tokens=response_tokens)
        neutral = neutral_batch(lm, passages)
        return cls(
            lm, (refuse, comply), r, c, neutral, ref, base, response_tokens, judge, tuple(judges)
        )

    def row(self, name: str, edit: AnyEdit = None) -> BenchRow:
        """Measure one edit (None: the base itself, whose divergences are 0 by definition)."""
        lm = self.lm.using(watch=within(self.lm.watch, name))
        d = Divergence(0.0, 0.0, 0.0, 0.0)
        if edit is not None:
            d = divergence(lm, self.reference, edit)
        new, answers = self.responses(edit, d.agreed, name)
        refused, over = self.judged(new), self._judged(self.comply, answers)
        nll = neutral_nll(lm, self.neutral, edit)
        return BenchRow(
            name,
            refused.count,
            refused.n,
            refused.interval,
            over.count,
            over.n,
            over.interval,
            d.first,
            d.first_se,
            d.continuation,
            d.continuation_se,
            nll,
            refused.unscored + over.unscored,
            self.answers(answers) if edit is None else self.replacement(new),
            self.examples(new),
            self.scores(refused.texts, over.texts),
        )

    def scores(
        self, refuse: Sequence[str], comply: Sequence[str]
    ) -> dict[str, dict[str, Scores]] | None:
        """Scores of the further judges by name and class, of responses to both classes; None without any."""
        sides = dict(zip(("refuse", "comply"), (refuse, comply), strict=True))
        prompts = [side.prompts for side in self.prompts]
        return {
            judge.name: {
                side: Scores.of(judge, asked, texts)
                for asked, (side, texts) in zip(prompts, sides.items(), strict=True)
            }
            for judge in self.judges
        } or None

    def replacement(self, new: Ids) -> Replacement:
        """Measures of the responses ``new [n_refuse, tokens]`` of an edit that took the place of refusals."""
        rows = replaced(self.judged(self.base_ids).refused, self.judged(new).refused)
        return measured(self.lm, self.prompts[0].prompts, self.refuse, new, rows)

    def answers(self, answers: Ids) -> Replacement:
        """The same measures of the base's responses to the comply prompts that it answers."""
        over = self._judged(self.comply, answers).refused
        rows = [i for i, refused in enumerate(over) if not refused]
        return measured(self.lm, self.prompts[1].prompts, self.comply, answers, rows)

    def examples(self, new: Ids) -> tuple[dict[str, str], ...]:
        """``{prompt, response}`` of the first ``EXAMPLES`` requests that the base refused."""
        was = self.judged(self.base_ids).refused
        texts, prompts = self.judged(new).texts, self.prompts[0].prompts
        places = [i for i, refused in enumerate(was) if refused][:EXAMPLES]
        return tuple({"prompt": prompts[i], "response": texts[i]} for i in places)

    def responses(
        self, edit: AnyEdit = None, agreed: Sequence[int] = (), name: str = "edited"
    ) -> tuple[Int[Tensor, "refuse seq"], Int[Tensor, "comply seq"]]:
        """Responses to both classes, ``[n_refuse, tokens]`` and ``[n_comply, tokens]``.

        agreed: for every comply prompt, how many first tokens of the base's response the edit keeps
        (:class:`interp.evaluate.divergence.Divergence`). A response that is kept whole, and those of the
        base itself, are taken from what :meth:`prepare` generated.
        """
        known = self.reference.first_ids(self.response_tokens)
        changed = list(range(len(self.comply)))
        if known is not None and (edit is None or agreed):
            changed = [i for i, n in enumerate(agreed) if n < self.response_tokens]
        prompts = [self.refuse] if edit is not None else []
        prompts += [self.comply.chosen(torch.tensor(changed))] if changed else []
        new = self.base_ids[:0]
        if prompts:
            # Both classes in one batch: a decoding step reads the weights once for all of them.
            whole = prompts[0].followed_by(prompts[1]) if len(prompts) == 2 else prompts[0]
            lm = self.lm.using(watch=within(self.lm.watch, name))
            new = generate_ids(lm, whole, edit, tokens=self.response_tokens)
        refused, rest = (
            (self.base_ids, new) if edit is None else new.split([len(self.refuse), len(changed)])
        )
        answers = (rest if known is None else known).clone()
        answers[changed] = rest
        return refused, answers

    def judged(self, new: Ids) -> Judged:
        """Responses to the requests, ``[n_refuse, tokens]``, as text with the judge's scores."""
        return self._judged(self.refuse, new)

    def _judged(self, batch: TokenBatch, ids: Ids) -> Judged:
        texts = response_texts(self.lm.tokenizer, batch.ids, ids)
        return judge(texts, self.judge)
