"""``LM``: a model with its tokenizer, chat format and batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from interp.backends.opening import open_model as open_backend
from interp.backends.protocol import AnyEdit, Backend, all_sites, model_inputs
from interp.backends.steps import Decided, Draws, Sampling, Steps, Until
from interp.data.chat import ChatFormat, encode, pad_left, text_ids
from interp.data.prompts import PromptSet
from interp.edits import Edit, to_delta
from interp.errors import InterpError, PromptError, SiteError
from interp.interventions import Interventions
from interp.readings import Cache, Generated, Lens, LogProbs, Metric, Patching
from interp.site_names import SiteNames
from interp.sites import Site
from interp.types import TokenBatch, WeightDelta
from interp.watching import Watch, unwatched

Prompts: TypeAlias = str | Sequence[str] | PromptSet | TokenBatch
"""One text, several, a prompt set, or tokens. Texts go through the chat template, unless ``chat`` is None."""

At: TypeAlias = str | int | tuple[int, ...]
"""``"all"``, ``"prompt"``, ``"response"``, or offsets from the end (−1: the last token)."""

BATCH = 32


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

    def using(self, **changes: Any) -> LM:
        """A copy with another ``chat``, ``batch_size`` or ``watch``; the weights are shared."""
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

    def tokens(self, prompts: Prompts, responses: Sequence[str] | None = None) -> TokenBatch:
        """Left-padded tokens of prompts, each followed by its response if there are responses."""
        if isinstance(prompts, TokenBatch):
            batch = prompts
        else:
            texts = _texts(prompts)
            if self.chat is not None:
                batch = encode(self.tokenizer, texts, self.chat)
            elif self.tokenizer is None:
                raise PromptError("this model has no tokenizer; give a TokenBatch")
            else:
                batch = pad_left([text_ids(self.tokenizer, t) for t in texts], self._pad)
        return batch if responses is None else self._with_responses(batch, responses)

    @property
    def _pad(self) -> int:
        return getattr(self.tokenizer, "pad_token_id", None) or 0

    def _with_responses(self, batch: TokenBatch, responses: Sequence[str]) -> TokenBatch:
        if len(responses) != len(batch):
            raise PromptError(
                f"{len(responses)} responses for {len(batch)} prompts; give one for each"
            )
        new = [self.tokenizer(r, add_special_tokens=False).input_ids for r in responses]
        if empty := [i for i, ids in enumerate(new) if not ids]:
            raise PromptError(f"response {empty[0] + 1} is empty; leave out its prompt")
        real = zip(batch.ids, batch.mask, strict=True)
        prompts = [ids[mask.bool()].tolist() for ids, mask in real]
        whole = pad_left([p + r for p, r in zip(prompts, new, strict=True)], self._pad)
        return TokenBatch(whole.ids, whole.mask, torch.tensor([len(r) for r in new]))

    def _chunks(
        self, batch: TokenBatch, label: str, *, by_length: bool = True
    ) -> Iterator[tuple[Tensor, TokenBatch]]:
        """Rows and their tokens, a batch at a time; prompts of like length share one."""
        order = batch.lengths.argsort(stable=True) if by_length else torch.arange(len(batch))
        progress = self.watch(label, len(batch))
        for rows in order.split(self.batch_size):
            yield rows, batch.chosen(rows)
            progress(len(rows))

    # --- reading ----------------------------------------------------------------------------------

    def residuals(self, prompts: Prompts, edit: AnyEdit = None, *, at: int = -1) -> Tensor:
        """The stream at one position, embedding and every block: ``[1 + block, prompt, d_model]``."""
        sites = (self.embed, *self.resid_post)
        found = self.activations(prompts, sites, edit, at=at)
        return torch.stack([found[site] for site in sites])

    def activations(
        self,
        prompts: Prompts,
        sites: Site | Sequence[Site],
        edit: AnyEdit = None,
        *,
        at: At = -1,
        reduce: str | None = None,
        responses: Sequence[str] | None = None,
    ) -> Cache:
        """Activations of any number of prompts, by site.

        at: one offset gives ``[prompt, d]``, several ``[prompt, offset, d]``; a span gives
        ``[prompt, position, d]``, left-padded with zeros (``cache.mask``). Offsets count from the end of the
        prompt (−1: its last token, 0: the first of the response). reduce: ``"mean"`` over the span,
        ``[prompt, d]``. responses: texts that follow the prompts; needed for ``at="response"``.
        """
        if reduce not in (None, "mean"):
            raise InterpError(f"reduce is None or 'mean', not {reduce!r}")
        wanted = (sites,) if isinstance(sites, Site) else tuple(sites)
        batch = self.tokens(prompts, responses)
        if at == "response" and batch.response is None:
            raise PromptError("at='response' needs responses: give responses=[...], one per prompt")
        parts: list[tuple[Tensor, dict[Site, Tensor], Tensor | None]] = []
        for rows, chunk in self._chunks(batch, "activations"):
            with self._editing_rows(edit, rows, len(batch)):
                found, mask = self._span(chunk, wanted, at)
            if reduce == "mean":
                assert mask is not None
                found = {s: _mean(value, mask) for s, value in found.items()}
                mask = None
            parts.append((rows, found, mask))
        return Cache.joined(wanted, parts)

    def _span(
        self, chunk: TokenBatch, sites: tuple[Site, ...], at: At
    ) -> tuple[dict[Site, Tensor], Tensor | None]:
        """Activations of one batch at what ``at`` means, and the mask of a span."""
        if at == -1 and chunk.response is None:
            return self.backend.capture(chunk, sites, -1), None
        whole = self.backend.capture(chunk, sites, None)
        columns = torch.arange(chunk.ids.shape[1])
        offsets = columns - chunk.prompt_end.cpu().unsqueeze(-1)
        if isinstance(at, str):
            spans = {"all": offsets == offsets, "prompt": offsets < 0, "response": offsets >= 0}
            if at not in spans:
                raise SiteError(f"at is one of {', '.join(spans)} or offsets, not {at!r}")
            mask = spans[at] & chunk.mask.cpu().bool()
            return {s: v * mask.unsqueeze(-1).to(v) for s, v in whole.items()}, mask
        several = at if isinstance(at, tuple) else (at,)
        places = chunk.prompt_end.cpu().unsqueeze(-1) + torch.tensor(several)
        if not bool(((places >= 0) & (places < chunk.ids.shape[1])).all()):
            raise SiteError(
                f"an offset of {at} is outside some prompt; −1 is the last prompt token"
            )
        rows = torch.arange(len(chunk)).unsqueeze(-1)
        taken = {site: value[rows, places] for site, value in whole.items()}
        return (taken if isinstance(at, tuple) else {s: v[:, 0] for s, v in taken.items()}), None

    @contextmanager
    def _editing_rows(self, edit: AnyEdit, rows: Tensor, total: int) -> Iterator[None]:
        """An edit in place for some rows of a batch of ``total``."""
        if isinstance(edit, Interventions):
            if edit.strengths > 1:
                raise InterpError(
                    "several strengths make several responses; use generate or logits"
                )
            edit = edit.rows(rows)
        with self.backend.editing(edit):
            yield

    def run_with_cache(
        self,
        prompts: Prompts,
        names_filter: str | Site | Sequence[str | Site] | Callable[[str], bool] | None = None,
        edit: AnyEdit = None,
    ) -> tuple[Tensor, Cache]:
        """Logits ``[prompt, seq, vocab]`` and activations ``[prompt, seq, d]``, in one forward pass.

        names_filter: TransformerLens names, sites, or a predicate on names; None for the stream and all
        components. The cache answers ``cache["blocks.5.hook_resid_post"]`` and ``cache["resid_post", 5]``.
        """
        batch = self.tokens(prompts)
        given = [names_filter] if isinstance(names_filter, str | Site) else names_filter
        if given is None or callable(given):
            keep = given or (lambda name: True)
            sites = tuple(s for s in all_sites(self.anatomy) if keep(s.hook_name))
        else:
            sites = tuple(s if isinstance(s, Site) else Site.parse(s) for s in given)
        logits, found = self.backend.run(batch, sites, edit)
        return logits, Cache({s: found[s] for s in sites}, batch.mask.bool())

    def logits(self, prompts: Prompts, edit: AnyEdit = None, *, at: int = -1) -> Tensor:
        """Logits of the next token at one position, ``[prompt, vocab]``.

        at: offset from the end. With several strengths: ``[strength, prompt, vocab]``.
        """
        batch = self.tokens(prompts)
        several = edit.strengths if isinstance(edit, Interventions) else 1
        whole, edit = _repeated(batch, edit)
        out: list[Tensor] = [torch.empty(0)] * len(whole)
        for rows, chunk in self._chunks(whole, "logits"):
            own = edit.rows(rows) if isinstance(edit, Interventions) else edit
            found = self.backend.logits(chunk, own, at)
            for row, value in zip(rows.tolist(), found, strict=True):
                out[row] = value
        stacked = torch.stack(out)
        return stacked.unflatten(0, (several, len(batch))) if several > 1 else stacked

    def logprobs(
        self, prompts: Prompts, responses: Sequence[str], edit: AnyEdit = None
    ) -> LogProbs:
        """Log-probability of every token of given responses, in nats."""
        batch = self.tokens(prompts, responses)
        assert batch.response is not None
        found: list[Tensor] = [torch.empty(0)] * len(batch)
        for rows, chunk in self._chunks(batch, "logprobs"):
            own = edit.rows(rows) if isinstance(edit, Interventions) else edit
            assert chunk.response is not None
            longest = int(chunk.response.max())
            logits = self.backend.logits(chunk, own, tuple(range(-longest - 1, 0)))[:, :-1]
            ids = chunk.ids[:, -longest:].cpu().unsqueeze(-1)
            each = logits.float().log_softmax(-1).cpu().gather(-1, ids).squeeze(-1)
            for row, value, n in zip(rows.tolist(), each, chunk.response.tolist(), strict=True):
                found[row] = value[-n:]
        return LogProbs(tuple(found))

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
        batch, draws = self.tokens(prompts), sampling or Sampling(temperature=0.0)
        samples = draws.samples
        several = edit.strengths if isinstance(edit, Interventions) else 1
        each = torch.arange(len(batch)).repeat_interleave(samples)
        own = edit.rows(each) if isinstance(edit, Interventions) else edit
        whole, own = _repeated(batch.chosen(each), own)
        ids = torch.zeros(len(whole), tokens, dtype=torch.long)
        for rows, chunk in self._chunks(whole, "responses"):
            steps = self._steps(draws, until, (rows % len(each)).tolist(), chunk)
            here = own.rows(rows) if isinstance(own, Interventions) else own
            ids[rows] = self.backend.generate(chunk, here, tokens=tokens, steps=steps)
        shape = [("strength", several), ("prompt", len(batch)), ("sample", samples)]
        kept = [(name, n) for name, n in shape if name == "prompt" or n > 1]
        axes = tuple(name for name, _ in kept)
        return Generated(ids.view(*(n for _, n in kept), tokens), axes, self.tokenizer)

    def _steps(
        self, draws: Sampling, until: Decided | None, keys: list[int], chunk: TokenBatch
    ) -> Steps:
        columns = chunk.ids.shape[1]
        processors = (Draws(draws, keys, columns),) if draws.temperature else ()
        criteria = (Until(self.tokenizer, until, columns),) if until else ()
        return Steps(processors, criteria)

    def editing(self, edit: AnyEdit) -> AbstractContextManager[None]:
        """The model with an edit in place, for everything inside the block."""
        return self.backend.editing(edit)

    def to_delta(self, edit: Interventions | Edit, **provenance: Any) -> WeightDelta:
        """The same edit as a difference of weights. NotExpressible says why there is none."""
        about = {"model": getattr(self.backend, "source", ""), **provenance}
        return to_delta(self.hf, self.anatomy, edit, provenance=about)

    def forward(self, prompts: Prompts, edit: AnyEdit = None) -> Tensor:
        """Logits ``[prompt, seq, vocab]`` of one batch with gradients, for training and attribution."""
        batch = self.tokens(prompts).to(next(self.hf.parameters()).device)
        with torch.enable_grad(), self.backend.editing(edit):
            self.backend.begin(batch)
            return self.hf(**model_inputs(self.hf, batch), use_cache=False).logits

    # --- looking inside ---------------------------------------------------------------------------

    def lens(self, prompts: Prompts, edit: AnyEdit = None, *, at: int = -1) -> Lens:
        """The vocabulary logit lens: what every block's stream reads out as (nostalgebraist 2020)."""
        return Lens(self.residuals(prompts, edit, at=at), self.hf, self.anatomy, self.tokenizer)

    def patching(
        self,
        clean: Prompts,
        corrupted: Prompts,
        sites: Sequence[Site],
        metric: Metric,
        *,
        at: Sequence[int] = (-1,),
    ) -> Patching:
        """Activation patching: clean activations in the corrupted run, one site and offset at a time.

        metric: logits ``[prompt, vocab]`` → one number per prompt. Prompts are paired: as many corrupted as
        clean.
        """
        from interp.interventions import replace as put

        good, bad = self.tokens(clean), self.tokens(corrupted)
        if len(good) != len(bad):
            raise PromptError(f"{len(good)} clean prompts and {len(bad)} corrupted ones; pair them")
        values = self.activations(good, sites, at=tuple(at))
        progress = self.watch("patching", len(sites) * len(at))
        grid = []
        for site in sites:
            for column, offset in enumerate(at):
                edit = put(site, values[site][:, column], where=offset)
                grid.append(metric(self.logits(bad, edit)))
                progress(1)
        effects = torch.stack(grid).unflatten(0, (len(sites), len(at)))
        ends = (metric(self.logits(good)), metric(self.logits(bad)))
        return Patching(tuple(sites), tuple(at), effects, *ends)


