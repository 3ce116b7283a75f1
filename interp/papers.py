"""The papers that are known: those of this package, of installed packages, and of named directories.

A paper is ``PAPER`` in the module ``paper`` of a package. A new one of this package is one package in
``interp.methods``. Nothing here needs torch.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from interp.errors import InterpWarning, RecordError
from interp.records import FigureRecord
from interp.study import Paper

GROUP = "interp.papers"
"""Entry-point group in which a package names its papers: ``KEY = "package.paper:PAPER"``."""
HOME = "interp.methods"
FILE = "paper.py"
OBJECT = "PAPER"


def papers(paths: Sequence[Path | str] = ()) -> dict[str, Paper]:
    """Every paper by key: those of this package, those that installed packages name, those of ``paths``.

    paths: directories of packages that are not installed. An installed paper that cannot be loaded is left
    out with an InterpWarning. RecordError for a path without a paper, and for two papers with one key.
    """
    found = {}
    for key, reference in _references(paths).items():
        try:
            found[key] = _loaded(reference, key)
        except RecordError as error:
            warnings.warn(InterpWarning(f"left out: {error}"), stacklevel=2)
    return found


def load_paper(key: str, paths: Sequence[Path | str] = ()) -> Paper:
    """A paper by key; see :func:`papers`. RecordError names those that exist."""
    known = _references(paths)
    if key not in known:
        raise RecordError(
            f"no paper {key!r}; known: {', '.join(sorted(known))}; name the directory of another with "
            f"--paper-path, or install its package with an entry point in the group {GROUP!r}"
        )
    return _loaded(known[key], key)


def cards(folder: Path) -> dict[str, FigureRecord]:
    """Every card under a folder of figures, by key. RecordError for a file that is none."""
    found = {}
    for path in sorted(folder.glob("*/*.json")):
        record = FigureRecord.load(path)
        if record.key != path.relative_to(folder).with_suffix("").as_posix():
            raise RecordError(f"{path} holds the card {record.key}; put it where its key says")
        found[record.key] = record
    return found


def _references(paths: Sequence[Path | str]) -> dict[str, str]:
    """Key → ``module:name`` of every paper; those of ``paths`` are imported for that."""
    own = Path(importlib.import_module(HOME).__path__[0]).glob(f"*/{FILE}")
    pairs = [(path.parent.name, f"{HOME}.{path.parent.name}.paper:{OBJECT}") for path in own]
    pairs += [(entry.name, entry.value.replace(" ", "")) for entry in entry_points(group=GROUP)]
    pairs += [_at(Path(path)) for path in paths]
    found: dict[str, str] = {}
    for key, reference in sorted(pairs):
        if found.setdefault(key, reference) != reference:
            raise RecordError(
                f"two papers have the key {key!r}, {found[key]} and {reference}: rename one of them"
            )
    return found


def _at(folder: Path) -> tuple[str, str]:
    """Key and ``module:name`` of the paper in a directory, which is importable from now on."""
    file = folder.resolve() / FILE
    if not file.is_file():
        raise RecordError(
            f"{folder} has no {FILE}; give the directory of a package that defines {OBJECT} there"
        )
    names, root = [file.parent.name], file.parent.parent
    while (root / "__init__.py").is_file():
        names, root = [root.name, *names], root.parent
    if str(root) not in sys.path:
        sys.path.append(str(root))  # last, so that its files hide no installed module
    module = ".".join([*names, "paper"])
    paper = _loaded(f"{module}:{OBJECT}")
    if (found := getattr(sys.modules[module], "__file__", None)) != str(file):
        raise RecordError(
            f"the package {names[0]} is imported from {found}, not from {folder}: rename the directory"
        )
    return paper.key, f"{module}:{OBJECT}"


def _loaded(reference: str, key: str | None = None) -> Paper:
    """The paper at ``module:name``. RecordError for what cannot be imported or is none of that key."""
    module, _, name = reference.partition(":")
    try:
        paper = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever somebody's module raises
        why = f"{type(error).__name__}: {error}"
        raise RecordError(f"the paper at {reference} cannot be loaded ({why})") from error
    if not isinstance(paper, Paper):
        raise RecordError(f"{reference} is a {type(paper).__name__}, not an interp.study.Paper")
    if key not in (None, paper.key):
        raise RecordError(
            f"the paper at {reference} has the key {paper.key!r}, but is named {key!r}: "
            "give it one name in both places"
        )
    return paper
