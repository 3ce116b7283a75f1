"""Samples: captured rows with labels, on which directions and edits are fitted.

Rows of one capture form a :class:`Part`: one class, one place, any number of sites. :class:`Samples` is a
list of parts. Joining two tables joins their parts; rows are copied only when a site is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from interp.data.prompts import PromptSet, fingerprint
from interp.errors import SiteError
from interp.lm import LM
from interp.sites import Site
from interp.types import TokenBatch
from interp.watching import unwatched

DECISION = "decision"
"""The last prompt token."""
OPENER = "opener"
"""The last token of the opener of a refusal, which both classes were given."""
POOL = "pool"
"""The last prompt token of further answerable prompts."""
RESPONSE = "response"
"""Tokens of responses, and of the same text without a chat template."""

IN_MEMORY = 1 << 30
"""Bytes of captured rows that stay in memory; further rows go to memory-mapped files."""
CAPTURED_AT_ONCE = 4
"""Batches of one capture call; their rows are in memory together."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of one class at one place.

    rows: ``{site: [n, d]}``, each read from its file when it is asked for where the part is memory-mapped.
    prompts: fingerprints of prompts, one per row; empty where the prompts were given as tokens.
    """

    place: str
    positive: bool
    rows: Mapping[Site, Tensor]
    prompts: tuple[str, ...] = ()

    def at(self, sites: Sequence[Site]) -> Part:
        """A part with these sites only."""
        return replace(self, rows=_Some(self.rows, tuple(sites)))

    def of(self, prompts: Collection[str]) -> Part:
        """A part with the rows of these prompts only, by fingerprint."""
        index = torch.tensor(
            [i for i, p in enumerate(self.prompts) if p in prompts], dtype=torch.long
        )
        return replace(
            self,
            rows=_Some(self.rows, tuple(self.rows), index),
            prompts=tuple(p for p in self.prompts if p in prompts),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Captured rows with their class, place and prompt."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def of_classes(
        cls, positive: Mapping[Site, Tensor], negative: Mapping[Site, Tensor], place: str = DECISION
    ) -> Samples:
        """Rows of both classes at one place, ``{site: [n, d]}`` each."""
        return cls((Part(place, True, positive), Part(place, False, negative)))

    def joined(self, *others: Samples) -> Samples:
        """Samples with the parts of all of them."""
        return Samples((*self.parts, *(part for each in others for part in each.parts)))

    def of(self, *prompts: PromptSet) -> Samples:
        """Samples with the decision and opener rows of these prompts only; all other rows stay.

        Rows whose prompts were given as tokens stay, too.
        """
        kept = frozenset[str]().union(*(each.fingerprints for each in prompts))
        return Samples(
            tuple(
                part.of(kept) if part.prompts and part.place in (DECISION, OPENER) else part
                for part in self.parts
            )
        )

    def holds(self, place: str) -> bool:
        """Whether anything was captured at a place."""
        return any(part.place == place for part in self.parts)

    def sites(self, place: str = DECISION) -> tuple[Site, ...]:
        """Sites with rows of both classes at a place."""
        pos, neg = (
            dict.fromkeys(
                site
                for part in self.parts
                if part.place == place and part.positive == positive
                for site in part.rows
            )
            for positive in (True, False)
        )
        return tuple(site for site in pos if site in neg)

    def rows(self, site: Site, positive: bool, place: str = DECISION) -> Tensor:
        """Rows of a site, ``[n, d]``. Raises SiteError where nothing was captured."""
        found = [
            part.rows[site]
            for part in self.parts
            if part.place == place and part.positive == positive and site in part.rows
        ]
        if not found:
            raise SiteError(f"no {place} rows of {site}; capture them for all sites in use")
        return torch.cat(found) if len(found) > 1 else found[0]


@dataclass(frozen=True, slots=True, eq=False)
class _Some(Mapping[Site, Tensor]):
    """Some sites of other rows, and of each all rows or those of an index."""

    whole: Mapping[Site, Tensor]
    sites: tuple[Site, ...]
    index: Tensor | None = None

    def __getitem__(self, site: Site) -> Tensor:
        if site not in self.sites:
            raise KeyError(site)
        rows = self.whole[site]
        return rows if self.index is None else rows[self.index]

    def __contains__(self, site: object) -> bool:
        return site in self.sites

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)


@dataclass(slots=True, eq=False)
class _OnDisk(Mapping[Site, Tensor]):
    """Rows in one file a site; a site is mapped into memory when it is read, and not kept."""

    folder: TemporaryDirectory[str] = field(
        default_factory=lambda: TemporaryDirectory(prefix="interp-rows-")
    )
    known: dict[Site, tuple[int, int, torch.dtype]] = field(default_factory=dict)

    def add(self, rows: Mapping[Site, Tensor]) -> None:
        """Append rows ``[n, d]`` of every site to its file."""
        for site, value in rows.items():
            n, _, _ = self.known.get(site, (0, 0, value.dtype))
            with self._path(site).open("ab") as file:
                file.write(value.contiguous().view(torch.uint8).numpy().tobytes())
            self.known[site] = (n + len(value), value.shape[1], value.dtype)

    def _path(self, site: Site) -> Path:
        return Path(self.folder.name) / site.hook_name

    def __getitem__(self, site: Site) -> Tensor:
        n, d, dtype = self.known[site]
        flat = torch.from_file(str(self._path(site)), shared=False, size=n * d, dtype=dtype)
        return flat.view(n, d)

    def __contains__(self, site: object) -> bool:
        return site in self.known

    def __iter__(self) -> Iterator[Site]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


@dataclass(slots=True)
class Memory:
    """Bytes that captured rows may still take in memory."""

    left: int = IN_MEMORY


@dataclass(frozen=True, slots=True)
class Capture:
    """Captures parts; rows that exceed the memory go to files.

    sites: those that are read. memory: shared by all parts that are captured with it.
    """

    lm: LM
    sites: Sequence[Site]
    memory: Memory = field(default_factory=Memory)

    def __call__(
        self,
        prompts: PromptSet | TokenBatch,
        place: str,
        positive: bool,
        *,
        at: int | tuple[int, ...] = -1,
    ) -> Part:
        """A part with the rows of prompts in their order, one row for every offset of ``at``.

        at: offsets from the end of the prompt; −1 is its last token. Raises SiteError for an offset outside
        a prompt.
        """
        rows = self._kept(self._read(self.lm.tokens(prompts), at, place))
        names: list[str] = []
        if isinstance(prompts, PromptSet):
            each = 1 if isinstance(at, int) else len(at)
            names = [name for p in prompts.prompts for name in [fingerprint(p)] * each]
        return Part(place, positive, rows, tuple(names))

    def _read(
        self, batch: TokenBatch, at: int | tuple[int, ...], label: str
    ) -> Iterator[dict[Site, Tensor]]:
        progress = self.lm.watch(label, len(batch))
        lm = self.lm.using(watch=unwatched)
        for some in batch.split(CAPTURED_AT_ONCE * lm.batch_size):
            found = lm.activations(some, self.sites, at=at)
            yield {site: found[site].flatten(0, -2).cpu() for site in self.sites}
            progress(len(some))

    def _kept(self, found: Iterable[Mapping[Site, Tensor]]) -> Mapping[Site, Tensor]:
        """All rows, in memory or, from the first that does not fit there, in files."""
        memory: dict[Site, list[Tensor]] = {site: [] for site in self.sites}
        disk: _OnDisk | None = None
        for rows in found:
            size = sum(value.nbytes for value in rows.values())
            if disk is None and size <= self.memory.left:
                self.memory.left -= size
                for site, value in rows.items():
                    memory[site].append(value)
                continue
            if disk is None:
                disk = _OnDisk()
                for site, values in memory.items():
                    for value in values:
                        disk.add({site: value})
                        self.memory.left += value.nbytes
                memory.clear()
            disk.add(rows)
        return disk or {site: torch.cat(values) for site, values in memory.items()}
