"""Progress bars on a terminal; silence in CI and in pipes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from interp.cli.tables import literal

Advance = Callable[[int], None]


def _console() -> Console:
    return Console(stderr=True)


def is_quiet() -> bool:
    """Whether nobody watches: in CI, or with stderr in a pipe."""
    return bool(os.environ.get("CI")) or not _console().is_terminal


class Watcher:
    """``watch(label, total)`` starts a bar and returns what advances it; ``watch.say`` prints above."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars

    def __call__(self, label: str, total: int) -> Advance:
        task = self._bars.add_task(label, total=total)

        def advance(done: int) -> None:
            self._bars.advance(task, done)
            if self._bars.tasks[self._bars.task_ids.index(task)].finished:
                self._bars.remove_task(task)

        return advance

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)


@contextmanager
def watching() -> Iterator[Watcher]:
    """Bars on stderr for as long as the block runs; finished ones make room."""
    columns = (
        TextColumn("{task.description:<40}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_console(), disable=is_quiet(), transient=True) as bars:
        yield Watcher(bars)


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner while something of unknown length runs."""
    if is_quiet():
        yield
        return
    with _console().status(literal(text)):
        yield
