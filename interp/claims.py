"""Claims about figures, and the registered tests that decide whether they hold.

A claim never carries our own number: it points into the typed series that the figure draws
(:mod:`interp.series`), or names a statistic that is computed from there. A new test is one function with
:func:`claim_test` above it, a new statistic one in :mod:`interp.statistics` with :func:`statistics` above it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any

from interp.errors import RecordError

Number = int | float
"""JSON does not tell 1 from 1.0, and neither do we."""

Holds = Callable[[Any, Any, Number], bool]


@dataclass(frozen=True, slots=True)
class ClaimTest:
    """How a claim is tested. shape: it speaks of an order or a form, not of the paper's digits."""

    holds: Holds
    shape: bool


TESTS: dict[str, ClaimTest] = {}


def claim_test(name: str, *, shape: bool) -> Callable[[Holds], Holds]:
    """Register ``holds(ours, theirs, tolerance) -> bool`` as a test that claims may name."""

    def register(holds: Holds) -> Holds:
        if name in TESTS and not _same(TESTS[name].holds, holds):
            raise RuntimeError(f"the claim test {name!r} is registered twice")
        TESTS[name] = ClaimTest(holds, shape)
        return holds

    return register


Computed = Callable[[Any], Mapping[str, Number]]
STATISTICS: dict[str, Computed] = {}
HOME = "interp.statistics"
"""The package whose import registers the statistics."""


def statistics(name: str) -> Callable[[Computed], Computed]:
    """Register ``computed(series or part of it) -> {name: number}`` as statistics that claims may name, as
    ``name/number``."""

    def register(computed: Computed) -> Computed:
        if name in STATISTICS and not _same(STATISTICS[name], computed):
            raise RuntimeError(f"the statistics {name!r} are registered twice")
        STATISTICS[name] = computed
        return computed

    return register


def _same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions are one whose module was loaded again."""
    places = [(function.__module__, function.__qualname__) for function in (one, other)]
    return places[0] == places[1]


def computed(name: str, value: Any) -> Number:
    """The statistic ``name`` of a part of a series. RecordError where there is none."""
    importlib.import_module(HOME)
    group, _, number = name.partition("/")
    if group not in STATISTICS:
        raise RecordError(f"no statistics {group!r}; known: {', '.join(sorted(STATISTICS))}")
    try:
        found = STATISTICS[group](value)
    except (AttributeError, LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise RecordError(f"the statistic {name!r} cannot be computed: {error!r}") from None
    if number not in found:
        raise RecordError(f"no statistic {name!r}; {group!r} has {', '.join(found)}")
    return found[number]


@claim_test("equal", shape=False)
def equal(ours: Any, theirs: Any, tolerance: Number) -> bool:
    """Every value within ``tolerance`` of the paper's."""
    pairs = _pairs(ours, theirs)
    return all(abs(a - b) <= tolerance for a, b in pairs)


@claim_test("equal relative", shape=False)
def equal_relative(ours: Any, theirs: Any, tolerance: Number) -> bool:
    """Every value within ``tolerance`` times the size of the paper's."""
    pairs = _pairs(ours, theirs)
    return all(abs(a - b) <= tolerance * abs(b) for a, b in pairs)


@claim_test("at most", shape=True)
def at_most(ours: Any, theirs: Any, tolerance: Number) -> bool:
    """No value above ``theirs + tolerance``."""
    (limit,) = numbers(theirs)
    return max(numbers(ours)) <= limit + tolerance


@claim_test("at least", shape=True)
def at_least(ours: Any, theirs: Any, tolerance: Number) -> bool:
    """No value below ``theirs − tolerance``."""
    (limit,) = numbers(theirs)
    return min(numbers(ours)) >= limit - tolerance


@claim_test("rises", shape=True)
def rises(ours: Any, theirs: Any, tolerance: Number) -> bool:
    """The last value is above the first; none is more than ``tolerance`` below the one before."""
    values = numbers(ours)
    return values[-1] > values[0] and all(b >= a - tolerance for a, b in pairwise(values))


@claim_test("falls", shape=True)
def falls(ours: Any, theirs: Any, tolerance: Number) -> bool:
    """The mirror image of ``rises``."""
    return rises([-v for v in numbers(ours)], theirs, tolerance)


