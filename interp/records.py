"""Figure records: what was measured, what the paper says, and a verdict computed from the two.

Standard library only: a figure is drawn again from its JSON file with no model and no torch.
Nobody writes a verdict: :func:`judge` tests the record's claims on the very numbers that are drawn.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from interp.claims import Claim, Number, Outcome
from interp.errors import RecordError
from interp.files import sha256_text, write_json
from interp.series import Series, read_series
from interp.series.base import plain

__all__ = ["Claim", "FigureRecord", "Outcome", "Provenance", "judge", "outcomes"]

FORMAT = "interp figure 1"
PACKAGES = ("interp-toolkit", "torch", "transformers", "numpy")
REPRODUCED = "reproduced"
SHAPE_REPRODUCED = "shape reproduced"
NOT_REPRODUCED = "not reproduced"
MEASURED = "measured"
NO_SERIES = "none"
NOT_RUN = "not run here: needs "

_KEY = re.compile(r"[a-z0-9][a-z0-9_]*/[a-z0-9][a-z0-9_]*")
_GIT_SECONDS = 10
DIRTY = "-dirty"
"""Ends a commit that the package's files differ from."""


# --- provenance --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a figure was measured with.

    model: name or hub id, never an absolute path. fingerprint: content hash of the model. prompts:
    name of a set → SHA-256 of its prompts in order. versions: Python and the packages that matter.
    commit: of this package's own checkout, with ``-dirty`` for uncommitted changes; None when it
    was installed from a wheel. seconds: wall time. made_by: ``module:function`` that measured it, and
    code: the content hash of everything that this function uses of the package
    (:func:`interp.source.code_hash`); None for a record that does not say. recipe: settings of the figure,
    None for one without. resumed: parts that an earlier run had kept, each with ``step``, ``commit``,
    ``measured_on``, ``code`` and ``stale``: whether other code than that of this run measured it.
    """

    model: str
    fingerprint: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    hardware: str | None = None
    seconds: Number | None = None
    made_by: str | None = None
    code: str | None = None
    recipe: Mapping[str, Any] | None = None
    resumed: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "resumed", tuple(self.resumed))

    @property
    def stale(self) -> list[str]:
        """Steps that other code measured than that which made the rest, without repeats."""
        return sorted({part["step"] for part in self.resumed if part["stale"]})

    @property
    def doubt(self) -> str:
        """Why a record with this provenance proves no edit, empty where it does."""
        if self.stale:
            return f"rests on steps that other code measured ({', '.join(self.stale)})"
        commits = (self.commit, *(part["commit"] for part in self.resumed))
        if any(commit and commit.endswith(DIRTY) for commit in commits):
            return "was measured with uncommitted changes"
        return ""

    @classmethod
    def collect(
        cls,
        model: str,
        *,
        fingerprint: str | None = None,
        prompts: Mapping[str, str | Sequence[str]] | None = None,
        seed: int | None = None,
        seconds: Number | None = None,
        device: str | None = None,
        made_by: str | None = None,
        code: str | None = None,
        resumed: Sequence[Mapping[str, Any]] = (),
    ) -> Provenance:
        """Fill in versions, commit and hardware of this process.

        prompts: name of a set → its SHA-256, or its texts, which are hashed here. device: name of
        the accelerator, which only the caller knows; without it the processor is named.
        """
        hashed = {
            name: value if isinstance(value, str) else sha256_text(*value)
            for name, value in (prompts or {}).items()
        }
        return cls(
            model=without_folders(model),
            fingerprint=fingerprint,
            prompts=hashed,
            seed=seed,
            versions=package_versions(),
            commit=git_commit(),
            hardware=device or processor(),
            seconds=None if seconds is None else round(seconds, 2),
            made_by=made_by,
            code=code,
            resumed=tuple(resumed),
        )


def without_folders(name: str) -> str:
    """A model's name without the folders of the machine that it lies on; hub ids stay whole."""
    path = Path(name).expanduser()
    local = path.is_absolute() or name.startswith(".") or path.is_dir()
    return path.resolve().name if local else name


