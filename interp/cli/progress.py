"""Progress bars on a terminal; in CI and in pipes, a line on stderr now and then."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from interp.cli.tables import literal
from interp.printable import printable

Advance = Callable[[int], None]
VARIABLE = "INTERP_PROGRESS_SECONDS"
DEFAULT_SECONDS = 30.0


def _console() -> Console:
    return Console(stderr=True)


def is_quiet() -> bool:
    """Whether nobody watches: in CI, or with stderr in a pipe."""
    return bool(os.environ.get("CI")) or not _console().is_terminal


class Reporter:
    """What runs, how far it is, and since when, as one line of text."""

    def __init__(self, results: Path | None) -> None:
        self._started = time.monotonic()
        self._results = results
        self._pieces: dict[object, tuple[str, int, int]] = {}

    def begin(self, label: str, total: int) -> Advance:
        """Another piece of work, within those that are not done yet."""
        key, so_far = object(), 0
        self._pieces[key] = (label, so_far, total)

        def advance(done: int) -> None:
            nonlocal so_far
            so_far += done
            self._pieces[key] = (label, so_far, total)
            if so_far >= total:
                del self._pieces[key]

        return advance

    def line(self) -> str:
        """``1:30 select: responses 1/2 › fit: learning 80/300``; the first also says where results go."""
        minutes, seconds = divmod(round(time.monotonic() - self._started), 60)
        known = list(self._pieces.values())  # at once: the work goes on in another thread
        pieces = [f"{label} {done}/{n}" if n else label for label, done, n in known]
        where = f" (results go to {self._results})" if self._results else ""
        self._results = None
        return printable(f"{minutes}:{seconds:02d} {' › '.join(pieces) or 'working'}{where}")


def interval() -> float:
    """Seconds between two lines: ``INTERP_PROGRESS_SECONDS``, by default 30; 0 for no lines."""
    given = os.environ.get(VARIABLE)
    try:
        seconds = DEFAULT_SECONDS if given is None else float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise click.UsageError(f"{VARIABLE} must be a number of seconds, 0 for no lines: {given!r}")
    return seconds


@contextmanager
def _reporting(reporter: Reporter) -> Iterator[None]:
    """Print the reporter's line at every interval, whether or not anything has advanced."""
    seconds, done = interval(), threading.Event()

    def report() -> None:
        while not done.wait(seconds):
            click.echo(reporter.line(), err=True)

    thread = threading.Thread(target=report, daemon=True)
    if seconds:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if seconds:
            thread.join()


class Watcher:
    """``watch(label, total)`` begins a piece of work and returns what advances it; ``watch.say`` prints."""

    def __init__(self, begin: Callable[[str, int], Advance], say: Callable[[str], None]) -> None:
        self._begin = begin
        self.say = say

    def __call__(self, label: str, total: int) -> Advance:
        return self._begin(label, total)


@contextmanager
def watching(results: Path | None = None) -> Iterator[Watcher]:
    """Bars on stderr for as long as the block runs, or lines where there is no terminal.

    results: where the results will be, which the first line says.
    """
    if is_quiet():
        reporter = Reporter(results)
        with _reporting(reporter):
            yield Watcher(reporter.begin, lambda text: click.echo(printable(text), err=True))
        return
    columns = (
        TextColumn("{task.description:<40}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_console(), transient=True) as bars:

        def begin(label: str, total: int) -> Advance:
            task = bars.add_task(label, total=total)

            def advance(done: int) -> None:
                bars.advance(task, done)
                if any(each.id == task and each.finished for each in bars.tasks):
                    bars.remove_task(task)  # finished ones make room

            return advance

        yield Watcher(begin, lambda text: bars.console.print(literal(text)))


@contextmanager
def status(text: str, results: Path | None = None) -> Iterator[None]:
    """A spinner while something of unknown length runs, or lines where there is no terminal."""
    if is_quiet():
        reporter = Reporter(results)
        reporter.begin(text, 0)
        with _reporting(reporter):
            yield
        return
    with _console().status(literal(text)):
        yield
