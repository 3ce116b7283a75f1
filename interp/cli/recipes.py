"""Options made from a recipe: a few are shown first, the others by ``--advanced``."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from interp.cli.options import Finite, FiniteRange
from interp.errors import InterpError
from interp.recipes import from_settings, leaves, load_settings, save_recipe

R = TypeVar("R")


def recipe_options(recipe: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command one option for every setting of a recipe, and three more.

    ``--recipe FILE`` reads settings, which options override; ``--save-recipe FILE`` writes those that are
    used; ``--advanced`` shows the options that ``--help`` leaves out.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for names, each in reversed(list(leaves(recipe))):
            command = _option(names, each.default, each.metadata, _kind(recipe, names))(command)
        for option in (_advanced, _save, _read):
            command = option(command)
        return command

    return decorate


_FILE = click.Path(dir_okay=False, path_type=Path)
_read = click.option("--recipe", "recipe_file", type=_FILE, metavar="FILE",
                     help="read settings from YAML; options override them")  # fmt: skip
_save = click.option("--save-recipe", type=_FILE, metavar="FILE",
                     help="write the settings that are used as YAML")  # fmt: skip


def read_recipe(recipe: type[R], values: dict[str, Any]) -> R:
    """The recipe that options and ``--recipe`` give; takes its settings out of ``values``."""
    ctx = click.get_current_context()
    source = ctx.get_parameter_source
    path, target = values.pop("recipe_file"), values.pop("save_recipe")
    settings = load_settings(recipe, path) if path is not None else {}
    for option in ctx.command.params:  # what a file says is checked as options are
        if option.name in settings and settings[option.name] is not None:
            settings[option.name] = option.type_cast_value(ctx, settings[option.name])
    for names, each in leaves(recipe):
        name = names[-1]
        given = values.pop(name)
        if source(name) is ParameterSource.COMMANDLINE:
            settings[name] = given
        settings.setdefault(name, each.default)
    try:
        made = from_settings(recipe, settings)
    except (InterpError, TypeError) as error:
        raise click.UsageError(str(error)) from None
    if target is not None:
        save_recipe(made, target)
        click.echo(f"wrote {target}")
    return made


def _kind(recipe: type, names: tuple[str, ...]) -> Any:
    """The type of a setting, without None."""
    for name in names[:-1]:
        recipe = get_type_hints(recipe)[name]
    hint = get_type_hints(recipe)[names[-1]]
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    return hint


class _Number(click.ParamType):
    """A number within bounds, or one of some words."""

    def __init__(self, number: click.ParamType, words: tuple[str, ...]) -> None:
        self.number, self.words = number, words
        self.name = "|".join(("number", *words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self.words else self.number.convert(value, param, ctx)


def _type(kind: Any, about: Mapping[str, Any]) -> Any:
    """click's type of a setting."""
    low = about["least"] if about["above"] is None else about["above"]
    bounds = {"min": low, "max": about["most"], "min_open": about["above"] is not None}
    if kind is int:
        return click.IntRange(**bounds) if low is not None else click.INT
    if kind is float:
        number = FiniteRange(**bounds) if low is not None else Finite()
        return _Number(number, about["words"]) if about["words"] else number
    return click.Choice(about["choices"]) if about["choices"] else click.STRING


def _option(names: tuple[str, ...], default: Any, about: Mapping[str, Any], kind: Any) -> Any:
    flag = "--" + names[-1].replace("_", "-")
    shared = {"help": about["help"], "hidden": about["advanced"], "default": default}
    if kind is bool:
        declaration = f"{flag}/--no{flag[1:]}" if default else flag
        return click.option(declaration, is_flag=True, show_default=default, **shared)
    shown = about["shown"] or default is not None
    text = kind is str and not about["choices"]
    metavar = "|".join(("TEXT", *about["words"])) if text else None
    return click.option(
        flag, type=_type(kind, about), show_default=shown, metavar=metavar, **shared
    )


def _show_all(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    if not given or ctx.resilient_parsing:
        return
    for each in ctx.command.params:
        if isinstance(each, click.Option):
            each.hidden = False
    click.echo(ctx.get_help())
    ctx.exit()


_advanced = click.option("--advanced", is_flag=True, is_eager=True, expose_value=False, callback=_show_all,
                         help="show the options that are left out here, and stop")  # fmt: skip
