"""The protocol that every backend keeps, and the parts that all of them share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from interp.backends.finite import ScoresNotFinite, all_finite, first_site, not_finite
from interp.backends.generation import padding_id
from interp.backends.limits import admitted, vocabulary
from interp.backends.steps import Steps
from interp.edits import Edit, applied
from interp.errors import InterpError, NotFinite, SiteError
from interp.hooking import Run, hooked, intervening, recording
from interp.interventions import Interventions
from interp.models.anatomy import Anatomy
from interp.places import Place, site_of
from interp.sites import Site
from interp.types import Ids, TokenBatch, WeightDelta

Positions = int | tuple[int, ...] | None
"""Negative offsets from the end of a left-padded prompt; None keeps every position."""

AnyEdit = Edit | Interventions | WeightDelta | None
GREEDY = Steps()
NamesFilter = str | Sequence[str] | Callable[[str], bool] | None


@runtime_checkable
class Backend(Protocol):
    """What a method may ask of a model. Tensors are returned on the CPU, in the stream's own dtype.

    ``capture`` gives ``[batch, d]`` for one position, ``[batch, n, d]`` for several or all.
    ``generate`` is greedy and gives new ids only, ``[batch, tokens]``, padded after the end.
    ``forward`` gives logits ``[batch, seq, vocab]`` of ``model`` with gradients, on its device.
    ``editing`` keeps an edit in place for every call inside it, calls of ``model`` included. ``model`` is
    the transformers model: :func:`interp.edits.applied` on it edits the backend as well. ``source`` and
    ``loading`` are the name and the options that open the model again, ``device`` is where token ids go.
    """

    name: ClassVar[str]
    model: nn.Module
    tokenizer: Any
    anatomy: Anatomy
    source: str
    loading: Mapping[str, Any]

    @property
    def device(self) -> torch.device: ...

    def capture(
        self, batch: TokenBatch, sites: Sequence[Site], positions: Positions = -1
    ) -> dict[Site, Tensor]: ...

    def logits(
        self, batch: TokenBatch, edit: AnyEdit = None, positions: Positions = -1
    ) -> Tensor: ...

    def generate(
        self, batch: TokenBatch, edit: AnyEdit = None, *, tokens: int, steps: Steps = ...
    ) -> Ids: ...

    def run(
        self,
        batch: TokenBatch,
        sites: Sequence[Place],
        edit: AnyEdit = None,
        *,
        gradients: bool = ...,
    ) -> tuple[Tensor, dict[Any, Tensor]]: ...

    def reaches(self, site: Site) -> bool: ...

    def forward(self, batch: TokenBatch, edit: AnyEdit = None) -> Tensor: ...

    def editing(self, edit: AnyEdit) -> AbstractContextManager[None]: ...


def take(tensor: Tensor, positions: Positions) -> Tensor:
    """The wanted positions of ``[batch, seq, ...]``, copied: the full tensor can be freed."""
    if positions is None:
        return tensor
    if isinstance(positions, int):
        return tensor[:, positions].clone()
    return tensor[:, list(positions)]


def check_positions(positions: Positions, seq: int) -> None:
    """Raise SiteError for a position that is not a negative offset inside the prompt."""
    wanted = (positions,) if isinstance(positions, int) else positions
    if wanted == ():
        raise SiteError("no position asked for; -1 is the last token, None is all of them")
    if bad := [p for p in wanted or () if not -seq <= p <= -1]:
        raise SiteError(
            f"position {bad[0]} is not in the prompt: count from its end, -{seq} … -1 "
            "(None for all)"
        )


def check_sites(anatomy: Anatomy, sites: Sequence[Site]) -> None:
    """Raise SiteError for a site that the model does not have."""
    components = {c.name for c in anatomy.components}
    writers = {w.name for w in anatomy.block_writers}
    for site in sites:
        if site.kind != "embed" and not 0 <= site.block < anatomy.n_blocks:
            raise SiteError(f"{site} is outside this model: blocks are 0 … {anatomy.n_blocks - 1}")
        if site.kind == "component" and site.name not in components:
            here = ", ".join(c.name for c in anatomy.in_block(site.block))
            raise SiteError(f"no component {site.name!r}; block {site.block} has {here}")
        if site.kind in ("writer_in", "writer_out") and site.name not in writers:
            raise SiteError(
                f"no writer {site.name!r} in a block; `interp inspect MODEL` lists them"
            )
        if site.kind == "resid_mid" and anatomy.resid_mid[site.block] is None:
            raise SiteError(
                f"block {site.block} of this {anatomy.model_type} is parallel or has one "
                "component: it has no resid_mid"
            )


def residual_sites(anatomy: Anatomy) -> list[Site]:
    """``embed`` and every ``resid_post``, in order."""
    return [Site.embed(), *(Site.resid_post(i) for i in range(anatomy.n_blocks))]


def all_sites(anatomy: Anatomy) -> list[Site]:
    """Every site that ``run_with_cache`` offers: stream and components."""
    sites = [Site.embed()]
    for i in range(anatomy.n_blocks):
        sites.append(Site.resid_pre(i))
        sites += [Site.component(c.name) for c in anatomy.in_block(i)]
        sites += [Site.resid_mid(i)] if anatomy.resid_mid[i] else []
        sites.append(Site.resid_post(i))
    return sites


def in_order(
    found: Mapping[Any, Tensor], wanted: Iterable[Any], mend: str = ""
) -> dict[Any, Tensor]:
    """What was captured, in the order asked for; SiteError for a site that was never reached."""
    wanted = tuple(wanted)
    if missing := [site for site in wanted if site not in found]:
        raise SiteError(f"the forward pass never reached {missing[0]}{mend}")
    return {site: found[site] for site in wanted}


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward pass names ``argument``."""
    return argument in inspect.signature(model.forward).parameters


