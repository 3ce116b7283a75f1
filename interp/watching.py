"""How long work tells how far it is, without knowing who watches (``interp.cli.progress`` does)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[int], None]
"""Called with how much was done since the last call."""

Watch = Callable[[str, int], Progress]
"""``watch(label, total)`` begins a piece of work and returns what advances it."""


def unheard(done: int) -> None:
    """Progress that nobody listens to."""


def within(watch: Watch, stage: str) -> Watch:
    """A watch whose labels begin with the name of a stage."""
    return lambda label, total: watch(f"{stage}: {label}", total)


def unwatched(label: str, total: int) -> Progress:
    """A watch that shows nothing."""
    return unheard


def counted(watch: Watch, label: str, items: Collection[T]) -> Iterator[T]:
    """The items in order, each reported as done once the next is asked for."""
    progress = watch(label, len(items))
    for item in items:
        yield item
        progress(1)
