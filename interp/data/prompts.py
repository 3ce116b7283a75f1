"""Prompt sets: where they come from, how they are split, and their hashes.

A *class* of prompts (``--refuse`` or ``--comply``) is named in one of six ways:

- ``capability`` or ``capability:fit`` — a shipped set, with an optional split (``all`` for everything)
- ``capability+broad`` — several shipped sets, each giving what it has of the split that is asked for
- ``answerable`` — a shipped list of everyday questions, one class only
- ``prompts.txt`` — a text file, one prompt a line
- ``prompts.jsonl`` or ``prompts.jsonl#column`` — JSON lines, JSON, CSV or Parquet (:mod:`interp.data.rows`);
  of conversations, the last user turn (:mod:`interp.data.turns`)
- ``org/name#column`` or ``org/name:split#column`` — a data set on the hub

Sets of harmful prompts are not shipped; name a file or a hub id.
"""

from __future__ import annotations

import json
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from interp.data.rows import SUFFIXES, PromptRow, read_rows
from interp.data.turns import prompts_of
from interp.errors import InterpWarning, PromptError
from interp.files import sha256_text
from interp.printable import printable

Side = Literal["refuse", "comply"]
SIDES: tuple[Side, Side] = ("refuse", "comply")
"""The positive and the negative class of every shipped set."""
SPLITS = ("fit", "select", "report")
LISTS = ("answerable",)
SMALLEST_CLASS = 4
FINAL = " .?!…。？！"
"""Punctuation at the end of a prompt that makes no other prompt of it."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts of one class, in order, without repeats. ``source`` says where they came from."""

    prompts: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.prompts:
            raise PromptError(f"{self.source} holds no prompts; put one prompt on each line")

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def sha256(self) -> str:
        """Hash of the prompts in order."""
        return sha256_text(*self.prompts)

    def without(self, *others: PromptSet) -> PromptSet:
        """The prompts that are in none of ``others``, whatever their case or final punctuation."""
        held = {normalised(p) for other in others for p in other.prompts}
        kept = tuple(p for p in self.prompts if normalised(p) not in held)
        return PromptSet(kept, self.source)

    def chosen(self, mask: Sequence[bool]) -> PromptSet:
        """The prompts at the places that are true; ``mask`` has one entry per prompt."""
        kept = tuple(p for p, is_one in zip(self.prompts, mask, strict=True) if is_one)
        return PromptSet(kept, self.source)

    def among(self, other: PromptSet) -> PromptSet:
        """The prompts that are in ``other`` as well."""
        held = set(other.prompts)
        return PromptSet(tuple(p for p in self.prompts if p in held), self.source)

    def spread(self, most: int) -> PromptSet:
        """So many of the prompts (1 or more), or all where there are fewer, spread evenly over them."""
        whole = len(self)
        if most >= whole:
            return self
        chosen = tuple(self.prompts[i * whole // most] for i in range(most))
        return PromptSet(chosen, f"{self.source}, {most} of {whole}")

    def joined(self, *others: PromptSet) -> PromptSet:
        """These prompts and those of ``others``, each once."""
        if not others:
            return self
        sets = (self, *others)
        found = dict.fromkeys(p for each in sets for p in each.prompts)
        return PromptSet(tuple(found), " + ".join(s.source for s in sets))

    @property
    def fingerprints(self) -> frozenset[str]:
        """A short hash per prompt, kept with an edit so that seen prompts can be told later."""
        return frozenset(map(fingerprint, self.prompts))

    def halves(self, share: float = 0.7) -> tuple[PromptSet, PromptSet]:
        """A fit part and a select part, by hash: the same prompt always falls on the same side."""
        ranked = sorted(self.prompts, key=sha256_text)
        cut = min(max(round(share * len(ranked)), 1), len(ranked) - 1)
        if len(ranked) < SMALLEST_CLASS:
            raise PromptError(
                f"{self.source} has {len(ranked)} prompts; choosing needs at least {SMALLEST_CLASS}"
            )
        chosen = set(ranked[:cut])
        fit = tuple(p for p in self.prompts if p in chosen)
        rest = tuple(p for p in self.prompts if p not in chosen)
        return PromptSet(fit, f"{self.source} (fit part)"), PromptSet(
            rest, f"{self.source} (select part)"
        )


def fingerprint(prompt: str) -> str:
    """A short hash of a prompt."""
    return sha256_text(prompt)[:16]


@dataclass(frozen=True, slots=True)
class Pairs:
    """A shipped set: matched pairs with topics, split by whole topics."""

    name: str
    pairs: tuple[Mapping[str, Any], ...]
    splits: Mapping[str, tuple[str, ...]]
    sha256: str

    def side(self, side: Side, split: str) -> PromptSet:
        """One class of one split (or ``all``). Raises PromptError for a split that does not exist."""
        if split not in (*self.splits, "all"):
            raise PromptError(
                f"{self.name} has no split {split!r}; use {', '.join(self.splits)} or all"
            )
        topics = set(self.splits[split]) if split != "all" else None
        chosen = (p for p in self.pairs if topics is None or p["topic"] in topics)
        return PromptSet(tuple(p[side] for p in chosen), f"{self.name}:{split} ({side})")


def shipped_sets() -> tuple[str, ...]:
    """Names of the sets that come with the package."""
    folder = files("interp.data").joinpath("sets")
    return tuple(
        sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json"))
    )


@cache
def load_pairs(name: str = "capability") -> Pairs:
    """A shipped set by name. Raises PromptError naming those that exist."""
    if name not in shipped_sets():
        raise PromptError(f"no shipped set {name!r}; shipped: {', '.join(shipped_sets())}")
    text = files("interp.data").joinpath(f"sets/{name}.json").read_text(encoding="utf-8")
    content = json.loads(text)
    splits = {k: tuple(v) for k, v in content["splits"].items()}
    return Pairs(name, tuple(content["pairs"]), splits, sha256_text(text))


def load_class(
    name: str, side: Side, *, split: str = "report", limit: int | None = None
) -> PromptSet:
    """The prompts that ``--refuse NAME`` or ``--comply NAME`` means; ``split`` for shipped sets only.

    Raises PromptError for an unknown name, an unreadable or empty file, or a missing column. What is left
    out of a file is an InterpWarning.
    """
    if is_shipped(name):
        found = _from_sets(name, side, split)
    elif name in LISTS:
        text = files("interp.data").joinpath(f"sets/{name}.txt").read_text(encoding="utf-8")
        found = _distinct(filter(str.strip, text.splitlines()), name)
    else:
        found = _from_file(name) or _from_hub(name)
    return PromptSet(found.prompts[:limit], found.source) if limit else found


def is_shipped(name: str) -> bool:
    """Whether a name means shipped sets (one, or several joined by ``+``), which have splits of their own."""
    return all(part.partition(":")[0] in shipped_sets() for part in name.split("+"))


def _from_sets(name: str, side: Side, split: str) -> PromptSet:
    """The prompts of all sets in a name; one of several may lack the split."""
    named = [part.partition(":") for part in name.split("+")]
    sets = [(load_pairs(base), own or split) for base, _, own in named]
    having = [(pairs, part) for pairs, part in sets if part in (*pairs.splits, "all")]
    found = [pairs.side(side, part) for pairs, part in having or sets]
    return found[0].joined(*found[1:])


def _from_file(name: str) -> PromptSet | None:
    """Prompts of a local file, or None when the name cannot be one."""
    where, _, column = name.partition("#")
    if column and Path(name).expanduser().is_file():
        where, column = name, ""
    path = Path(where).expanduser()
    if not path.is_file():
        if path.suffix.lower() in SUFFIXES or path.is_dir():
            raise PromptError(f"no prompt file {where}; give a text file with one prompt a line")
        return None
    found = read_rows(path, column)
    source = f"{path.name}#{column}" if column else path.name
    if found.structured:
        return _distinct(prompts_of(found.rows, column, where), source)
    return _distinct([row.value for row in found.rows if row.value.strip()], source)


def _from_hub(name: str) -> PromptSet:
    where, _, column = name.partition("#")
    repo, _, split = where.partition(":")
    if repo.count("/") != 1:
        raise PromptError(
            f"no prompts {name!r}; give a shipped set ({', '.join(shipped_sets())}), a file, or a hub "
            "id such as org/name#column"
        )
    try:
        from datasets import load_dataset
    except ImportError:
        raise PromptError("hub data sets need: pip install datasets") from None
    try:
        rows = load_dataset(repo, split=split or "train")
    except Exception as error:  # the hub, the cache and the parser each raise their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PromptError(
            f"cannot load the data set {repo} ({reason}); where there is a network and access run: "
            f"hf auth login && hf download --repo-type dataset {repo}"
        ) from error
    numbered = tuple(PromptRow(value, f"row {i}") for i, value in enumerate(rows, 1))
    return _distinct(prompts_of(numbered, column, where), name)


def normalised(prompt: str) -> str:
    """What two prompts share that differ only in case, spacing, final punctuation or Unicode form."""
    text = " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())
    return text.rstrip(FINAL) or text


def check_classes(refuse: Iterable[PromptSet], comply: Iterable[PromptSet]) -> None:
    """Raise PromptError for prompts that are in both classes, whatever their case or punctuation."""
    asked = {normalised(p): p for each in refuse for p in each.prompts}
    held = list(comply)
    both = {key for each in held for p in each.prompts if (key := normalised(p)) in asked}
    if both:
        first = next(p for key, p in asked.items() if key in both)
        raise PromptError(
            f"{len(both)} of {len(asked)} refuse prompts are comply prompts as well, first "
            f"{printable(first)!r}; a prompt can be in one class only, so remove each from one of them"
        )


def _distinct(prompts: Iterable[str], source: str) -> PromptSet:
    """Each prompt once; an InterpWarning counts those that repeat another."""
    texts = [prompt.strip() for prompt in prompts]
    kept: dict[str, str] = {}
    for text in texts:
        kept.setdefault(normalised(text), text)
    if repeats := len(texts) - len(kept):
        left_out = f"{source}: {repeats} of {len(texts)} prompts left out as repeats of others"
        warnings.warn(left_out, InterpWarning, stacklevel=2)
    return PromptSet(tuple(kept.values()), source)
