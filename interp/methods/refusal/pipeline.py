"""The whole refusal pipeline on one model: attribute, fit, choose, report, export, verify."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from interp.data.prompts import PromptSet
from interp.data.text import neutral_passages
from interp.edits import fingerprint
from interp.evaluate.hardware import accelerator
from interp.evaluate.measure import Bench, BenchRow
from interp.export import export
from interp.export.gate import PASSING, kinds
from interp.export.measurement import Measurement
from interp.figures import render
from interp.judges.keywords import ENGLISH_JUDGE
from interp.judges.protocol import Judge
from interp.lm import LM
from interp.methods.refusal.attributing import attribution_figure, fit_openers
from interp.methods.refusal.card import report_figure
from interp.methods.refusal.choose import UPPER, Choice, Selection, choose, depth_blocks
from interp.methods.refusal.controls import random_control
from interp.methods.refusal.delta import as_delta
from interp.methods.refusal.fit import Fitted, build, fit
from interp.recipes import AblationEdit, LeastDisturbanceEdit
from interp.records import FigureRecord, Provenance
from interp.samples import DECISION
from interp.source import code_hash
from interp.statistics.refusal import MAIN
from interp.types import WeightDelta

Say = Callable[[str], None]
SEED = 0
MADE_BY = f"{__name__}:run"
DEMO_DEPTHS = (0.8, 0.87)
"""Where a run of minutes can afford to try directions; `interp edit` tries more, and several strengths."""
OPENERS = 48
"""Prompts of each class from which first tokens are taken, at most."""
POOL = 100
"""Further answerable prompts that are read, at most; `interp edit` reads them all."""
HELD = 32
"""Prompts of each class of select, and of report, at most."""
RESPONSE = 12
CLOSED_FORM = LeastDisturbanceEdit(strength=1.0, attention=1.0, ridge=0.02, learn=0.0, responses=0)
"""The least-disturbance edit of a run of minutes, along the direction chosen for ablation."""
PASSAGES = 8
"""Of neutral text, for report; the others may be looked at while an edit is developed. A run of minutes reads
every second of them."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Both classes of the three splits, and further answerable prompts for the fit."""

    fit: tuple[PromptSet, PromptSet]
    select: tuple[PromptSet, PromptSet]
    report: tuple[PromptSet, PromptSet]
    pool: PromptSet | None = None


@dataclass(slots=True)
class RunResult:
    """What a run produced: rows of measures, choices, files, and the seconds that each stage took."""

    rows: list[BenchRow] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    exports: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    base: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": [row.as_json() for row in self.rows],
            "choices": {name: choice.as_json() for name, choice in self.choices.items()},
            "paths": {name: str(path) for name, path in self.paths.items()},
            "exports": {name: dict(receipt) for name, receipt in self.exports.items()},
            "prompts_sha256": self.prompts,
            "base": self.base,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started


def run(
    lm: LM,
    prompts: Prompts,
    out: Path,
    *,
    judge: Judge = ENGLISH_JUDGE,
    loading: Mapping[str, Any] | None = None,
    say: Say = lambda text: None,
) -> RunResult:
    """Attribution figure → edits fitted and chosen → report table → delta and adapter, verified.

    Edits are fitted on *fit*. Where the direction is taken is chosen on *select*, by what ablation along it
    does there; the least-disturbance edit takes the same direction. Of *select* and *report* ``HELD``
    prompts of each class are read. Everything is written under ``out``; *report* is touched once, after all
    choices.
    """
    prompts = replace(prompts, select=_held(prompts.select), report=_held(prompts.report))
    pool = prompts.pool and prompts.pool.spread(POOL)
    result = RunResult(base=fingerprint(lm.hf, lm.anatomy), prompts=_hashes(prompts, pool))
    with result.timed("attribute"):
        some = [part.spread(OPENERS) for part in prompts.fit]
        figure = attribution_figure(lm, *prompts.select, openers=fit_openers(lm, *some))
        _keep(result, figure, out)
        say(f"attribution: the classes differ by {figure.series.measured:+.2f} logits")
    with result.timed("fit"):
        # Responses are not read, which would take as long as both classes and the pool together.
        fitted = fit(lm, *prompts.fit, pool=pool, judge=judge)
    with result.timed("select"):
        result.choices = _choices(lm, fitted, prompts, say)
        edits = {name: build(lm, fitted, choice.setting) for name, choice in result.choices.items()}
        edits["random direction"] = random_control(edits[MAIN], seed=SEED)
    with result.timed("report"):
        deltas = {name: as_delta(lm, fitted, edit, prompts.select) for name, edit in edits.items()}
        result.rows = _rows(lm, prompts, deltas, judge)
    about = frozenset.union(*(kinds(deltas[name].recipe) for name in result.choices))
    card = report_figure(result.rows, _provenance(result, lm), sorted(about))
    _keep(result, card, out)
    if card.verdict not in PASSING:
        say(f"the report figure says {card.verdict!r}: what is exported is marked as unproven")
    with result.timed("export"):
        asked = {"response_tokens": RESPONSE, "judge": judge.as_json()}
        measured = _measurement(result.rows, deltas[MAIN], prompts, card.provenance, asked)
        options = {"cards": [card], "measured": measured, **(loading or {})}
        for kind, name in (("delta", "delta"), ("peft", "adapter")):
            result.paths[name] = out / name
            result.exports[kind] = _export(lm, deltas[MAIN], kind, out / name, options, say)
    return result


