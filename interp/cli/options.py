"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from interp.data import PromptSet
    from interp.data.prompts import Side
    from interp.judges.keywords import KeywordJudge
    from interp.lm import LM
    from interp.methods.heretic import Conditions
    from interp.methods.persona_vectors import PersonaVector
    from interp.methods.refusal.pipeline import Prompts
    from interp.types import WeightDelta

Command = Callable[..., Any]

MODEL_KEYS = ("dtype", "device_map", "quantize", "revision", "trust_remote_code")
SIDES: tuple[Side, Side] = ("refuse", "comply")
CHAT_KEYS = ("system", "thinking", "prefill", "plain")
ASKING_KEYS = ("system", "prefix", "tokens")


def stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several click options as one decorator, in the order given."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


loading_options = stack(
    click.option("--dtype", help="float32, bfloat16 or float16 (default: as stored)"),
    click.option("--device-map", help="accelerate's device map, e.g. auto"),
    click.option("--quantize", type=click.Choice(["4bit", "8bit"]), help="load with bitsandbytes"),
    click.option("--revision", help="branch, tag or commit on the hub"),
    click.option("--trust-remote-code", is_flag=True, help="run code that comes with the model"),
)

model_options = stack(
    click.option(
        "--model", default="smollm2", show_default=True, help="smollm2, a directory or a hub id"
    ),
    click.option(
        "--backend",
        type=click.Choice(["hooks", "transformer_lens", "nnsight"]),
        default="hooks",
        show_default=True,
    ),
    loading_options,
)

class_options = stack(
    click.option(
        "--refuse",
        default="capability",
        show_default=True,
        metavar="FILE|SET",
        help="requests: a shipped set, a file (text, JSON, CSV or Parquet; #column picks one), or "
        "org/name#column on the hub",
    ),
    click.option(
        "--comply",
        default="capability",
        show_default=True,
        metavar="FILE|SET",
        help="answerable prompts, named in the same ways",
    ),
    click.option("--limit", type=click.IntRange(min=1), help="use at most this many of each"),
)

prompt_options = stack(
    class_options,
    click.option("--system", help="text of a system turn (default: the template's own)"),
    click.option("--thinking/--no-thinking", default=None, help="for templates with that switch"),
    click.option("--prefill", default="", help="text that the answer already begins with"),
    click.option(
        "--plain",
        default="{prompt}",
        show_default=True,
        help="format for models without a chat template",
    ),
    click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True),
)

markers_option = click.option(
    "--markers",
    default="en",
    show_default=True,
    metavar="FILE|LANGUAGES",
    help="what a refusal is known by: a file with one marker a line, or languages: en, pt, en+de, all",
)

heretic_options = stack(
    class_options,
    markers_option,
    click.option("--system", help="system turn (default: heretic's)"),
    click.option("--prefix", default="", help="text that every answer already begins with"),
    click.option(
        "--tokens",
        type=click.IntRange(min=1),
        default=24,
        show_default=True,
        help="length of a response when refusals are counted",
    ),
)

pool_option = click.option(
    "--pool",
    default="answerable",
    show_default=True,
    metavar="FILE|SET",
    help="further answerable prompts that a least-disturbance edit leaves alone; 'none' for none",
)


class _Finite(click.ParamType):
    """Refuses NaN, which click finds within any bounds, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return found


class Finite(_Finite, click.types.FloatParamType):
    """click's type of a finite number."""


class FiniteRange(_Finite, click.FloatRange):
    """click's type of a finite number within bounds."""


def check_place(ctx: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """``path``, if it can be made; otherwise BadParameter, before any work whose result would be lost."""
    if path is None:
        return None
    above = next(p for p in path.expanduser().absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "cannot be written to" if above.is_dir() else "is not a directory"
        raise click.BadParameter(f"'{path}' cannot be made: '{above}' {why}.", ctx, option)
    return path


json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=check_place,
    metavar="FILE",
    help="write the result as JSON",
)

figures_option = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default="figures",
    show_default=True,
    metavar="DIR",
    help="directory of figure cards",
)

paper_path_option = click.option(
    "--paper-path",
    "paper_paths",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    metavar="DIR",
    help="package of a paper that is not installed, a directory with paper.py (repeatable)",
)

delta_option = click.option(
    "--delta",
    "delta_dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="a weight delta made by `interp edit`",
)


def out_option(default: str | None = None, what: str = "directory to write to") -> Any:
    """``--out DIR``; required unless a default is given."""
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        callback=check_place,
        required=default is None,
        default=default,
        show_default=default is not None,
        metavar="DIR",
        help=what,
    )


