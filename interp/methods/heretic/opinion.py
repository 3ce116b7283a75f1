"""heretic's own evaluation of an edited model, beside ours, on the same prompts.

heretic's evaluate mode loads base and merged model, counts refusals by markers and takes the
first-token KL(base‖edited) on the answerable prompts. It gets our markers, prompts, system turn and
response length, so that both programs measure the same thing. An adapter directory would pass falsely
there (heretic puts its own empty adapter over it), so what is given is always merged.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interp.backends.protocol import AnyEdit
from interp.data.chat import ChatFormat
from interp.data.prompts import PromptSet
from interp.errors import ExportError, PromptError
from interp.evaluate.divergence import divergence, reference
from interp.evaluate.scores import judge, respond
from interp.export.heretic_program import Program
from interp.export.releasing import released
from interp.files import write_text
from interp.judges.keywords import MARKERS, KeywordJudge
from interp.lm import LM
from interp.methods.heretic.directions import BATCH, SYSTEM

TOKENS = 24
DIGITS = 4
"""heretic prints its KL with four digits after the point."""
RELATIVE = 1e-3
SECONDS = 3600

KL = re.compile(r"\* KL divergence: (\S+)")
REFUSALS = re.compile(r"\* Refusals: (\d+)/(\d+)")
INITIAL = re.compile(r"\* Initial refusals: (\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Conditions:
    """Settings that both programs measure with: system turn, prefix of every response, length of a response,
    dtype that heretic loads, and markers of a refusal."""

    system: str = SYSTEM
    prefix: str = ""
    tokens: int = TOKENS
    dtype: str = "float32"
    markers: Sequence[str] = MARKERS


@dataclass(frozen=True, slots=True)
class Measures:
    """refusals of n requests, base_refusals of the unedited model, first-token KL in nats."""

    refusals: int
    base_refusals: int
    n: int
    kl: float

    def as_heretic(self) -> dict[str, Any]:
        """The measures under the names of heretic's ``reproduce.json``."""
        counts = {"refusals": self.refusals, "base_refusals": self.base_refusals}
        return {"kl_divergence": self.kl, **counts, "n_bad_prompts": self.n}


@dataclass(frozen=True, slots=True)
class Opinion:
    """Both programs' measures. theirs: None where heretic cannot load the model; message then says why."""

    ours: Measures
    theirs: Measures | None
    message: str = ""

    @property
    def agreement(self) -> str:
        """``agree``, ``disagree``, or ``no opinion`` where heretic gave none.

        They agree on equal refusal counts of base and edited model and on a KL within half a unit of
        heretic's last printed digit or 0.1 %, whichever is more.
        """
        if self.theirs is None:
            return "no opinion"
        a, b = self.ours, self.theirs
        counts = (a.refusals, a.base_refusals, a.n) == (b.refusals, b.base_refusals, b.n)
        allowed = max(0.5 * 10**-DIGITS, RELATIVE * abs(b.kl))
        return "agree" if counts and abs(a.kl - b.kl) <= allowed * (1 + 1e-6) else "disagree"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "agreement": self.agreement}


def second_opinion(
    lm: LM,
    program: Program,
    edit: AnyEdit,
    base: str,
    merged: Path,
    refuse: PromptSet,
    comply: PromptSet,
    conditions: Conditions,
    *,
    keep_model: bool = True,
) -> Opinion:
    """Our measures of ``edit`` on ``lm``, and heretic's of ``merged`` against ``base``.

    base: directory or hub id, as heretic opens it. conditions: its dtype is that of ``lm``. keep_model: move
    the weights of ``lm`` to disk while heretic loads its own, and back; with False they are dropped.

    Raises ExportError when heretic gives neither numbers nor an error message or the disk has no room for
    the weights, PromptError for prompts of several lines.
    """
    for prompts in (refuse, comply):
        if any(len(p.splitlines()) > 1 for p in prompts.prompts):
            raise PromptError(
                f"{prompts.source} has prompts of several lines, which heretic's text files cannot "
                "hold; leave them out"
            )
    ours = measure(lm, edit, refuse, comply, conditions)
    with (
        tempfile.TemporaryDirectory(prefix="interp-weights-") as waiting,
        released(lm.hf, Path(waiting), keep=keep_model),
    ):
        text = run(program, base, merged, refuse, comply, conditions)
    theirs = parse(text)
    return Opinion(ours, theirs, "" if theirs else failure(text))


def measure(
    lm: LM, edit: AnyEdit, refuse: PromptSet, comply: PromptSet, conditions: Conditions
) -> Measures:
    """Our own measures, in heretic's setting."""
    lm = lm.using(chat=ChatFormat(system=conditions.system, prefill=conditions.prefix))
    by = KeywordJudge(tuple(conditions.markers), whole=True)
    counts = [
        judge(respond(lm, refuse, which, tokens=conditions.tokens), by).count
        for which in (edit, None)
    ]
    known = reference(lm, comply, tokens=1)
    return Measures(counts[0], counts[1], len(refuse), divergence(lm, known, edit).first)


def run(
    program: Program,
    base: str,
    merged: Path,
    refuse: PromptSet,
    comply: PromptSet,
    conditions: Conditions,
) -> str:
    """heretic's output in evaluate mode, run in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="interp-heretic-") as scratch:
        folder = Path(scratch)
        for name, prompts in (("bad", refuse), ("good", comply)):
            write_text(folder / f"{name}.txt", "\n".join(prompts.prompts) + "\n")
        write_text(folder / "config.toml", config(conditions))
        local = Path(base).is_dir()
        done = subprocess.run(
            [str(program.executable), "--model", base, "--evaluate-model", str(merged.resolve())],
            cwd=folder,
            env=environment(offline=local),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
    return f"{done.stdout}\n{done.stderr}"


def environment(*, offline: bool) -> dict[str, str]:
    """Environment variables: plain text on wide lines, no Python paths of ours, no hub if not needed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HERETIC_"))}
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "400", "PYTHONUTF8": "1"}
    return kept | plain | ({"HF_HUB_OFFLINE": "1"} if offline else {})


def config(conditions: Conditions) -> str:
    """heretic's ``config.toml``. JSON strings and lists are TOML's too."""
    values = {
        "dtypes": [conditions.dtype],
        "batch_size": BATCH,
        "max_response_length": conditions.tokens,
        "response_prefix": conditions.prefix,
        "system_prompt": conditions.system,
        "refusal_markers": list(conditions.markers),
        "seed": 0,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    for kind in ("good", "bad"):
        for role in ("prompts", "evaluation_prompts"):
            lines += [f"[{kind}_{role}]", f'dataset = "{kind}.txt"']
    return "\n".join(lines) + "\n"


def parse(text: str) -> Measures | None:
    """heretic's numbers from its output; None where the output has none."""
    kl, refusals, initial = KL.search(text), REFUSALS.search(text), INITIAL.search(text)
    if kl is None or refusals is None or initial is None:
        return None
    return Measures(int(refusals[1]), int(initial[1]), int(refusals[2]), float(kl[1]))


def failure(text: str) -> str:
    """heretic's last error message. Raises ExportError for an output without one."""
    lines = [x.strip(" │╭╰─╮╯*") for x in text.splitlines()]
    wrong = [x for x in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b|Failed", x)]
    if not wrong:
        last = next((x for x in reversed(lines) if x), "nothing")
        raise ExportError(f"heretic gave no numbers; its last words: {last}")
    return wrong[-1]
