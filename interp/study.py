"""What every paper module is made of: a paper, its figures, and the study that measures them.

A paper says in ``interp/methods/<key>/paper.py`` which figures it has; a figure is a function that takes
a :class:`Study` and returns a record. Nothing here needs torch, so that papers can be listed without it.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from interp import __version__
from interp.errors import RecordError
from interp.files import sha256_text, write_json
from interp.records import FigureRecord, Provenance, package_versions, processor
from interp.watching import Watch, unwatched

if TYPE_CHECKING:
    from interp.backends import Backend

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """A figure of a paper. stands_for: the paper's own figure or table; None for one of ours.

    make: ``module:function`` with ``(Study) -> FigureRecord``. needs: what is missing to measure it
    here; then there is nothing to make, and its card says so. model, limit: the model that the figure is
    about and its prompts per class, where those are not the study's own.
    """

    name: str
    title: str
    make: str | None = None
    stands_for: str | None = None
    needs: str | None = None
    model: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if (self.make is None) == (self.needs is None):
            raise RecordError(f"the figure {self.name} must have either a function or `needs`")


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper that this package reproduces; key names its module, notebook, page and figure folder."""

    key: str
    title: str
    arxiv: str
    figures: tuple[FigureSpec, ...]

    @property
    def page(self) -> str:
        return f"papers/{self.key}.md"

    @property
    def notebook(self) -> str:
        return f"notebooks/{self.key}.ipynb"

    def figure(self, name: str) -> FigureSpec:
        """A figure by name. RecordError names those that exist."""
        for spec in self.figures:
            if spec.name == name:
                return spec
        known = ", ".join(spec.name for spec in self.figures)
        raise RecordError(f"{self.key} has no figure {name!r}; it has {known}")


@dataclass(eq=False)
class Study:
    """One model under study, and what its figures share.

    limit: prompts per class, for a quick look; None for all. seeds: how many splits of the topics a
    figure with seeds is repeated over. kept: directory in which long work leaves what is done, so that
    it goes on after a kill; None keeps nothing. loading: options for opening the model.
    """

    model: str = "smollm2"
    limit: int | None = None
    seeds: int = 5
    batch_size: int = 32
    kept: Path | None = None
    watch: Watch = unwatched
    loading: dict[str, Any] = field(default_factory=dict)
    _shared: dict[str, tuple[Any, set[str]]] = field(default_factory=dict, init=False, repr=False)
    _kept_on: set[str] = field(default_factory=set, init=False, repr=False)

    @cached_property
    def backend(self) -> Backend:
        """The model, opened when the first figure asks for it."""
        from interp.backends import open_model

        return open_model(self.model, **self.loading)

    @cached_property
    def fingerprint(self) -> str:
        from interp.edits import fingerprint

        return fingerprint(self.backend.model, self.backend.anatomy)

    @cached_property
    def hardware(self) -> str:
        """The accelerator or processor that this process measures on."""
        from interp.evaluate.attributing import backend_device

        device = backend_device(self.backend)
        return processor() if device == "cpu" else device

    @property
    def place(self) -> str:
        """That, and the version of torch."""
        return f"{self.hardware}, torch {package_versions()['torch']}"

    def anew(self) -> None:
        """Begin a figure, to which nothing of an earlier run has gone yet."""
        self._kept_on = set()

    @property
    def went_on(self) -> bool:
        """Whether anything was taken from an earlier run."""
        return bool(self._kept_on)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What several figures need, made by the first of them."""
        if name not in self._shared:
            self._shared[name] = self._made(make)
        value, kept_on = self._shared[name]
        self._kept_on |= kept_on  # where it went into this figure, too
        return value

    def _made(self, make: Callable[[], T]) -> tuple[T, set[str]]:
        """A value, and what earlier runs measured those parts of it on that they had kept."""
        before, self._kept_on = self._kept_on, set()
        try:
            return make(), self._kept_on
        finally:
            self._kept_on = before

    def resumed(self, step: str, make: Callable[[], T], **about: Any) -> T:
        """JSON values of one step of long work: read if an earlier run kept them, else made and kept.

        about: what they depend on beside the model and this package's version; other values, another
        file.
        """
        if self.kept is None:
            return make()
        everything = about | {"limit": self.limit, "version": __version__}
        asked = json.dumps(everything, sort_keys=True, default=str)
        path = self.kept / f"{step}-{sha256_text(self.fingerprint, asked)[:16]}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            # Earlier versions kept the bare value; where it was measured is not known.
            if isinstance(kept, dict) and kept.keys() == {"measured_on", "value"}:
                self._kept_on |= set(kept["measured_on"])
                return kept["value"]
        value, kept_on = self._made(make)
        write_json(path, {"measured_on": sorted({*kept_on, self.place}), "value": value})
        self._kept_on |= kept_on
        return value

    def provenance(self, prompts: Mapping[str, Any]) -> Provenance:
        """Provenance of a figure of this study, with all that it was measured on.

        prompts: name → hash or texts.
        """
        hardware = self.hardware
        if elsewhere := sorted(self._kept_on - {self.place}):
            hardware = f"{hardware}; what an earlier run kept: {'; '.join(elsewhere)}"
        return Provenance.collect(
            self.model, fingerprint=self.fingerprint, prompts=prompts, seed=0, device=hardware
        )


def measure(paper: Paper, name: str, study: Study) -> FigureRecord:
    """Measure one figure of a paper, or make the card that says what it needs.

    The record gets what it stands for, and the seconds that it took; those stay open where part of it
    was measured by an earlier run.
    """
    spec = paper.figure(name)
    key = f"{paper.key}/{name}"
    if spec.make is None:
        return FigureRecord(
            key=key,
            title=spec.title,
            kind="none",
            series={},
            provenance=Provenance(model="none"),
            paper_figure=spec.stands_for,
            needs=spec.needs,
        )
    module, _, function = spec.make.partition(":")
    study.anew()
    started = time.perf_counter()
    record = getattr(importlib.import_module(module), function)(study)
    seconds = None if study.went_on else round(time.perf_counter() - started, 2)
    if record.key != key:
        raise RecordError(f"{spec.make} made {record.key}, not {key}")
    provenance = replace(record.provenance, seconds=seconds)
    return replace(record, provenance=provenance, paper_figure=spec.stands_for)


def kept_directory(key: str, *, fresh: bool = False) -> Path:
    """Where long figures of a paper keep what they have measured; ``fresh`` empties it."""
    import shutil

    from interp.models.embedded import cache_directory

    folder = cache_directory() / "studies" / key
    if fresh and folder.is_dir():
        shutil.rmtree(folder)
    return folder
