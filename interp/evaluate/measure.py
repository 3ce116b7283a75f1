"""One row of measures per edit, on one bench of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.backends.protocol import AnyEdit
from interp.data.prompts import PromptSet
from interp.data.thinking import response_texts
from interp.evaluate.divergence import (
    CONTINUATION,
    Divergence,
    Reference,
    divergence,
    neutral_batch,
    passage_nats,
    reference,
)
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
SIDES = ("refuse", "comply")


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Measures of one edit. Counts with Wilson 95 % intervals; KL and NLL in nats per token.

    refusals of n_refuse: refused requests; over_refusals of n_comply: refused answerable twins. Both counts
    are of responses that could be judged; unscored: how many could not, of both classes.
    replacement: measures of the responses to requests that the base refused and the edit does not; for the
    base itself, of its responses to the answerable prompts, for comparison. examples: ``{prompt,
    response}`` for the first ``EXAMPLES`` requests that the base refused, the same for every edit.
    scores: of further judges, by name and class (``refuse``, ``comply``). passages: nats and number of tokens
    of every neutral passage, for intervals over passages; not part of the JSON.
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
    passages: tuple[Sequence[float], Sequence[int]] = field(default=((), ()), repr=False)

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``scores`` is left out without further judges."""
        left_out = {"passages"} if self.scores else {"passages", "scores"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(eq=False)
class Bench:
    """Held-out prompts of both classes, measured once on the base model and then on any edit.

    response_tokens: length of responses. judged_tokens: first tokens of a response, on which refusals are
    counted; None for all. continuation: tokens of the k-token KL. passages: neutral text; None for all that
    is shipped. judge: of refusals. judges: further ones, whose mean scores of whole responses become part
    of every row.
    """

    lm: LM
    refuse: PromptSet
    comply: PromptSet
    response_tokens: int = RESPONSE
    judged_tokens: int | None = None
    continuation: int = CONTINUATION
    passages: Sequence[str] | None = None
    judge: Judge = ENGLISH_JUDGE
    judges: Sequence[Judge] = ()
    batches: tuple[TokenBatch, TokenBatch] = field(init=False)
    neutral: TokenBatch = field(init=False)
    reference: Reference = field(init=False)
    base_ids: Ids = field(init=False)

    def __post_init__(self) -> None:
        lm = self.lm.using(watch=within(self.lm.watch, "base"))
        self.batches = (lm.tokens(self.refuse), lm.tokens(self.comply))
        self.neutral = neutral_batch(lm, self.passages)
        self.reference = reference(self.lm, self.batches[1], tokens=self.continuation)
        self.base_ids = generate_ids(lm, self.batches[0], tokens=self.response_tokens)

    def row(self, name: str, edit: AnyEdit = None) -> BenchRow:
        """Measure one edit (None: the base itself, whose divergences are 0 by definition)."""
        lm = self.lm.using(watch=within(self.lm.watch, name))
        d = Divergence(0.0, 0.0, 0.0, 0.0)
        if edit is not None:
            d = divergence(lm, self.reference, edit)
        new, answers = self.responses(edit, d.agreed, name)
        requests, twins = self.batches
        refused, over = self.judged(requests, new), self.judged(twins, answers)
        was = self.judged(requests, self.base_ids).refused
        if edit is None:
            answered = [i for i, is_refusal in enumerate(over.refused) if not is_refusal]
            compared = (self.comply.prompts, twins, answers, answered)
        else:
            compared = (self.refuse.prompts, requests, new, replaced(was, refused.refused))
        texts = [self.texts(requests, new), self.texts(twins, answers)]
        places = [i for i, is_refusal in enumerate(was) if is_refusal][:EXAMPLES]
        nats, tokens = passage_nats(lm, self.neutral, edit)
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
            nats.sum().item() / int(tokens.sum()),
            refused.unscored + over.unscored,
            measured(self.lm, *compared),
            tuple({"prompt": self.refuse.prompts[i], "response": texts[0][i]} for i in places),
            self.scores(texts),
            (nats.tolist(), tokens.tolist()),
        )

    def scores(self, texts: Sequence[Sequence[str]]) -> dict[str, dict[str, Scores]] | None:
        """Scores of the further judges by name and class, of the responses to each; None without any."""
        classes = (self.refuse, self.comply)
        return {
            judge.name: {
                side: Scores.of(judge, prompts.prompts, responses)
                for side, prompts, responses in zip(SIDES, classes, texts, strict=True)
            }
            for judge in self.judges
        } or None

    def responses(
        self, edit: AnyEdit = None, agreed: Sequence[int] = (), name: str = "edited"
    ) -> tuple[Int[Tensor, "refuse seq"], Int[Tensor, "comply seq"]]:
        """Responses to both classes, ``[n_refuse, tokens]`` and ``[n_comply, tokens]``.

        agreed: for every comply prompt, how many first tokens of the base's response the edit keeps
        (:class:`interp.evaluate.divergence.Divergence`). A response that is kept whole, and those of the
        base itself, are taken from the reference.
        """
        requests, twins = self.batches
        known = self.reference.first_ids(self.response_tokens)
        changed = list(range(len(twins)))
        if known is not None and (edit is None or agreed):
            changed = [i for i, n in enumerate(agreed) if n < self.response_tokens]
        prompts = [requests] if edit is not None else []
        prompts += [twins.chosen(torch.tensor(changed))] if changed else []
        new = self.base_ids[:0]
        if prompts:
            # Both classes in one batch: a decoding step reads the weights once for all of them.
            lm = self.lm.using(watch=within(self.lm.watch, name))
            whole = reduce(TokenBatch.followed_by, prompts)
            new = generate_ids(lm, whole, edit, tokens=self.response_tokens)
        refused, rest = (
            (self.base_ids, new) if edit is None else new.split([len(requests), len(changed)])
        )
        answers = (rest if known is None else known).clone()
        answers[changed] = rest
        return refused, answers

    def texts(self, batch: TokenBatch, ids: Ids) -> list[str]:
        """Responses ``[n, tokens]`` to a class as text."""
        return response_texts(self.lm.tokenizer, batch.ids, ids)

    def judged(self, batch: TokenBatch, ids: Ids) -> Judged:
        """The judge's scores of the first ``judged_tokens`` of responses to a class."""
        return judge(self.texts(batch, ids[:, : self.judged_tokens]), self.judge)
