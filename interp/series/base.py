"""The base of every series: a frozen dataclass that is checked when made and written as plain JSON.

A subclass of :class:`Part` declares its fields with types and a ``check`` of what types cannot say. Making
one converts sequences and arrays to tuples and raises :class:`~interp.errors.RecordError`, which names the
value, for everything else that the type does not allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from interp.claims import Number
from interp.errors import RecordError

Value = Number | None
"""A finite number, or None where there is none."""

KINDS: dict[str, type[Series]] = {}
"""Name on disk → class of the series; filled by :func:`series_kind`."""


class Part:
    """A piece of a series."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, (hint, _) in _schema(type(self)).items():
            value = conform(hint, getattr(self, name), f"{described(self)}.{name}")
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raise RecordError where fields of the right types do not fit each other."""


@dataclass(frozen=True, slots=True)
class Series(Part):
    """The data of a figure.

    beside: JSON values that were measured with the series and are not drawn; written beside its fields.
    """

    kind: ClassVar[str]
    """Name of the series on disk, and of the module of :mod:`interp.figures` that draws it."""
    on_one_plot: ClassVar[bool] = True
    """Whether it is drawn on a single pair of axes."""

    beside: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        Part.__post_init__(self)
        if clash := sorted(self.beside.keys() & {"kind", *_schema(type(self))}):
            raise RecordError(
                f"{clash[0]!r} in `beside` is a field of {type(self).__name__}; rename it"
            )

    def as_json(self) -> dict[str, Any]:
        """Fields that differ from their defaults, and the content of ``beside``, as JSON values."""
        return _written(self)


S = TypeVar("S", bound=type[Series])


def series_kind(cls: S) -> S:
    """Register a class of series under its ``kind``."""
    if KINDS.get(cls.kind, cls).__qualname__ != cls.__qualname__:
        raise RuntimeError(f"the series kind {cls.kind!r} is registered twice")
    KINDS[cls.kind] = cls
    return cls


def read_series(kind: str, content: Mapping[str, Any]) -> Series:
    """The typed series of ``kind`` from its JSON. RecordError says what does not fit.

    Keys that the kind does not have become ``beside``.
    """
    if kind not in KINDS:
        raise RecordError(f"no series of kind {kind!r}; known: {', '.join(sorted(KINDS))}")
    cls = KINDS[kind]
    known = _schema(cls).keys() - {"beside"}
    given = {name: value for name, value in content.items() if name in known}
    rest = {name: value for name, value in content.items() if name not in known}
    return _read(cls, {**given, "beside": rest}, kind)


# --- values of fields --------------------------------------------------------------------------


def plain(value: Any, where: str = "series") -> Any:
    """A deep copy made of JSON values only. RecordError names the first value that is none."""
    if value is None or type(value) in (str, bool, int):
        return value
    if type(value) is float:
        return _finite(value, where)
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}/{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}/{i}") for i, v in enumerate(value)]
    raise RecordError(
        f"{where} is a {_type_name(value)}; turn it into numbers and lists with .tolist()"
    )


def conform(hint: Any, value: Any, where: str, *, reading: bool = False) -> Any:
    """``value`` as the annotation ``hint`` wants it; RecordError names what is wrong, and ``where``.

    reading: the value comes from JSON, where a part is an object.
    """
    value = value.tolist() if hasattr(value, "tolist") else value  # an array, or one of its numbers
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in options:
        return None
    hint, *others = [option for option in options if option is not NoneType]
    if others or hint in (int, float, str, bool):
        return _scalar((hint, *others), value, where)
    origin = get_origin(hint) or hint
    if origin is tuple:
        return _items(get_args(hint), value, where, reading)
    if origin is Literal:
        return _choice(get_args(hint), value, where)
    if origin is Mapping:
        return (
            plain(value, where)
            if isinstance(value, Mapping)
            else _refuse("a mapping", value, where)
        )
    if reading and isinstance(value, Mapping):
        if hint is Series:
            return read_series(
                value.get("kind", ""), {k: v for k, v in value.items() if k != "kind"}
            )
        return _read(hint, value, where)
    return value if isinstance(value, hint) else _refuse(f"a {hint.__name__}", value, where)


def _scalar(options: tuple[type, ...], value: Any, where: str) -> Any:
    if type(value) not in options:
        names = {int: "a number", float: "a number", str: "a text", bool: "True or False"}
        wanted = "a whole number" if options == (int,) else names[options[-1]]
        _refuse(wanted, value, where)
    return _finite(value, where) if type(value) is float else value


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise RecordError(f"{where} is {value}; use None (null in JSON) where there is no value")
    return value


def _items(hints: tuple[Any, ...], value: Any, where: str, reading: bool) -> tuple[Any, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str | Mapping):
        _refuse("a sequence", value, where)
    items = list(value)
    if hints[-1] is Ellipsis:
        hints = (hints[0],) * len(items)
    if len(hints) != len(items):
        raise RecordError(f"{where} has {len(items)} entries; give {len(hints)}")
    return tuple(
        conform(hint, item, f"{where}/{i}", reading=reading)
        for i, (hint, item) in enumerate(zip(hints, items, strict=True))
    )


def _choice(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in options:
        raise RecordError(f"{where} is {value!r}; use {' or '.join(map(str, options))}")
    return value


def _refuse(wanted: str, value: Any, where: str) -> Any:
    raise RecordError(f"{where} is a {_type_name(value)} ({value!r:.60}); give {wanted}")


def _type_name(value: Any) -> str:
    home = type(value).__module__
    return type(value).__name__ if home == "builtins" else f"{home}.{type(value).__name__}"


# --- reading and writing -----------------------------------------------------------------------


@cache
def _schema(cls: type) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of every field."""
    hints = get_type_hints(cls)
    return {
        f.name: (hints[f.name], f.default if f.default_factory is MISSING else f.default_factory())
        for f in fields(cls)
    }


def _read(cls: Any, content: Mapping[str, Any], where: str) -> Any:
    schema = _schema(cls)
    needed = [name for name, (_, default) in schema.items() if default is MISSING]
    if missing := [name for name in needed if name not in content]:
        raise RecordError(
            f"{where} has no {missing[0]!r}; {cls.__name__} needs {', '.join(needed)}"
        )
    if unknown := sorted(content.keys() - schema.keys()):
        raise RecordError(
            f"{where} has an unknown field {unknown[0]!r}; {cls.__name__} has {', '.join(schema)}"
        )
    return cls(**{
        name: conform(schema[name][0], value, f"{where}/{name}", reading=True)
        for name, value in content.items()
    })  # fmt: skip


def _written(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_written(v) for v in value]
    if not is_dataclass(value):
        return value
    content = {
        name: _nested(getattr(value, name))
        for name, (_, default) in _schema(type(value)).items()
        if name != "beside" and getattr(value, name) != default
    }
    return content | plain(value.beside) if isinstance(value, Series) else content


def _nested(value: Any) -> Any:
    return {"kind": value.kind, **_written(value)} if isinstance(value, Series) else _written(value)


def described(part: Any) -> str:
    """Class and label of a part, for messages."""
    label = getattr(part, "label", None) or getattr(part, "title", None)
    return f"{type(part).__name__}({label!r})" if isinstance(label, str) else type(part).__name__
