"""One row of measures per edit, on one bench of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from interp.backends.protocol import AnyEdit, Backend
from interp.data.chat import ChatFormat, encode
from interp.data.prompts import PromptSet
from interp.evaluate.divergence import CONTINUATION, Divergence, Reference, divergence, reference
from interp.evaluate.neutral import neutral_batch, neutral_nll
from interp.evaluate.refusal import ENGLISH_JUDGE, Judge, Judged, judge, respond
from interp.fitting import BATCH
from interp.types import TokenBatch
from interp.watching import Watch, unwatched

RESPONSE = 24


@dataclass(frozen=True, slots=True)
class Row:
    """Measures of one edit. Counts with Wilson 95 % intervals; KL and NLL in nats per token.

    refusals of n_refuse: refused requests; over_refusals of n_comply: refused answerable twins. Both counts
    are of responses that could be judged; unscored: how many could not, of both classes.
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

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """Held-out prompts of both classes with the base model's reference, ready to measure edits."""

    backend: Backend
    refuse: TokenBatch
    comply: TokenBatch
    neutral: TokenBatch
    reference: Reference
    response_tokens: int = RESPONSE
    batch_size: int = BATCH
    judge: Judge = ENGLISH_JUDGE

    @classmethod
    def prepare(
        cls,
        backend: Backend,
        refuse: PromptSet,
        comply: PromptSet,
        *,
        chat: ChatFormat | None = None,
        response_tokens: int = RESPONSE,
        continuation: int = CONTINUATION,
        passages: Sequence[str] | None = None,
        batch_size: int = BATCH,
        judge: Judge = ENGLISH_JUDGE,
        watch: Watch = unwatched,
    ) -> Bench:
        """Tokenise both classes and run the base model once on the comply prompts.

        passages: neutral text; None for all that is shipped.
        """
        r, c = (encode(backend.tokenizer, s.prompts, chat) for s in (refuse, comply))
        progress = watch("base continuations", len(c))
        ref = reference(backend, c, tokens=continuation, batch_size=batch_size, progress=progress)
        neutral = neutral_batch(backend, passages)
        return cls(backend, r, c, neutral, ref, response_tokens, batch_size, judge)

    def row(self, name: str, edit: AnyEdit = None, watch: Watch = unwatched) -> Row:
        """Measure one edit (None: the base itself, whose divergences are 0 by definition)."""
        d = Divergence(0.0, 0.0, 0.0, 0.0)
        if edit is not None:
            progress = watch(f"{name}: KL", len(self.comply))
            d = divergence(self.backend, self.reference, edit, progress=progress)
        refused, over = self.responses(edit, watch, name, d.agreed)
        progress = watch(f"{name}: neutral text", len(self.neutral))
        nll = neutral_nll(
            self.backend, self.neutral, edit, batch_size=self.batch_size, progress=progress
        )
        return Row(
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
        )

    def responses(
        self,
        edit: AnyEdit = None,
        watch: Watch = unwatched,
        name: str = "",
        agreed: Sequence[int] = (),
    ) -> tuple[Judged, Judged]:
        """Judged responses to both classes; the base's to comply prompts are in the reference.

        agreed: of every comply prompt, for how many tokens the edit leaves that response as it is
        (:class:`interp.evaluate.divergence.Divergence`); as far as nothing changes, nothing is generated.
        """
        known = self.reference.responses(self.backend.tokenizer, self.response_tokens)
        changed = range(len(self.comply))
        if known and (edit is None or agreed):
            changed = [i for i, n in enumerate(agreed) if n < self.response_tokens]
        asked = self.refuse
        if changed:
            asked = asked.followed_by(self.comply.chosen(torch.tensor(changed)))
        # Both classes in one batch: a decoding step reads the weights once for all of them.
        texts = respond(
            self.backend,
            asked,
            edit,
            tokens=self.response_tokens,
            batch_size=2 * self.batch_size,
            progress=watch(f"{name}: responses", len(asked)),
        )
        n = len(self.refuse)
        over = known or [""] * len(self.comply)
        for place, text in zip(changed, texts[n:], strict=True):
            over[place] = text
        return judge(texts[:n], self.judge), judge(over, self.judge)