def package_versions() -> dict[str, str]:
    """Versions of Python and of :data:`PACKAGES`; packages that are missing are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_commit() -> str | None:
    """The commit of this package's checkout, with ``-dirty`` when the package differs from it."""
    package = Path(__file__).resolve().parent
    # An environment may lie inside somebody else's checkout, whose commit says nothing about us.
    if _git(package, "rev-parse", "--show-prefix") != f"{package.name}/":
        return None
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    changed = _git(package, "status", "--porcelain", "--", ".")
    return f"{commit}{DIRTY}" if commit and changed else commit


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """Name of the processor and number of cores, as far as the system tells."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count() or 1} cores"


# --- the record --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FigureRecord:
    """One figure: its data, what they were measured with, and what is claimed about them.

    key: ``<folder>/<name>``, also its file. series: one of the kinds of :mod:`interp.series`. n: prompts
    per class. intervals: what the intervals in the series are (``95 % Wilson``). paper_figure: the figure
    or table it stands for; None for our own. needs: what is missing to measure it here, and then there is
    no series. proves: kinds of recipe (:func:`interp.export.gate.kind`) whose edits rest on this figure
    where its verdict is good.
    Raises RecordError for a bad key, for a series that is not typed, for a claim that points nowhere.
    """

    key: str
    title: str
    series: Series | None
    provenance: Provenance
    n: Mapping[str, int] = field(default_factory=dict)
    intervals: str | None = None
    seeds: tuple[int, ...] = ()
    paper_figure: str | None = None
    claims: tuple[Claim, ...] = ()
    needs: str | None = None
    caption: str = ""
    proves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise RecordError(f"a figure's key is folder/name in lower case, got {self.key!r}")
        if not isinstance(self.series, Series | None):
            raise RecordError(
                f"the series of {self.key} is a {type(self.series).__name__}; make one of the classes of "
                "interp.series, or read JSON with interp.series.read_series(kind, content)"
            )
        if (self.series is None) == (self.needs is None):
            raise RecordError(
                f"{self.key} must have either a series or `needs`, what is missing to measure one"
            )
        object.__setattr__(self, "n", plain(self.n, "n"))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "proves", tuple(self.proves))
        object.__setattr__(self, "claims", tuple(self.claims))
        outcomes(self)  # so that a claim which points nowhere fails here, not at its first reader

    @property
    def kind(self) -> str:
        """Kind of the series, ``none`` where there is none."""
        return NO_SERIES if self.series is None else self.series.kind

    @property
    def verdict(self) -> str:
        """See :func:`judge`."""
        return judge(self)

    def as_json(self) -> dict[str, Any]:
        """The file's content: every field, the verdict, and at each claim what was measured."""
        head = {"format": FORMAT, "key": self.key, "title": self.title, "kind": self.kind}
        content = {**head, **{f.name: getattr(self, f.name) for f in fields(self)}}
        content |= {
            "series": self.series.as_json() if self.series else {},
            "provenance": asdict(self.provenance),
            "claims": [asdict(claim) for claim in self.claims],
            "verdict": self.verdict,
        }
        for entry, result in zip(content["claims"], outcomes(self), strict=False):
            entry["measured"], entry["holds"] = result.ours, result.holds
        return plain(content, "record")

    def save(self, folder: Path | str) -> Path:
        """Write ``<folder>/<key>.json`` atomically and return its path."""
        path = Path(folder) / f"{self.key}.json"
        write_json(path, self.as_json())
        return path

    @classmethod
    def load(cls, path: Path | str) -> FigureRecord:
        """Read a record; RecordError when missing, damaged, or when its verdict does not follow."""
        content = _read(Path(path))
        stated = content.pop("verdict", None)
        try:
            entries = content.pop("claims", ())
            claims = tuple(_build(Claim, entry, ("measured", "holds")) for entry in entries)
            provenance = _build(Provenance, content.pop("provenance"))
            seeds, proves = (tuple(content.pop(name, ())) for name in ("seeds", "proves"))
            parts = {**content, "claims": claims, "provenance": provenance}
            parts |= {"seeds": seeds, "proves": proves, "series": _typed(parts)}
            record = _build(cls, parts, ("format",))
        except (KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"{path} is not a whole figure record: {error}") from None
        if stated is not None and stated != record.verdict:
            raise RecordError(
                f"{path} says {stated!r}, but its data give {record.verdict!r}; measure it again, "
                "or delete the verdict from the file"
            )
        return record


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise RecordError(f"no figure record {path}; run the notebook that makes it") from None
    except ValueError as error:  # neither JSON nor UTF-8
        raise RecordError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RecordError(f"{path} is not a figure record (its format should be {FORMAT!r})")
    return content


def _typed(content: dict[str, Any]) -> Series | None:
    """The series of a file's content, whose kind is taken out."""
    kind, series = content.pop("kind"), content["series"]
    try:
        return read_series(kind, series) if series else None
    except RecordError as error:
        raise RecordError(f"{content['key']}: {error}") from None


def _build(cls: type, content: Mapping[str, Any], ignored: Sequence[str] = ()) -> Any:
    """A dataclass from a mapping; TypeError names a field that does not exist or is missing."""
    known = {f.name for f in fields(cls)}
    given = {k: v for k, v in content.items() if k not in ignored}
    if unknown := sorted(given.keys() - known):
        raise TypeError(f"{cls.__name__} has no field {unknown[0]!r}")
    return cls(**given)


# --- the verdict -------------------------------------------------------------------------------


def outcomes(record: FigureRecord) -> list[Outcome]:
    """Every claim of a record, tested; empty for a figure that was not run here."""
    if record.needs is not None:
        return []
    try:
        return [claim.outcome(record.series) for claim in record.claims]
    except RecordError as error:
        raise RecordError(f"{record.key}: {error}") from None


def judge(record: FigureRecord) -> str:
    """The verdict that follows from a record's data.

    ``reproduced``: all claims hold and one of them compares digits. ``shape reproduced``: all
    claims about shapes hold, though digits, if any are claimed, do not. ``not reproduced``
    otherwise. ``measured``: a figure that claims nothing. ``not run here: needs …``: no data.
    """
    if record.needs is not None:
        return NOT_RUN + record.needs
    if not record.claims:
        return MEASURED
    results = outcomes(record)
    shapes = [r.holds for r in results if r.claim.shape]
    digits = [r.holds for r in results if not r.claim.shape]
    if digits and all(digits) and all(shapes):
        return REPRODUCED
    return SHAPE_REPRODUCED if shapes and all(shapes) else NOT_REPRODUCED