def model_inputs(model: nn.Module, batch: TokenBatch) -> dict[str, Any]:
    """Forward arguments that make left padding invisible, limited to those the model knows."""
    given = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.positions}
    return {name: value for name, value in given.items() if accepts(model, name)}


def kept_logits(model: nn.Module, positions: Positions) -> dict[str, int]:
    """Forward argument that spares the unembedding of positions nobody asked for."""
    if positions is None or not accepts(model, "logits_to_keep"):
        return {}
    return {"logits_to_keep": -min((positions,) if isinstance(positions, int) else positions)}


class SharedBackend(ABC):
    """What the backends share: what goes in and what comes out is checked, and editing.

    Every forward pass runs on a batch that the model has room for (:mod:`interp.backends.limits`), and
    NaN or infinity is an error that names the first block (:mod:`interp.backends.finite`).
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, tokenizer: Any, anatomy: Anatomy, source: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.anatomy = anatomy
        self.source = source
        self.loading: Mapping[str, Any] = {}
        self._runs: list[Run] = []

    @abstractmethod
    def _capture(
        self, batch: TokenBatch, sites: Sequence[Site], positions: Positions
    ) -> dict[Site, Tensor]: ...

    @abstractmethod
    def _logits(self, batch: TokenBatch, positions: Positions) -> Tensor: ...

    @abstractmethod
    def _both(
        self, batch: TokenBatch, sites: Sequence[Site]
    ) -> tuple[Tensor, dict[Site, Tensor]]: ...

    @abstractmethod
    def _generate(self, batch: TokenBatch, tokens: int, pad: int, steps: Steps) -> Ids: ...

    @torch.no_grad()
    def capture(
        self, batch: TokenBatch, sites: Sequence[Site], positions: Positions = -1
    ) -> dict[Site, Tensor]:
        """Activations at ``sites``, in that order.

        Raises SiteError for a site or position that does not exist or that the backend does not reach,
        PromptError for a prompt that the model has no room for, NotFinite.
        """
        check_sites(self.anatomy, sites)
        check_positions(positions, batch.ids.shape[1])
        if not sites:
            return {}
        with self._passes(batch) as batch:
            found = self._capture(batch, tuple(dict.fromkeys(sites)), positions)
            mask = take(batch.mask, positions)
            if not all(all_finite(value, mask) for value in found.values()):
                raise self._not_finite(batch)
        return found

    @torch.no_grad()
    def logits(self, batch: TokenBatch, edit: AnyEdit = None, positions: Positions = -1) -> Tensor:
        """Logits ``[batch, vocab]`` for one position, ``[batch, n, vocab]`` otherwise.

        Raises as :meth:`capture` does.
        """
        check_positions(positions, batch.ids.shape[1])
        with self.editing(edit), self._passes(batch) as batch:
            found = self._logits(batch, positions)
            if not all_finite(found, take(batch.mask, positions)):
                raise self._not_finite(batch)
        return found

    @torch.no_grad()
    def run(
        self,
        batch: TokenBatch,
        sites: Sequence[Place],
        edit: AnyEdit = None,
        *,
        gradients: bool = False,
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Logits ``[batch, seq, vocab]`` and activations ``[batch, seq, d]`` at ``sites``, in one pass.

        gradients: logits depend on the activations, and both are on the model's device; ``sites`` may then be
        parts of sites as well. Raises as :meth:`capture` does.
        """
        check_sites(self.anatomy, [site_of(each) for each in sites])
        if gradients:
            return self._with_gradients(batch, sites, edit)
        with self.editing(edit), self._passes(batch) as batch:
            logits, found = self._both(batch, tuple(dict.fromkeys(sites)))
            if not all_finite(logits, batch.mask):
                raise self._not_finite(batch)
        return logits, found

    @torch.no_grad()
    def generate(
        self, batch: TokenBatch, edit: AnyEdit = None, *, tokens: int, steps: Steps = GREEDY
    ) -> Ids:
        """Continuation ``[batch, tokens]``, padded after the end of text; greedy unless ``steps`` draw.

        Raises PromptError for a prompt that leaves no room for ``tokens`` more, NotFinite.
        """
        if tokens < 1:
            return batch.ids[:, :0].cpu()
        pad = padding_id(self.tokenizer, self.model, vocabulary(self.anatomy))
        with self.editing(edit), self._passes(batch, tokens) as batch:
            try:
                return self._generate(batch, tokens, pad, steps)
            except ScoresNotFinite as found:
                more = found.ids[:, batch.ids.shape[1] :]
                raise self._not_finite(batch.extended(more)) from None

    def reaches(self, site: Site) -> bool:
        """Whether the backend's library has a value for a site of the model."""
        return True

    def _with_gradients(
        self, batch: TokenBatch, places: Sequence[Place], edit: AnyEdit
    ) -> tuple[Tensor, dict[Place, Tensor]]:
        with torch.enable_grad(), self.editing(edit), self._passes(batch) as batch:
            with recording(self.model, self.anatomy, places, batch.ids.shape) as found:
                logits = self.model(**model_inputs(self.model, batch), use_cache=False).logits
            return logits, in_order(found, dict.fromkeys(places))

    def forward(self, batch: TokenBatch, edit: AnyEdit = None) -> Tensor:
        """Logits ``[batch, seq, vocab]`` of the transformers model with gradients, on its device.

        Raises SiteError and PromptError as :meth:`logits` does.
        """
        with torch.enable_grad(), self.editing(edit), self._passes(batch) as batch:
            return self.model(**model_inputs(self.model, batch), use_cache=False).logits

    @contextmanager
    def _passes(self, batch: TokenBatch, more: int = 0) -> Iterator[TokenBatch]:
        """The batch on the model's device, with ``more`` tokens to follow; interventions know its prompts."""
        batch = admitted(self.model, self.tokenizer, self.anatomy, batch, more).to(self.device)
        self._begin(batch)
        try:
            yield batch
        finally:
            for run in self._runs:
                run.end()

    def _begin(self, batch: TokenBatch) -> None:
        """Tell interventions in place that the first pass of a batch is next."""
        for run in self._runs:
            run.begin(batch)

    @contextmanager
    def _running(self, edit: Interventions) -> Iterator[Run]:
        """A count of the passes of interventions while the context lasts."""
        check_sites(self.anatomy, [part.site for part in edit])
        if edit.strengths > 1:
            raise SiteError(
                f"{edit.strengths} strengths need {edit.strengths} copies of every prompt, which logits and "
                "generate of an LM make; give one strength here"
            )
        run = Run(tuple(offset for part in edit for offset in part.offsets))
        self._runs.append(run)
        try:
            yield run
        finally:
            self._runs.remove(run)

    def _not_finite(self, batch: TokenBatch) -> NotFinite:
        """The error for a batch whose pass failed; the edit is still in place."""
        self._begin(batch)
        found = self._capture(batch, residual_sites(self.anatomy), None)
        return not_finite(self.model, self.anatomy, first_site(found, batch.mask))

    @property
    def device(self) -> torch.device:
        """Where token ids go: the first parameter's device (offloaded ones are skipped)."""
        devices = (p.device for p in self.model.parameters())
        return next((d for d in devices if d.type != "meta"), torch.device("cpu"))

    @contextmanager
    def editing(self, edit: AnyEdit) -> Iterator[None]:
        """The model with an edit in place: a delta in its weights, an Edit as hooks."""
        if edit is None:
            yield
        elif isinstance(edit, WeightDelta):
            with applied(self.model, self.anatomy, edit):
                yield
        elif isinstance(edit, Interventions):
            with self._running(edit) as run, intervening(self.model, self.anatomy, edit, run):
                yield
        elif isinstance(edit, Edit):
            with hooked(self.model, self.anatomy, edit):
                yield
        else:
            raise InterpError(
                f"an edit is Interventions, an Edit or a WeightDelta, not {type(edit).__name__}"
            )

    def run_with_cache(
        self, batch: TokenBatch, names_filter: NamesFilter = None
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Logits and activations ``[batch, seq, d]`` by TransformerLens hook name.

        names_filter: a hook name, several, or a predicate on them; None keeps all of
        :func:`all_sites`.
        """
        if isinstance(names_filter, str):
            names_filter = [names_filter]
        if names_filter is None or callable(names_filter):
            keep = names_filter or (lambda name: True)
            sites = [s for s in all_sites(self.anatomy) if keep(s.hook_name)]
        else:
            sites = [Site.parse(name) for name in names_filter]
        logits, cache = self.run(batch, sites)
        return logits, {site.hook_name: value for site, value in cache.items()}
