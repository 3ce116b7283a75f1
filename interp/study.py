"""Papers, their figures with recipes, and the study that measures them.

A paper lists its figures in the module ``paper`` of its package; a figure is a function that takes a
:class:`Study`, and a recipe if it has one, and returns a record. Nothing here needs torch, so that papers
can be listed without it.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from interp.errors import RecordError
from interp.files import sha256_text, write_json
from interp.records import (
    FigureRecord,
    Provenance,
    git_commit,
    package_versions,
    processor,
    without_folders,
)
from interp.source import code_hash
from interp.watching import Watch, unwatched

if TYPE_CHECKING:
    from interp.lm import LM

T = TypeVar("T")
KEPT = "interp step 1"
"""The format of a kept step."""


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """A figure of a paper. stands_for: the paper's own figure or table; None for one of ours.

    make: ``module:function`` with ``(Study) -> FigureRecord``, or ``(Study, recipe) -> FigureRecord`` if
    there is a recipe. needs: what is missing to measure it here, in place of ``make``. model, limit: model
    of the figure and its prompts per class, if other than the study's. recipe: settings of the figure, a
    frozen dataclass that may hold others.
    """

    name: str
    title: str
    make: str | None = None
    stands_for: str | None = None
    needs: str | None = None
    model: str | None = None
    limit: int | None = None
    recipe: Any = None

    def __post_init__(self) -> None:
        if (self.make is None) == (self.needs is None):
            raise RecordError(f"the figure {self.name} must have either a function or `needs`")
        parameters = getattr(type(self.recipe), "__dataclass_params__", None)
        if self.recipe is not None and not (parameters and parameters.frozen):
            raise RecordError(
                f"the recipe of the figure {self.name} is a {type(self.recipe).__name__}; make it an "
                "instance of a frozen dataclass"
            )


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


@dataclass(frozen=True, slots=True)
class KeptPart:
    """A step that an earlier run measured, as it goes into the record.

    commit, measured_on: of that run. code: content hash of the code that made it. stale: whether that code
    has changed since.
    """

    step: str
    commit: str | None
    measured_on: str
    code: str | None
    stale: bool = False


@dataclass
class _Figure:
    """State that the studies of one figure share. values: those of ``once``. parts: kept steps in use."""

    values: dict[tuple[str, str], tuple[Any, set[KeptPart]]] = field(default_factory=dict)
    parts: set[KeptPart] = field(default_factory=set)
    has_recipe: bool = False


@dataclass(eq=False)
class Study:
    """One model under study, and the values that its figures share.

    limit: prompts per class; None for all. seeds: splits of the topics over which a figure with seeds is
    repeated. kept: directory of the steps of long work, which resumes after a kill; None keeps nothing.
    use_stale: use kept steps that other code measured; the record names them. loading: options for
    opening the model.
    """

    model: str = "smollm2"
    limit: int | None = None
    seeds: int = 5
    batch_size: int = 32
    kept: Path | None = None
    use_stale: bool = False
    watch: Watch = unwatched
    loading: dict[str, Any] = field(default_factory=dict)
    _figure: _Figure = field(default_factory=_Figure, init=False, repr=False)

    @classmethod
    def of(cls, lm: LM, **options: Any) -> Study:
        """A study of a model that is open already. options: the other fields."""
        own = {"batch_size": lm.batch_size, "watch": lm.watch}
        made = cls(without_folders(lm.backend.source), **own | options)
        made.__dict__["lm"] = lm  # the value of the cached property
        return made

    @cached_property
    def lm(self) -> LM:
        """The model, opened when the first figure asks for it."""
        from interp.opening import open_model

        common = {"batch_size": self.batch_size, "watch": self.watch}
        return open_model(self.model, **common, **self.loading)

    @cached_property
    def fingerprint(self) -> str:
        from interp.edits import fingerprint

        return fingerprint(self.lm.hf, self.lm.anatomy)

    @cached_property
    def hardware(self) -> str:
        """The accelerator or processor that this process measures on."""
        from interp.evaluate.hardware import accelerator

        return accelerator(self.lm) or processor()

    @property
    def hardware_and_torch(self) -> str:
        """Hardware name and torch version, e.g. ``AMD EPYC, 2 cores, torch 2.13.0``."""
        return f"{self.hardware}, torch {package_versions()['torch']}"

    def on(self, model: str | Path) -> Study:
        """This study on another model, on one that the figure trained for instance.

        model: what ``open_model`` takes. What either of the two makes or resumes is of the same figure.
        """
        loading = {name: value for name, value in self.loading.items() if name != "revision"}
        other = replace(self, model=str(model), loading=loading)
        other._figure = self._figure
        return other

    def start_figure(self, *, has_recipe: bool = False) -> None:
        """Forget which kept steps earlier figures used. has_recipe: steps say what they take of it."""
        self._figure.parts, self._figure.has_recipe = set(), has_recipe

    @property
    def has_resumed(self) -> bool:
        """Whether this figure used a step that an earlier run kept."""
        return bool(self._figure.parts)

    @cached_property
    def commit(self) -> str | None:
        """The commit of this package when the study first asked for it."""
        return git_commit()

    def once(self, name: str, make: Callable[[], T], **about: Any) -> T:
        """A value that several figures need, made once.

        about: config that it depends on, as in :meth:`resumed`.
        """
        key = (self.model, f"{name} {self._about(name, about)}")
        if key not in self._figure.values:
            self._figure.values[key] = self._made(make)
        value, parts = self._figure.values[key]
        self._figure.parts |= parts  # of this figure, too
        return value

    def _about(self, step: str, about: Mapping[str, Any]) -> str:
        """What a step depends on, as JSON. RecordError for nothing at all, where the figure has a recipe."""
        if self._figure.has_recipe and not about:
            raise RecordError(
                f"the step {step!r} does not say which settings of the figure's recipe it depends on: pass "
                "recipe=recipe, a part of it, or recipe=None"
            )
        return settings_text({**about, "limit": self.limit})

    def _made(self, make: Callable[[], T]) -> tuple[T, set[KeptPart]]:
        """A value, and the kept steps that it used."""
        before, self._figure.parts = self._figure.parts, set()
        try:
            return make(), self._figure.parts
        finally:
            self._figure.parts = before

    def resumed(self, step: str, make: Callable[[], T], **about: Any) -> T:
        """JSON values of one step of long work: read if an earlier run kept them, else made and kept.

        A kept value is used only if the model, ``about`` and the code (:func:`interp.source.code_hash` of
        ``make``) are the same; one of other code also with ``use_stale``.

        about: config and hashes of inputs, in JSON values; prompt sets stand for their hash, recipes for
        their settings. A step of a figure with a recipe says what it takes of it, ``recipe=None`` if nothing.
        RecordError for anything else.
        """
        config = self._about(step, about)
        if self.kept is None:
            return make()
        path = self.kept / f"{step}-{sha256_text(self.fingerprint, config)[:16]}.json"
        code = code_hash(make)
        if (found := _read_kept(path, code)) is not None:
            value, parts = found
            if self.use_stale or not any(part.stale for part in parts):
                self._figure.parts |= parts
                return value
        value, parts = self._made(make)
        own = KeptPart(step, self.commit, self.hardware_and_torch, code)
        everything = [asdict(own), *(asdict(part) for part in sorted(parts, key=repr))]
        write_json(path, {"format": KEPT, "parts": everything, "value": value})
        self._figure.parts |= parts
        return value

    def provenance(self, prompts: Mapping[str, Any]) -> Provenance:
        """Provenance of a figure of this study. prompts: name → hash or texts."""
        hardware, parts = self.hardware, sorted(self._figure.parts, key=repr)
        other = sorted({part.measured_on for part in parts} - {self.hardware_and_torch})
        if other:
            hardware += f"; kept steps: {'; '.join(other)}"
        return Provenance.collect(
            self.model,
            fingerprint=self.fingerprint,
            prompts=prompts,
            seed=0,
            device=hardware,
            resumed=[asdict(part) for part in parts],
        )


def settings_text(value: Any) -> str:
    """A value as JSON: prompt sets as their hash, recipes as their settings. RecordError for others."""
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(found := getattr(value, "sha256", None), str):
        return found
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in fields(value)}
    raise RecordError(
        f"a kept step depends on a {type(value).__name__}; give JSON values, recipes, and hashes of inputs"
    )


def _read_kept(path: Path, code: str | None) -> tuple[Any, set[KeptPart]] | None:
    """A kept value and its parts, with whether each is stale; None where there is none that is whole."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["format"] != KEPT:
            return None
        own, *parts = (KeptPart(**part) for part in kept["parts"])
        own = replace(own, stale=code is None or own.code != code)
        return kept["value"], {own, *parts}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure(paper: Paper, name: str, study: Study, recipe: Any = None) -> FigureRecord:
    """Measure one figure of a paper, or make the card that says what it needs.

    recipe: in place of the figure's own, and of its type. The record gets what it stands for, its recipe,
    the hash of the code that made it, and the seconds that it took; those stay open where part of it was
    measured by an earlier run.
    """
    spec = paper.figure(name)
    key = f"{paper.key}/{name}"
    if recipe is not None and type(recipe) is not type(spec.recipe):
        raise RecordError(
            f"{key} takes a recipe of type {type(spec.recipe).__name__}, not {type(recipe).__name__}"
        )
    recipe = spec.recipe if recipe is None else recipe
    if spec.make is None:
        about = {"paper_figure": spec.stands_for, "needs": spec.needs}
        return FigureRecord(key, spec.title, None, Provenance(model="none"), **about)
    module, _, function = spec.make.partition(":")
    study.start_figure(has_recipe=recipe is not None)
    started = time.perf_counter()
    given = (study,) if recipe is None else (study, recipe)
    record = getattr(importlib.import_module(module), function)(*given)
    seconds = None if study.has_resumed else round(time.perf_counter() - started, 2)
    if record.key != key:
        raise RecordError(f"{spec.make} made {record.key}, not {key}")
    made = {"made_by": spec.make, "code": code_hash(spec.make), "recipe": settings_of(recipe)}
    provenance = replace(record.provenance, seconds=seconds, **made)
    return replace(record, provenance=provenance, paper_figure=spec.stands_for)


def settings_of(recipe: Any) -> dict[str, Any] | None:
    """A recipe in JSON values, as a card holds it; None for none."""
    return None if recipe is None else json.loads(settings_text(recipe))


def kept_directory(key: str, *, fresh: bool = False) -> Path:
    """Where long figures of a paper keep what they have measured; ``fresh`` empties it."""
    import shutil

    from interp.models.embedded import cache_directory

    folder = cache_directory() / "studies" / key
    if fresh and folder.is_dir():
        shutil.rmtree(folder)
    return folder
