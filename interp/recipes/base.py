"""Recipes: the settings of a method as one frozen dataclass, which may hold others.

Command-line options (:mod:`interp.cli.recipes`) and YAML files are made from the same fields, so that neither
can name a setting that the method does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, asdict, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from interp.errors import InterpError
from interp.files import write_text

R = TypeVar("R")


def setting(
    default: Any,
    help: str,
    *,
    advanced: bool = False,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    words: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    shown: str | None = None,
) -> Any:
    """A field of a recipe with what its option says and takes.

    advanced: shown by ``--advanced`` alone. least, above, most: bounds of a number, the second excluded.
    words: taken beside numbers. choices: the only texts that are taken. shown: the default in words.
    """
    about = {"help": help, "advanced": advanced, "least": least, "above": above, "most": most}
    return field(
        default=default, metadata=about | {"words": words, "choices": choices, "shown": shown}
    )


def leaves(
    recipe: type, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Field[Any]]]:
    """Path and field of every setting, through nested recipes. Names of settings are unique."""
    hints = get_type_hints(recipe)
    for each in fields(recipe):
        if is_dataclass(hints[each.name]):
            yield from leaves(hints[each.name], (*path, each.name))  # type: ignore[arg-type]
        else:
            yield (*path, each.name), each


def from_settings(recipe: type[R], values: Mapping[str, Any]) -> R:
    """A recipe from settings by name; those that are left out keep their defaults."""
    hints, given = get_type_hints(recipe), {}
    for each in fields(recipe):  # type: ignore[arg-type]
        if is_dataclass(hints[each.name]):
            given[each.name] = from_settings(hints[each.name], values)
        elif each.name in values:
            given[each.name] = values[each.name]
    return recipe(**given)


def changed(recipe: R, settings: Iterable[str]) -> R:
    """A recipe with other settings, each as ``NAME=VALUE`` or, in a nested recipe, ``OUTER.NAME=VALUE``.

    Values are YAML and have the type of those that they replace. InterpError for unknown settings and other
    types.
    """
    for text in settings:
        name, given, value = text.partition("=")
        if not given:
            raise InterpError(f"{text!r} is no setting: write NAME=VALUE")
        recipe = _changed(recipe, name.strip().split("."), value)
    return recipe


def _changed(recipe: Any, names: list[str], value: str) -> Any:
    known = [each.name for each in fields(recipe)]
    if names[0] not in known:
        raise InterpError(
            f"no setting {names[0]!r}; {type(recipe).__name__} has {', '.join(known)}"
        )
    old = getattr(recipe, names[0])
    if is_dataclass(old) == (len(names) == 1):
        inside = "holds settings: write one of them as" if is_dataclass(old) else "has no"
        raise InterpError(f"{names[0]} {inside} {names[0]}.{(names[1:] or ['NAME=VALUE'])[0]}")
    new = _changed(old, names[1:], value) if len(names) > 1 else _typed(names[0], value, old)
    return replace(recipe, **{names[0]: new})


def _typed(name: str, text: str, old: Any) -> Any:
    """A YAML value with the type of ``old``; any where that is None."""
    import yaml

    try:
        value = yaml.safe_load(text)
        value = float(value) if type(old) is float else value  # YAML reads 1e-3 as a text
    except (yaml.YAMLError, TypeError, ValueError):
        value = None
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    if old is not None and type(value) is not type(old):
        raise InterpError(f"{name}={text} is no {type(old).__name__}, as {old!r} is")
    return value


def load_settings(recipe: type, path: Path) -> dict[str, Any]:
    """Settings by name from a YAML file. InterpError for a file that is none, and for unknown settings."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise InterpError(f"cannot read the recipe {path}: {reason}") from None
    if not isinstance(content, dict):
        raise InterpError(
            f"{path} is not a recipe: write one setting a line, as --save-recipe does"
        )
    known = {names[-1]: names for names, _ in leaves(recipe)}
    found: dict[str, Any] = {}
    for names, value in _flat(content):
        if known.get(names[-1]) != names:
            where = ", ".join(".".join(n) for n in known.values())
            raise InterpError(f"{path}: no setting {'.'.join(names)!r}; known: {where}")
        found[names[-1]] = value
    return found


def _flat(
    content: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in content.items():
        names = (*path, str(name))
        if isinstance(value, Mapping):
            yield from _flat(value, names)
        else:
            yield names, value


def save_recipe(recipe: Any, path: Path) -> None:
    """Write a recipe as YAML, atomically."""
    import yaml

    write_text(path, yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True))