@claim_test("peak within", shape=True)
def peak_within(ours: Any, theirs: Any, tolerance: Number) -> bool:
    """The index of the largest value lies in ``theirs = [first, last]``, both ends included."""
    values = numbers(ours)
    first, last = numbers(theirs)
    return first - tolerance <= values.index(max(values)) <= last + tolerance


@claim_test("same order", shape=True)
def same_order(ours: Any, theirs: Any, tolerance: Number) -> bool:
    """Sorted by the paper's values, ours rise too; neighbours within ``tolerance`` may swap."""
    pairs = sorted(_pairs(theirs, ours))
    return all(b >= a - tolerance for (_, a), (_, b) in pairwise(pairs))


def numbers(value: Any) -> list[float]:
    """One number or a list of them, as a list. RecordError for anything else."""
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(type(v) in (int, float) for v in values):
        raise RecordError(
            f"a claim compares numbers, got {value!r}; point it at a number or at a list"
        )
    return [float(v) for v in values]


def _pairs(ours: Any, theirs: Any) -> list[tuple[float, float]]:
    # A list, so that a difference in length is an error even where the first pair decides.
    return list(zip(numbers(ours), numbers(theirs), strict=True))


@dataclass(frozen=True, slots=True)
class Claim:
    """One checkable statement about a figure.

    statement: what is claimed, in words. test: a name in :data:`TESTS`. ours: JSON pointer into the
    record's series (``/lines/0/values``; empty for all of it). theirs: the paper's value, or what the test
    compares with; None where the test needs none (``rises``). source: where the paper prints it. statistic:
    what is computed from there (``reading/difference_of_means_least``); None for the value itself.
    Raises RecordError for a test that does not exist, and for digits without a value or a source.
    """

    statement: str
    test: str
    ours: str
    theirs: Number | Sequence[Number] | None = None
    tolerance: Number = 0.0
    source: str | None = None
    statistic: str | None = None

    def __post_init__(self) -> None:
        if self.test not in TESTS:
            raise RecordError(f"no claim test {self.test!r}; known: {', '.join(sorted(TESTS))}")
        if not self.shape and (self.theirs is None or not self.source):
            raise RecordError(
                f"the claim {self.statement!r} compares digits: give the paper's value and its "
                "source, or claim a shape"
            )
        if isinstance(self.theirs, tuple):
            object.__setattr__(self, "theirs", list(self.theirs))

    @property
    def shape(self) -> bool:
        """Whether it speaks of a shape, not of digits."""
        return TESTS[self.test].shape

    def outcome(self, series: Any) -> Outcome:
        """Test it on a series. RecordError when it points nowhere or at something else."""
        ours = point(series, self.ours)
        if self.statistic is not None:
            ours = computed(self.statistic, ours)
        ours = list(ours) if isinstance(ours, tuple) else ours
        try:
            holds = TESTS[self.test].holds(ours, self.theirs, self.tolerance)
        except ValueError as error:  # lists of different lengths
            raise RecordError(f"{self.statement!r} cannot be tested: {error}") from None
        return Outcome(self, ours, bool(holds))


@dataclass(frozen=True, slots=True)
class Outcome:
    """A claim, the value that the series holds for it, and whether the claim holds."""

    claim: Claim
    ours: Any
    holds: bool


def point(series: Any, pointer: str) -> Any:
    """The part of a series at a JSON pointer into its file (``/parts/0/values``). RecordError says where
    the pointer ends."""
    if not pointer:
        return series
    if not pointer.startswith("/"):
        raise RecordError(f"a pointer into a series starts with '/', got {pointer!r}")
    value = series
    for word in pointer[1:].split("/"):
        try:
            value = value[int(word)] if isinstance(value, list | tuple) else _named(value)[word]
        except (LookupError, ValueError, TypeError):
            names = _named(value)
            here = f"the names {', '.join(names)}" if names else repr(value)
            raise RecordError(f"{pointer} leads nowhere at {word!r}: there is {here}") from None
    return value


def _named(value: Any) -> Mapping[str, Any]:
    """What a file holds under a name: entries of a mapping, fields of a part, content of ``beside``."""
    if isinstance(value, Mapping):
        return value
    if not is_dataclass(value):
        return {}
    found = {f.name: getattr(value, f.name) for f in fields(value)}
    beside = found.pop("beside", {})
    return {**found, **beside}
