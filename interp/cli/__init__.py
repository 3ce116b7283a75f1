"""The command line. Commands import what they need when they run, so that ``--help`` is instant."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from typing import Any

import click

from interp import __version__
from interp.errors import InterpError, InterpWarning
from interp.printable import printable

LINE_BREAK = "\n"

COMMANDS = {
    "demo": "the whole refusal pipeline on SmolLM2: attribute, edit, measure, export, verify",
    "inspect": "every matrix that writes a model's residual stream",
    "ruler": "what other tools call each place in a model's residual stream",
    "attribute": "which blocks and components write the refusal margin",
    "edit": "make an edit and save it as a weight delta",
    "persona": "persona vectors, from the name of a trait or a sentence",
    "audit": "traits that a finetune, adapter or delta will show, predicted without a token",
    "measure": "refusals, over-refusals, KL and neutral NLL, with or without a delta",
    "export": "write a delta for PEFT, llama.cpp, heretic, or merged into the model; verified",
    "diff": "what a finetune or an edit changed, matrix by matrix, and along a direction",
    "heretic": "an edit of heretic's family, to the last bit as heretic makes it",
    "verify": "reload an export in a fresh process; with heretic as second opinion",
    "papers": "every paper, and what is missing of it",
    "figures": "every figure card: paper, model, verdict",
    "run": "measure the figures of a paper",
    "draw": "figure cards drawn again from their data, without a model",
    "models": "model families, backends and the embedded model",
}


class LazyGroup(click.Group):
    """A group whose commands live one a module in this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"interp.cli.{name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: interp demo      Each command has --help with an example of its own.",
)
@click.version_option(__version__, prog_name="interp")
def cli() -> None:
    """Read residual streams, find where refusal lives, edit it, export verified weight diffs.

    Exit codes: 0 done, 1 failed or did not verify, 2 wrong use. Where there is no terminal, long work prints
    how far it is every 30 seconds (set INTERP_PROGRESS_SECONDS to change that; 0 for never).
    """


def main(argv: list[str] | None = None) -> Any:
    """Run the command line; errors made to be read are one line on stderr and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # what a notebook or a test puts there
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with warnings.catch_warnings():
        _show_notes()
        return _run(argv)


def _show_notes() -> None:
    """Notes made to be read are one line on stderr each, once a command; other warnings stay as they are."""
    shown = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, InterpWarning):
            click.echo(f"note: {printable(str(message), keep=LINE_BREAK)}", err=True)
        else:
            shown(message, category, *where, **more)

    warnings.showwarning = show
    warnings.simplefilter("once", InterpWarning)


def _run(argv: list[str] | None) -> Any:
    try:
        return cli.main(args=argv, prog_name="interp", standalone_mode=True)
    except (InterpError, OSError) as error:
        click.echo(f"error: {printable(str(error), keep=LINE_BREAK)}", err=True)
    sys.exit(1)