@dataclass(frozen=True, slots=True)
class Given:
    """The shared options of one call, grouped by what they configure."""

    values: dict[str, Any]

    def open(self) -> LM:
        """The model with its chat format and batch size, with a spinner while it loads."""
        from interp.cli.progress import status
        from interp.data import ChatFormat
        from interp.opening import open_model

        values = self.values
        chat = ChatFormat(**{k: values[k] for k in CHAT_KEYS})
        common = {"backend": values["backend"], "chat": chat, "batch_size": values["batch_size"]}
        with status(f"opening {values['model']}"):
            lm = open_model(values["model"], **common, **{k: values[k] for k in MODEL_KEYS})
        if lm.tokenizer is not None and lm.tokenizer.chat_template is None:
            click.echo(
                f"note: {values['model']} has no chat template (chat_template.jinja); prompts are "
                f"given as {values['plain']}",
                err=True,
            )
        return lm

    @property
    def loading(self) -> dict[str, Any]:
        return loading_values(self.values)

    @property
    def judge(self) -> KeywordJudge:
        return judge_of(self.values)

    def classes(self, split: str) -> tuple[PromptSet, PromptSet]:
        """Both classes of prompts; ``split`` matters for shipped sets that name none."""
        return read_classes(self.values, split)

    def fit_and_select(self) -> tuple[PromptSet, PromptSet, PromptSet, PromptSet]:
        """``(fit refuse, fit comply, select refuse, select comply)``.

        A shipped set has these splits; any other source is cut in two by hash, and its numbers must be
        reported on prompts from elsewhere.
        """
        (fr, sr), (fc, sc) = self._split(("fit", "select"))
        return fr, fc, sr, sc

    def three_splits(self) -> Prompts:
        """Fit, select and report; a source without splits of its own is cut in three by hash."""
        from interp.methods.refusal.pipeline import Prompts

        refuse, comply = self._split(("fit", "select", "report"))
        pool = self.pool(refuse[0], *refuse[1:], *comply[1:])
        return Prompts(*zip(refuse, comply, strict=True), pool=pool)

    def pool(self, refuse: PromptSet, *held_out: PromptSet) -> PromptSet | None:
        """What ``--pool`` names, less the prompts that are held out.

        Raises PromptError when ``refuse``, the requests to fit on, are among the rest.
        """
        from interp.data import check_classes, load_class

        name = self.values["pool"]
        if name == "none":
            return None
        found = load_class(name, "comply", limit=self.values["limit"]).without(*held_out)
        check_classes([refuse], [found])
        return found

    def _split(self, splits: tuple[str, ...]) -> list[list[PromptSet]]:
        """Both classes by split. Raises PromptError for prompts in both, whatever their splits."""
        from interp.data import check_classes

        refuse, comply = (self._parts(side, splits) for side in SIDES)
        check_classes(refuse, comply)
        return [refuse, comply]

    def _parts(self, side: Side, splits: tuple[str, ...]) -> list[PromptSet]:
        from interp.data import is_shipped, load_class

        name, limit = self.values[side], self.values["limit"]
        # A name with a split of its own is cut like a file: its parts must not be the same prompts.
        if is_shipped(name) and ":" not in name:
            return [load_class(name, side, split=split, limit=limit) for split in splits]
        rest = load_class(name, side, limit=limit)
        parts = []
        for _ in splits[1:]:
            rest, last = rest.halves()
            parts.insert(0, last)
        return [rest, *parts]


def read_classes(values: dict[str, Any], split: str) -> tuple[PromptSet, PromptSet]:
    """Both classes of :data:`class_options`. Raises PromptError for prompts that are in both."""
    from interp.data import check_classes, load_class

    refuse, comply = (
        load_class(values[side], side, split=split, limit=values["limit"]) for side in SIDES
    )
    check_classes([refuse], [comply])
    return refuse, comply


def loading_values(values: dict[str, Any]) -> dict[str, Any]:
    """The options of :data:`loading_options` that were given."""
    return {k: values[k] for k in MODEL_KEYS if values[k]}


def conditions_of(values: dict[str, Any], **more: Any) -> Conditions:
    """How to ask, from the values of ``heretic_options``."""
    from interp.methods.heretic import Conditions

    known = {k: values[k] for k in ASKING_KEYS if values[k] is not None}
    return Conditions(**known, markers=judge_of(values).markers, **more)


def judge_of(values: dict[str, Any]) -> KeywordJudge:
    """The judge that ``--markers`` describes. Raises PromptError for markers that are not there."""
    from interp.data.markers import load_markers
    from interp.judges.keywords import KeywordJudge

    name = values["markers"]
    return KeywordJudge(load_markers(name), name=Path(name).name)


def read_delta(folder: Path | None) -> WeightDelta | None:
    """The delta in a directory, None without one."""
    if folder is None:
        return None
    from interp.export import load_delta

    return load_delta(folder)


def as_is(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with what :meth:`Given.open` needs and a command without prompts does not ask for."""
    chat = {"system": None, "thinking": None, "prefill": "", "plain": "{prompt}", "batch_size": 32}
    return chat | values


def note_other_weights(persona: PersonaVector, lm: LM) -> None:
    """Tell on stderr where persona vectors were extracted on other weights than they are used on."""
    from interp.edits import fingerprint

    made_on = persona.record.get("fingerprint")
    if made_on is not None and made_on != fingerprint(lm.hf, lm.anatomy):
        click.echo(
            f"note: the vectors of {persona.trait} were extracted on other weights "
            f"({persona.record.get('model')})",
            err=True,
        )


def write_result(json_file: Path | None, result: Any) -> None:
    """Write the JSON that the user asked for and say where it is."""
    if json_file is not None:
        from interp.files import write_json

        write_json(json_file, result)
        click.echo(f"wrote {json_file}")