def _hashes(prompts: Prompts, pool: PromptSet | None) -> dict[str, str]:
    """Name of a prompt set → its hash."""
    found = {
        f"{split}:{side}": part.sha256
        for split in ("fit", "select", "report")
        for side, part in zip(("refuse", "comply"), getattr(prompts, split), strict=True)
    }
    return found | ({"pool": pool.sha256} if pool else {})


def _rows(
    lm: LM, prompts: Prompts, deltas: Mapping[str, WeightDelta], judge: Judge
) -> list[BenchRow]:
    """The report table: the unedited model, then every edit."""
    passages = neutral_passages()[:PASSAGES:2]
    bench = Bench.prepare(
        lm, *prompts.report, response_tokens=RESPONSE, passages=passages, judge=judge
    )
    return [bench.row("original"), *(bench.row(name, delta) for name, delta in deltas.items())]


def _export(
    lm: LM, delta: WeightDelta, kind: str, out: Path, options: Mapping[str, Any], say: Say
) -> dict[str, Any]:
    """Export a delta in one format; what its receipt says."""
    base = {"base": lm.backend, "base_name": lm.backend.source}
    receipt = export(delta, to=kind, out=out, unproven=True, **base, **options)
    say(f"{kind}: {receipt.verdict}, largest logit difference {receipt.difference:.1e}")
    return {
        "verdict": receipt.verdict,
        "difference": receipt.difference,
        "effect": receipt.effect,
        "missing": list(receipt.missing),
    }


def _measurement(
    rows: Sequence[BenchRow],
    delta: WeightDelta,
    prompts: Prompts,
    provenance: Provenance,
    asked: Mapping[str, Any],
) -> Measurement:
    """What the report split says of the edit that is exported."""
    named = {row.name: row.as_json() for row in rows}
    pair = (named["original"], named[MAIN])
    return Measurement.of(delta, pair, *prompts.report, provenance, **asked)


def _held(part: tuple[PromptSet, PromptSet]) -> tuple[PromptSet, PromptSet]:
    refuse, comply = (side.spread(HELD) for side in part)
    return refuse, comply


def _choices(lm: LM, fitted: Fitted, prompts: Prompts, say: Say) -> dict[str, Choice]:
    """The ablation that does best on select, and the closed-form edit along its direction."""
    selection = Selection.prepare(lm, fitted, *prompts.select)
    n = lm.n_blocks
    blocks = depth_blocks(n, fitted.directions[DECISION], DEMO_DEPTHS)
    tried = [AblationEdit(1.0, block, 0) for block in blocks]
    choice = choose(selection, tried, watch=lm.watch, label="directional ablation")
    first = min(round(UPPER * n), n - 1)
    ours = replace(CLOSED_FORM, block=choice.setting.block, first_block=first)
    found = {"directional ablation": choice, MAIN: Choice(ours, ())}
    for name, each in found.items():
        chosen = each.setting
        say(
            f"{name}: direction of block {chosen.block}, blocks {chosen.first_block} … "
            f"{n - 1}, strength {chosen.strength:g}"
        )
    return found


def _keep(result: RunResult, record: FigureRecord, out: Path) -> None:
    """Save a figure's data and its picture under ``out/figures``."""
    path = record.save(out / "figures")
    result.paths[record.key] = path
    result.paths[f"{record.key} (picture)"] = render(path)


def _provenance(result: RunResult, lm: LM) -> Provenance:
    return Provenance.collect(
        lm.backend.source,
        device=accelerator(lm),
        fingerprint=result.base,
        prompts=result.prompts,
        seed=SEED,
        seconds=sum(result.seconds.values()),
        made_by=MADE_BY,
        code=code_hash(MADE_BY),
    )
