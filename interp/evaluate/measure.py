"""One row of measures per edit, on one bench of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.backends.protocol import AnyEdit
from interp.data.prompts import SIDES, PromptSet
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
from interp.evaluate.replacement import Replacement, measured, replaced
from interp.evaluate.scores import Scores, generate_ids, judge
from interp.judges.keywords import ENGLISH_JUDGE
from interp.judges.protocol import Judge
from interp.lm import LM
from interp.types import Ids, TokenBatch
from interp.watching import within

RESPONSE = 24
EXAMPLES = 3
"""Prompts whose responses are kept to be read side by side."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Measures of one edit. KL and NLL are in nats per token.

    positive, negative: the judge's scores of responses to each class. divergence: on the negative prompts.
    replacement: measures of the responses to positive prompts that the judge flags of the base and not of the
    edit; for the base itself, of its responses to negative prompts that are not flagged, for comparison.
    examples: ``{prompt, response}`` for the first ``EXAMPLES`` positive prompts that are flagged of the base,
    the same for every edit. scores: of further judges by name, of each class. passages: nats and number of
    tokens of every neutral passage, for intervals over passages; not part of the JSON.
    """

    name: str
    positive: Scores
    negative: Scores
    divergence: Divergence
    nll: float
    replacement: Replacement
    examples: tuple[dict[str, str], ...]
    scores: Mapping[str, tuple[Scores, ...]]
    passages: tuple[Sequence[float], Sequence[int]] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """Plain values; ``scores`` is left out without further judges."""
        found, other, kl = self.positive, self.negative, self.divergence
        values = {
            "name": self.name,
            "refusals": found.count,
            "n_refuse": found.n,
            "refusal_interval": found.interval,
            "over_refusals": other.count,
            "n_comply": other.n,
            "over_refusal_interval": other.interval,
            "kl_first": kl.first,
            "kl_first_se": kl.first_se,
            "kl_continuation": kl.continuation,
            "kl_continuation_se": kl.continuation_se,
            "nll": self.nll,
            "unscored": found.unscored + other.unscored,
            "replacement": asdict(self.replacement),
            "examples": self.examples,
        }
        further = {
            name: {side: each.summary() for side, each in zip(SIDES, both, strict=True)}
            for name, both in self.scores.items()
        }
        return {**values, "scores": further} if further else values


@dataclass(eq=False)
class Bench:
    """Held-out prompts of both classes, measured once on the base model and then on any edit.

    positive: prompts whose responses the judge should flag of the base, as refusals for instance. negative:
    prompts on which an edit should change nothing. response_tokens: length of responses. judged_tokens: first
    tokens of a response that are judged; None for all. continuation: tokens of the k-token KL. passages:
    neutral text; None for all that is shipped. judges: further ones, whose mean scores of whole responses
    become part of every row.
    """

    lm: LM
    positive: PromptSet
    negative: PromptSet
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
        self.batches = (lm.tokens(self.positive), lm.tokens(self.negative))
        self.neutral = neutral_batch(lm, self.passages)
        self.reference = reference(self.lm, self.batches[1], tokens=self.continuation)
        self.base_ids = generate_ids(lm, self.batches[0], tokens=self.response_tokens)

    def row(self, name: str, edit: AnyEdit = None) -> BenchRow:
        """Measure one edit (None: the base itself, whose divergences are 0 by definition)."""
        lm = self.lm.using(watch=within(self.lm.watch, name))
        kl = Divergence(0.0, 0.0, 0.0, 0.0)
        if edit is not None:
            kl = divergence(lm, self.reference, edit)
        ids = self.responses(edit, kl.agreed, name)
        texts = [self.texts(batch, each) for batch, each in zip(self.batches, ids, strict=True)]
        found, other = (self.judged(b, each) for b, each in zip(self.batches, ids, strict=True))
        was = self.judged(self.batches[0], self.base_ids).flagged
        if edit is None:
            side, rows = 1, [i for i, flag in enumerate(other.flagged) if not flag]
        else:
            side, rows = 0, replaced(was, found.flagged)
        prompts = (self.positive.prompts, self.negative.prompts)
        shown = [i for i, flag in enumerate(was) if flag][:EXAMPLES]
        nats, tokens = passage_nats(lm, self.neutral, edit)
        return BenchRow(
            name,
            found,
            other,
            kl,
            nats.sum().item() / int(tokens.sum()),
            measured(self.lm, prompts[side], self.batches[side], ids[side], rows),
            tuple({"prompt": prompts[0][i], "response": texts[0][i]} for i in shown),
            {j.name: tuple(map(judge, texts, (j, j), prompts)) for j in self.judges},
            (nats.tolist(), tokens.tolist()),
        )

    def responses(
        self, edit: AnyEdit = None, agreed: Sequence[int] = (), name: str = "edited"
    ) -> tuple[Int[Tensor, "positive seq"], Int[Tensor, "negative seq"]]:
        """Responses to both classes, ``[n, tokens]`` each.

        agreed: for every negative prompt, how many first tokens of the base's response the edit keeps
        (:class:`interp.evaluate.divergence.Divergence`). A response that is kept whole, and those of the
        base itself, are taken from the reference.
        """
        lm, tokens = self.lm.using(watch=within(self.lm.watch, name)), self.response_tokens
        positive, negative = self.batches
        known = self.reference.first_ids(tokens)
        if edit is None:
            known = generate_ids(lm, negative, tokens=tokens) if known is None else known
            return self.base_ids, known
        kept = agreed if known is not None and agreed else [0] * len(negative)
        changed = torch.tensor([i for i, n in enumerate(kept) if n < tokens], dtype=torch.long)
        # Both classes in one batch: a decoding step reads the weights once for all of them.
        whole = positive.followed_by(negative.chosen(changed)) if len(changed) else positive
        new, rest = generate_ids(lm, whole, edit, tokens=tokens).split(
            [len(positive), len(changed)]
        )
        responses = (rest if known is None else known).clone()
        responses[changed] = rest
        return new, responses

    def texts(self, batch: TokenBatch, ids: Ids) -> list[str]:
        """Responses ``[n, tokens]`` to a class as text."""
        return response_texts(self.lm.tokenizer, batch.ids, ids)

    def judged(self, batch: TokenBatch, ids: Ids) -> Scores:
        """The judge's scores of the first ``judged_tokens`` of responses to a class."""
        return judge(self.texts(batch, ids[:, : self.judged_tokens]), self.judge)