def open_model(
    name: str = "smollm2",
    *,
    backend: str = "hooks",
    chat: ChatFormat | None = ChatFormat(),  # noqa: B008 (frozen)
    batch_size: int = BATCH,
    watch: Watch = unwatched,
    **loading: Any,
) -> LM:
    """The model behind a name as an :class:`LM`: ``smollm2``, a directory or a hub id.

    backend: ``hooks``, ``transformer_lens`` or ``nnsight``. loading: ``dtype``, ``device_map``, ``quantize``,
    ``revision``, ``trust_remote_code``. Errors: see :func:`interp.backends.open_model`.
    """
    opened = open_backend(name, backend=backend, **loading)
    return LM(opened, chat, batch_size, watch)


def _texts(prompts: str | Sequence[str] | PromptSet) -> list[str]:
    if isinstance(prompts, str):
        return [prompts]
    return list(prompts.prompts if isinstance(prompts, PromptSet) else prompts)


def _repeated(batch: TokenBatch, edit: AnyEdit) -> tuple[TokenBatch, AnyEdit]:
    """The batch once for every strength of the edit, and the edit with one strength per row."""
    if not isinstance(edit, Interventions):
        return batch, edit
    rows = torch.arange(edit.strengths * len(batch)) % len(batch)
    return batch.chosen(rows), edit.expanded(len(batch))


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions of a mask ``[n, position]``, summed in float32."""
    kept = mask.unsqueeze(-1).to(values.device)
    return ((values.float() * kept).sum(1) / kept.sum(1)).to(values.dtype)
