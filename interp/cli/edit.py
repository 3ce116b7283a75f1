"""``interp edit``: one command a method; each makes an edit and saves it as a delta."""

from __future__ import annotations

import importlib

import click

METHODS = {
    "ablation": "directional ablation: remove one direction from what blocks write",
    "least-disturbance": "move refused requests to answered ones and disturb answers least",
    "persona": "add a persona vector as biases, or remove its direction",
}


class EditGroup(click.Group):
    """A group whose commands live one a module in :mod:`interp.cli.edits`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(METHODS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in METHODS:
            return None
        return importlib.import_module(f"interp.cli.edits.{name.replace('-', '_')}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Methods"):
            formatter.write_dl(list(METHODS.items()))


@click.group(
    cls=EditGroup,
    epilog="Example: interp edit least-disturbance --model smollm2 --out my-delta",
)
def command() -> None:
    """Make an edit and save it as a verified delta.

    Edits of refusal are fitted on the fit split, and what is left open is chosen on the select split.

    Each method has --help, --json FILE, and --advanced for the options that its help leaves out.
    """
