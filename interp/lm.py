"""``LM``: a model with its tokenizer, chat format and batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from interp.attribution import Attribution, Openers, attribute
from interp.backends.attention import attention_pattern
from interp.backends.protocol import AnyEdit, Backend
from interp.backends.steps import Decided, Draws, Sampling, Steps, Until
from interp.batches import each, repeated
from interp.data.chat import ChatFormat
from interp.data.tokens import Prompts, Tokens, followed, needed, prompt_tokens
from interp.edits import Edit, to_delta
from interp.errors import InterpError, PromptError, SiteError
from interp.export import export_on
from interp.interventions import Interventions
from interp.places import site_of
from interp.readings import (
    At,
    Cache,
    Generated,
    Lens,
    LogProbs,
    Metric,
    Patching,
    check_offsets,
    check_reduce,
    measured,
    offsets_of,
    read_at,
    span_mean,
)
from interp.site_names import Given, SiteNames
from interp.sites import Site
from interp.types import TokenBatch, WeightDelta
from interp.watching import Watch, unwatched

BATCH = 32
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LM(SiteNames):
    """A model ready to use. :func:`interp.open_model` makes one; :meth:`using` gives a changed copy.

    backend: how the model is read and edited. chat: how texts become prompts; None for plain text.
    batch_size: rows of one forward pass. watch: progress.
    """

    backend: Backend
    chat: ChatFormat | None = field(default_factory=ChatFormat)
    batch_size: int = BATCH
    watch: Watch = unwatched

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InterpError(f"a batch has rows from 1 on, got batch_size={self.batch_size}")

    def using(self, **changes: Any) -> LM:
        """A copy with another ``chat``, ``batch_size`` or ``watch``; the weights are shared."""
        if unknown := changes.keys() - {"chat", "batch_size", "watch"}:
            raise InterpError(f"{min(unknown)} cannot be changed; change chat, batch_size or watch")
        return replace(self, **changes)

    # --- what is inside ---------------------------------------------------------------------------

    @property
    def bridge(self) -> Any:
        """TransformerLens's ``TransformerBridge`` over the same weights (``backend="transformer_lens"``)."""
        return self._library("bridge", "transformer_lens")

    @property
    def nnsight(self) -> Any:
        """nnsight's model over the same weights (``backend="nnsight"``)."""
        return self._library("lm", "nnsight")

    def _library(self, attribute: str, backend: str) -> Any:
        found = getattr(self.backend, attribute, None)
        if found is None:
            raise InterpError(
                f"this model was opened with backend={self.backend.name!r}; "
                f"open it with backend={backend!r}"
            )
        return found

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with left padding; None for a model without one."""
        return self.backend.tokenizer

    # --- tokens -----------------------------------------------------------------------------------

    def tokens(self, prompts: Prompts, responses: str | Sequence[str] | None = None) -> TokenBatch:
        """Left-padded tokens of prompts, each followed by its response if there are responses."""
        batch = prompt_tokens(self.tokenizer, prompts, self.chat)
        return batch if responses is None else followed(self.tokenizer, batch, responses)

    def _each(
        self,
        batch: TokenBatch,
        edit: AnyEdit,
        label: str,
        call: Callable[[Tensor, TokenBatch], T],
    ) -> list[tuple[Tensor, T]]:
        """Row numbers and results of ``call(rows, tokens)``, a batch at a time, with the edit in place.

        Raises SiteError for an edit at a position that the batch does not have.
        """
        if isinstance(edit, Interventions):
            edit.check_positions(batch)
        progress = self.watch(label, len(batch))
        return each(self.backend, batch, edit, call, size=self.batch_size, progress=progress)

    # --- reading ----------------------------------------------------------------------------------

    def residuals(self, prompts: Prompts, edit: AnyEdit = None, *, at: int = -1) -> Tensor:
        """The stream at one position, embedding and every block: ``[1 + block, prompt, d_model]``."""
        sites = (self.embed, *self.resid_post)
        found = self.activations(prompts, sites, edit, at=at)
        return torch.stack([found[site] for site in sites])

    def activations(
        self,
        prompts: Prompts,
        sites: Given,
        edit: AnyEdit = None,
        *,
        at: At = -1,
        reduce: str | None = None,
        responses: str | Sequence[str] | None = None,
    ) -> Cache:
        """Activations of any number of prompts, by site; a head or neuron gives its own coordinates.

        sites: sites, parts of sites, TransformerLens names, or kind and block. at: one offset gives
        ``[prompt, d]``, several ``[prompt, offset, d]``; a span gives ``[prompt, position, d]``, left-padded
        with zeros (``cache.mask``). Offsets count from the end of the prompt (−1: its last token, 0: the
        first of the response). reduce: ``"mean"`` over the span or offsets, ``[prompt, d]``. responses: texts
        that follow the prompts; needed for ``at="response"``.

        Raises SiteError for an offset outside a prompt, PromptError where responses are missing.
        """
        check_reduce(reduce, at)
        wanted = tuple(dict.fromkeys(site_of(place) for place in self.places(sites)))
        batch = self.tokens(prompts, responses)
        if at == "response" and batch.response is None:
            raise PromptError("at='response' needs responses: give responses=[...], one per prompt")
        offsets = offsets_of(at)
        check_offsets(batch, offsets)

        def read(rows: Tensor, chunk: TokenBatch) -> tuple[dict[Site, Tensor], Tensor | None]:
            found, mask = read_at(self.backend, chunk, wanted, at)
            if reduce is None:
                return found, mask
            whole = torch.ones(len(chunk), len(offsets)) if mask is None else mask
            return {s: span_mean(value, whole) for s, value in found.items()}, None

        parts = self._each(batch, edit, "activations", read)
        joined = [(rows, *found) for rows, found in parts]
        return Cache.joined(wanted, joined, self.hook_points.place)

    def run_with_cache(
        self,
        prompts: Prompts,
        names_filter: Given | Callable[[str], bool] | None = None,
        edit: AnyEdit = None,
        *,
        gradients: bool = False,
    ) -> tuple[Tensor, Cache]:
        """Logits ``[prompt, seq, vocab]`` and activations ``[prompt, seq, d]``, in one forward pass.

        names_filter: TransformerLens names, sites, or a predicate on names; None for all that have a name
        (``lm.hook_points.by_name``) and that the backend's library reaches. The cache answers
        ``cache["blocks.5.hook_resid_post"]``, ``cache["resid_post", 5]`` and ``cache["z", 5]``, which is
        ``[prompt, seq, head, d_head]``. ``cache.mask`` says which positions are real; padding is zeros. All
        prompts are one batch.

        gradients: the logits have gradients with respect to the cached activations, as attribution patching
        needs; both are on the model's device, and padding keeps its values::

            logits, cache = lm.run_with_cache(prompts, lm.resid_post[5], gradients=True)
            margin = (logits[:, -1, good] - logits[:, -1, bad]).sum()
            (slope,) = torch.autograd.grad(margin, cache["resid_post", 5])  # [prompt, seq, d_model]
        """
        batch = self.tokens(prompts)
        if isinstance(edit, Interventions):
            edit.check_prompts(batch)
            edit.check_positions(batch)
        places = self._cached_places(names_filter)
        sites, mask = tuple(dict.fromkeys(map(site_of, places))), batch.mask.bool()
        wanted = tuple(dict.fromkeys((*sites, *places))) if gradients else sites
        logits, found = self.backend.run(batch, wanted, edit, gradients=gradients)
        if not gradients and not mask.all():
            for site, value in found.items():
                # In place, which spares a copy of every site; what an edit put in is not ours to change.
                own = value if edit is None and value.is_contiguous() else value.clone()
                own[~mask] = 0
                found[site] = own
        return logits, Cache(found, self.hook_points.place, mask)

    def logits(
        self, prompts: Prompts, edit: AnyEdit = None, *, at: int | Sequence[int] = -1
    ) -> Tensor:
        """Logits of the next token, ``[prompt, vocab]``.

        at: one offset, or several, ``[prompt, offset, vocab]``; −1 is the last token of prompt and response.
        Several strengths: one axis more, in front. Raises SiteError for an offset outside a prompt.
        """
        batch = self.tokens(prompts)
        offsets = at if isinstance(at, int) else offsets_of(at)
        # From the last token, be it of a prompt or of a response.
        check_offsets(TokenBatch(batch.ids, batch.mask), offsets_of(at))
        several = edit.strengths if isinstance(edit, Interventions) else 1
        whole, edit = repeated(batch, edit)
        parts = self._each(
            whole, edit, "logits", lambda _, chunk: self.backend.logits(chunk, None, offsets)
        )
        back = torch.cat([rows for rows, _ in parts]).argsort()
        stacked = torch.cat([found for _, found in parts])[back]
        return stacked.unflatten(0, (several, len(batch))) if several > 1 else stacked

    def logprobs(
        self, prompts: Prompts, responses: str | Sequence[str], edit: AnyEdit = None
    ) -> LogProbs:
        """Log-probability of every token of given responses, in nats."""
        batch = self.tokens(prompts, responses)
        assert batch.response is not None
        parts = self._each(batch, edit, "logprobs", lambda _, chunk: self._response_logprobs(chunk))
        by_row = {
            int(row): value for rows, found in parts for row, value in zip(rows, found, strict=True)
        }
        return LogProbs(tuple(by_row[row] for row in range(len(batch))))

    def _response_logprobs(self, chunk: TokenBatch) -> list[Tensor]:
        """Log-probabilities ``[token]`` of the response of every row."""
        assert chunk.response is not None
        longest = int(chunk.response.max())
        logits = self.backend.logits(chunk, None, tuple(range(-longest - 1, 0)))[:, :-1]
        ids = chunk.ids[:, -longest:].unsqueeze(-1)
        found = logits.gather(-1, ids).squeeze(-1).float() - logits.float().logsumexp(-1)
        return [value[-n:] for value, n in zip(found, chunk.response.tolist(), strict=True)]

    # --- writing ----------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompts,
        edit: AnyEdit = None,
        *,
        tokens: int = 64,
        sampling: Sampling | None = None,
        until: Decided | None = None,
    ) -> Generated:
        """Responses: greedy, or drawn with ``sampling``.

        until: ends responses early; called with texts, says of each whether it needs no further token.
        The result has an axis for strengths and one for samples where several are asked for.
        """
        if tokens < 0:
            raise InterpError(f"tokens are counted from 0, got {tokens}")
        batch, draws = self.tokens(prompts), sampling or Sampling(temperature=0.0)
        samples = draws.samples
        several = edit.strengths if isinstance(edit, Interventions) else 1
        copies = torch.arange(len(batch)).repeat_interleave(samples)
        own = edit
        if isinstance(edit, Interventions):
            edit.check_prompts(batch)
            own = edit.rows(copies)
        whole, own = repeated(batch.chosen(copies), own)
        ids = torch.zeros(len(whole), tokens, dtype=torch.long)

        def write(rows: Tensor, chunk: TokenBatch) -> None:
            keys = [divmod(row % len(copies), samples) for row in rows.tolist()]
            steps = self._steps(draws, until, keys, chunk)
            ids[rows] = self.backend.generate(chunk, tokens=tokens, steps=steps)

        # Not self._each: positions of the response are yet to come.
        progress = self.watch("responses", len(whole))
        each(self.backend, whole, own, write, size=self.batch_size, progress=progress)
        shape = [("strength", several), ("prompt", len(batch)), ("sample", samples)]
        kept = [(name, n) for name, n in shape if name == "prompt" or n > 1]
        axes = tuple(name for name, _ in kept)
        return Generated(ids.view(*(n for _, n in kept), tokens), axes, self.tokenizer)

    def _steps(
        self, draws: Sampling, until: Decided | None, keys: list[tuple[int, int]], chunk: TokenBatch
    ) -> Steps:
        columns = chunk.ids.shape[1]
        processors = (Draws(draws, keys, columns),) if draws.temperature else ()
        criteria = (Until(needed(self.tokenizer), until, columns),) if until else ()
        return Steps(processors, criteria)

    def editing(self, edit: AnyEdit) -> AbstractContextManager[None]:
        """The model with an edit in place inside the block: this LM, ``lm.hf`` and the backend's library.

        Calls of ``lm.hf`` do not say where prompts end, so there the edit has to act at all positions. Raises
        SiteError for values or strengths of single prompts: give such an edit to the call that it is for.
        """
        if isinstance(edit, Interventions) and edit.row_count is not None:
            raise SiteError(
                f"this edit has one value for each of {edit.row_count} prompts, and what runs inside editing "
                "may have others or another order; give it to the call: lm.logits(prompts, edit)"
            )
        return self.backend.editing(edit)

    def to_delta(self, edit: Interventions | Edit, **provenance: Any) -> WeightDelta:
        """The same edit as a difference of weights; ``delta.export`` writes it for other tools.

        Raises NotExpressible with the reason where an edit has no exact weight form.
        """
        about = {"model": self.backend.source, **provenance}
        made = to_delta(self.hf, self.anatomy, edit, provenance=about)
        return replace(made, exported_by=partial(export_on, self.backend))

    def forward(self, prompts: Prompts, edit: AnyEdit = None) -> Tensor:
        """Logits ``[prompt, seq, vocab]`` with gradients, on the model's device, of all prompts in one batch.

        For training and learned edits: gradients reach the parameters of ``lm.hf`` and tensors of the edit
        that require them. Left padding is in ``lm.tokens(prompts).mask``. For gradients with respect to
        activations see :meth:`run_with_cache`.
        """
        batch = self.tokens(prompts)
        if isinstance(edit, Interventions):
            edit.check_prompts(batch)
            edit.check_positions(batch)
        return self.backend.forward(batch, edit)

    # --- looking inside ---------------------------------------------------------------------------

    def lens(self, prompts: Prompts, edit: AnyEdit = None, *, at: int = -1) -> Lens:
        """The vocabulary logit lens: what every block's stream reads out as (nostalgebraist 2020)."""
        return Lens(self.residuals(prompts, edit, at=at), self.hf, self.anatomy, self.tokenizer)

    def attention(self, prompts: Prompts, block: int, edit: AnyEdit = None) -> Tensor:
        """Attention pattern of every head of a block, ``[prompt, head, query, key]``.

        All prompts are one batch; padding has weight 0. Raises SiteError for a block without attention.
        """
        with self.editing(edit):
            return attention_pattern(self.backend, self.tokens(prompts), block)

    def attribution(
        self, prompts: Prompts, token: Tokens, other: Tokens, edit: AnyEdit = None
    ) -> Attribution:
        """What embedding and components write of ``logit(token) − logit(other)``, in logits.

        token, other: one token each, or several, whose mean logit counts. At the last prompt token, with the
        final norm's scale held fixed for each prompt; contributions ``[prompt, component]`` and a constant
        sum to the difference (:mod:`interp.attribution.direct`).
        """
        openers = Openers.of(self.tokenizer, token, other)
        with self.editing(edit):
            return attribute(
                self.backend, self.tokens(prompts), openers, batch_size=self.batch_size
            )

    def patching(
        self,
        clean: Prompts,
        corrupted: Prompts,
        sites: Given,
        metric: Metric,
        *,
        at: int | Sequence[int] = (-1,),
    ) -> Patching:
        """Effects of clean activations put into the corrupted run, one site and offset at a time.

        sites: sites, heads or neurons. metric: logits ``[prompt, vocab]`` → one number per prompt. Prompts
        are paired: as many corrupted as clean.
        """
        from interp.interventions import replace as put

        good, bad = self.tokens(clean), self.tokens(corrupted)
        if len(good) != len(bad):
            raise PromptError(f"{len(good)} clean prompts and {len(bad)} corrupted ones; pair them")
        places, offsets = self.places(sites), offsets_of(at)
        values = self.activations(good, places, at=offsets)
        progress = self.watch("patching", len(places) * len(offsets))
        grid = []
        for site in places:
            for column, offset in enumerate(offsets):
                edit = put(site, values[site][:, column], where=offset)
                grid.append(measured(metric, self.logits(bad, edit)))
                progress(1)
        effects = torch.stack(grid).unflatten(0, (len(places), len(offsets)))
        unpatched = (measured(metric, self.logits(each)) for each in (good, bad))
        return Patching(places, offsets, effects, *unpatched)
