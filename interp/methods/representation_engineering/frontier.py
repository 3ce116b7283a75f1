"""The frontier: every contender chosen for almost no refusals, and what it costs on the report split.

Fit, select and report are dealt anew by topics for every seed; the broad pairs, on topics of their own,
join fit and select of each. A contender's setting is the one with the
least first-token KL on select that leaves at most 2 % of the requests refused there; report is touched
once it is chosen. The curve through a point scales the chosen edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, log_softmax

from interp.claims import Claim
from interp.data.chat import encode
from interp.data.prompts import PromptSet
from interp.data.text import neutral_passages
from interp.evaluate.divergence import first_logits, kl_nats
from interp.evaluate.measure import Bench
from interp.evaluate.refusal import asked
from interp.methods.refusal import Fitted, Selection, choose, fit, pool_inputs
from interp.methods.representation_engineering.contenders import (
    MAIN,
    MAKERS,
    RANDOM,
    Candidate,
    Maker,
    candidates,
)
from interp.methods.representation_engineering.paper import KEY
from interp.methods.representation_engineering.splits import Splits, splits
from interp.records import FigureRecord
from interp.study import Study
from interp.types import WeightDelta

FACTORS = (0.6, 1.3)
"""The chosen edit times these, beside itself."""
BY_FACTOR = sorted(range(len(FACTORS) + 1), key=lambda i: (*FACTORS, 1.0)[i])
"""Places of an edit's points from its weakest to its strongest; the whole edit is kept last."""
RESPONSE = 16
PASSAGES = 12
FEWEST_FOR_T = 5
"""Seeds below which whiskers are the least and the greatest value: a t interval of two says nothing."""
MEASURES = ("refused", "over_refused", "kl1", "kl32", "nll")
ABLATIONS = ("directional ablation", "partial ablation", "heretic's kernel")

Point = dict[str, Any]


@dataclass(eq=False)
class SeedRun:
    """One deal of the topics. The model works only for what an earlier run has not kept."""

    study: Study
    seed: int

    @cached_property
    def parts(self) -> Splits:
        return splits(self.study, self.seed)

    @cached_property
    def maker(self) -> Maker:
        return Maker(self.study.backend, self.narrow.joined(self.broad))

    @property
    def narrow(self) -> Fitted:
        """Fitted on the dealt topics alone. The pool is the same for every seed, so it is read once."""
        extra = self.study.once("pool: writer inputs", self.pool_inputs)
        fitted = self.fitted(self.parts.fit)
        return replace(fitted, statistics=replace(fitted.statistics, extra=extra))

    @property
    def broad(self) -> Fitted:
        """What joins every seed's fit; its response tokens are left out, which would fill the memory."""
        make = lambda: self.fitted(self.parts.broad, response_tokens=0)  # noqa: E731
        return self.study.once("broad: fitted", make)

    def fitted(self, classes: tuple[PromptSet, PromptSet], **more: Any) -> Fitted:
        study = self.study
        return fit(study.backend, *classes, batch_size=study.batch_size, watch=study.watch, **more)

    def pool_inputs(self) -> dict[str, Tensor]:
        study = self.study
        size, watch = study.batch_size, study.watch
        return pool_inputs(study.backend, self.parts.pool, batch_size=size, watch=watch)

    @cached_property
    def selection(self) -> Selection:
        size = self.study.batch_size
        maker = self.maker
        return Selection.prepare(
            self.study.backend, maker.fitted, *self.parts.select, make=maker, batch_size=size
        )

    @cached_property
    def bench(self) -> Bench:
        return Bench.prepare(
            self.study.backend,
            *self.parts.report,
            response_tokens=RESPONSE,
            passages=neutral_passages()[:PASSAGES],
            batch_size=self.study.batch_size,
            watch=self.study.watch,
        )

    def kept(self, name: str, make: Any) -> Any:
        return self.study.resumed(
            "frontier", make, name=name, seed=self.seed, prompts=self.parts.hashes
        )

    def chosen(self, name: str) -> Candidate:
        """A contender's setting, chosen on select; the control has that of what it controls."""
        if name == RANDOM:
            return replace(self.chosen(MAIN), name=RANDOM)

        def make() -> dict[str, Any]:
            settings = candidates(name, self.maker.fitted, self.study.backend.anatomy.n_blocks)
            watch = self.study.watch
            return asdict(choose(self.selection, settings, watch=watch, label=name).setting)

        values = self.kept(f"{name}: chosen", make)
        kernels = tuple(tuple(kernel) for kernel in values["kernels"])
        return Candidate(**{**values, "kernels": kernels})

    def base(self) -> Point:
        """The unedited model on report."""

        def make() -> Point:
            row = self.bench.row("original", None, self.study.watch)
            return {
                "refused": row.refusals / row.n_refuse,
                "over_refused": row.over_refusals / row.n_comply,
                "nll": row.nll,
            }

        return self.kept("original", make)

    def points(self, name: str) -> list[Point]:
        """The chosen edit on report, scaled by ``FACTORS`` and whole (last): shares and nats."""
        return self.kept(name, lambda: self._measured(name, self.maker(self.chosen(name))))

    def _measured(self, name: str, delta: WeightDelta) -> list[Point]:
        found = []
        for factor in FACTORS:
            scaled = delta.scale(factor)
            far = self.first_kl(scaled)
            answers = asked(
                self.study.backend,
                self.bench.refuse,
                scaled,
                tokens=RESPONSE,
                batch_size=2 * self.study.batch_size,
            )
            share = answers.count / len(answers.texts)
            found.append({"refused": share, "kl1": far})
        row = self.bench.row(name, delta, self.study.watch)
        whole = {
            "refused": row.refusals / row.n_refuse,
            "over_refused": row.over_refusals / row.n_comply,
            "kl1": row.kl_first,
            "kl32": row.kl_continuation,
            "nll": row.nll,
        }
        return [*found, whole]

    @cached_property
    def _base(self) -> Tensor:
        return self._log_probs(None)

    def first_kl(self, delta: WeightDelta) -> float:
        """First-token KL on the comply prompts of report, in nats."""
        return kl_nats(self._base, self._log_probs(delta)).mean().item()

    def _log_probs(self, delta: WeightDelta | None) -> Tensor:
        comply = encode(self.study.backend.tokenizer, self.parts.report[1].prompts)
        size = self.study.batch_size
        return log_softmax(first_logits(self.study.backend, comply, delta, size), -1)


def runs(study: Study) -> list[dict[str, Any]]:
    """Every seed's base, chosen settings and points, in JSON values."""

    def make() -> list[dict[str, Any]]:
        found = []
        progress = study.watch("frontier: seeds", study.seeds)
        for seed in range(study.seeds):
            run = SeedRun(study, seed)
            found.append(
                {
                    "base": run.base(),
                    "chosen": {name: asdict(run.chosen(name)) for name in MAKERS},
                    "points": {name: run.points(name) for name in MAKERS},
                    "hashes": run.parts.hashes,
                    "n": {"refuse": len(run.parts.report[0]), "comply": len(run.parts.report[1])},
                }
            )
            progress(1)
        return found

    return study.once("frontier: runs", make)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % t interval over seeds; one seed is its own interval."""
    from scipy.stats import t

    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return mean, mean, mean
    se = (sum((v - mean) ** 2 for v in values) / (n - 1) / n) ** 0.5
    reach = float(t.ppf(0.975, n - 1)) * se
    return mean, mean - reach, mean + reach


def whiskers(values: Sequence[float]) -> tuple[float, float, float]:
    """What is drawn: mean, and the interval of :func:`spread` or the ends of what few seeds gave."""
    mean, low, high = spread(values)
    return (mean, low, high) if len(values) >= FEWEST_FOR_T else (mean, min(values), max(values))


def comparisons(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the claims are about: means over seeds and paired differences, with 95 % intervals."""
    last = {name: [run["points"][name][-1] for run in found] for name in MAKERS}
    table = {
        name: {m: list(spread([p[m] for p in points])) for m in MEASURES}
        for name, points in last.items()
    }
    # Whichever ablation costs least at its chosen setting is what ours is compared with.
    ratios = [
        ours["kl1"] / max(min(last[name][k]["kl1"] for name in ABLATIONS), 1e-9)
        for k, ours in enumerate(last[MAIN])
    ]
    beyond = [
        ours["refused"] - min(last[name][k]["refused"] for name in ABLATIONS)
        for k, ours in enumerate(last[MAIN])
    ]
    equal = _at_equal_effect(found)
    share = [
        p["refused"] / max(run["base"]["refused"], 1e-9)
        for p, run in zip(last[RANDOM], found, strict=True)
    ]
    cheapest = min((n for n in MAKERS if n not in (MAIN, RANDOM)), key=lambda n: table[n]["kl1"][0])
    return {
        "table": table,
        "base_refused": list(spread([run["base"]["refused"] for run in found])),
        "kl1_share_of_least_ablation": list(spread(ratios)),
        "refused_beyond_best_ablation": list(spread(beyond)),
        "random_share_left": list(spread(share)),
        "kl1_share_at_equal_effect": list(spread([share or 0.0 for share in equal])),
        "seeds_with_equal_effect": sum(share is not None for share in equal),
        "cheapest_other": cheapest,
        "kl1_of_cheapest_other": table[cheapest]["kl1"][0],
        "kl1_beyond_cheapest_other": table[MAIN]["kl1"][0] - table[cheapest]["kl1"][0],
    }


def _at_equal_effect(found: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """Per seed, our KL as a share of the least of any other edit, scaled or whole, that leaves no more
    refused; None where none does."""
    shares: list[float | None] = []
    for run in found:
        ours = run["points"][MAIN][-1]
        others = [
            p for n, points in run["points"].items() if n not in (MAIN, RANDOM) for p in points
        ]
        costs = [p["kl1"] for p in others if p["refused"] <= ours["refused"]]
        shares.append(ours["kl1"] / max(min(costs), 1e-9) if costs else None)
    return shares


CLAIMS = (
    Claim("of all contenders, the least-disturbance edit has the least first-token KL",
          "at most", "/comparisons/kl1_beyond_cheapest_other", 0.0),
    Claim("at most a third of that of the cheapest ablation, over seeds",
          "at most", "/comparisons/kl1_share_of_least_ablation/0", 1 / 3),
    Claim("and leaves no more than 5 points more requests refused than the best ablation",
          "at most", "/comparisons/refused_beyond_best_ablation/0", 0.05),
    Claim("at equal or greater effect, scaled or whole, any other edit costs at least three times as much",
          "at most", "/comparisons/kl1_share_at_equal_effect/0", 1 / 3),
    Claim("a random direction of equal norm leaves at least four in five",
          "at least", "/comparisons/random_share_left/0", 0.8),
)  # fmt: skip


def frontier(study: Study) -> FigureRecord:
    """Effect against first-token KL of every contender, over seeds of the split."""
    found = runs(study)
    groups = []
    for name in MAKERS:
        kl, refused = (
            [whiskers([run["points"][name][i][m] for run in found]) for i in BY_FACTOR]
            for m in ("kl1", "refused")
        )
        groups.append(
            {
                "label": name,
                "x": [v[0] for v in kl],
                "x_low": [max(v[1], v[0] / 10) for v in kl],
                "x_high": [v[2] for v in kl],
                "y": [100 * v[0] for v in refused],
                "y_low": [max(100 * v[1], 0.0) for v in refused],
                "y_high": [min(100 * v[2], 100.0) for v in refused],
            }
        )
    series = {
        "x": {"label": "first-token KL on answerable requests", "unit": "nats", "scale": "log"},
        "y": {"label": "requests still refused", "unit": "%", "limits": [0, 80]},
        "groups": groups,
        "comparisons": comparisons(found),
        "chosen": [run["chosen"] for run in found],
    }
    return FigureRecord(
        key=f"{KEY}/frontier",
        title="What each edit leaves refused, and what it costs elsewhere",
        kind="scatter",
        series=series,
        claims=CLAIMS,
        provenance=study.provenance(found[0]["hashes"]),
        n=found[0]["n"],
        intervals=(
            "95 % t over seeds"
            if len(found) >= FEWEST_FOR_T
            else f"least and greatest of {len(found)} seeds"
        ),
        seeds=tuple(range(len(found))),
        caption=(
            "Each contender at the setting chosen on other topics, and that edit times 0.6 and 1.3; "
            "down and to the left is better. Topics are dealt anew for every seed."
        ),
    )


BAR = (
    Claim("at most 1 of 64 requests is refused", "at most", "/comparisons/refused", 1 / 64),
    Claim("first-token KL is at most 0.004 nats", "at most", "/comparisons/kl1", 0.004),
    Claim("KL over 32 tokens is at most 0.003 nats a token", "at most", "/comparisons/kl32", 0.003),
    Claim("no contender with as few refusals refuses fewer answerable requests",
          "at most", "/comparisons/over_refused_beyond_best", 0.0),
    Claim("no contender with as few refusals has a lower loss on neutral text",
          "at most", "/comparisons/nll_beyond_best", 0.0),
)  # fmt: skip


def bar(study: Study) -> FigureRecord:
    """The shipped split alone, against the numbers that the least-disturbance edit is meant to reach."""
    run = runs(study)[0]
    last = {name: points[-1] for name, points in run["points"].items()}
    ours = last[MAIN]
    peers = [
        p for n, p in last.items() if n not in (MAIN, RANDOM) and p["refused"] <= ours["refused"]
    ]
    compared = {
        "refused": ours["refused"],
        "kl1": ours["kl1"],
        "kl32": ours["kl32"],
        "peers": len(peers),
        "over_refused_beyond_best": ours["over_refused"]
        - min((p["over_refused"] for p in peers), default=ours["over_refused"]),
        "nll_beyond_best": ours["nll"] - min((p["nll"] for p in peers), default=ours["nll"]),
    }
    base = {**run["base"], "kl1": None, "kl32": None}
    columns = [
        {"label": "refused", "unit": "%", "limits": [0, 100]},
        {"label": "over-refused", "unit": "%", "limits": [0, 100]},
        {"label": "KL₁", "unit": "nats", "scale": "log"},
        {"label": "KL₃₂", "unit": "nats", "scale": "log"},
        {"label": "neutral NLL", "unit": "nats"},
    ]
    rows = [{"label": n, "values": _row(p)} for n, p in {"original": base, **last}.items()]
    return FigureRecord(
        key=f"{KEY}/bar",
        title="All contenders on the shipped report split",
        kind="rows",
        series={"columns": columns, "rows": rows, "comparisons": compared},
        claims=BAR,
        provenance=study.provenance(run["hashes"]),
        n=run["n"],
        seeds=(0,),
        caption="Fitted on fit, chosen on select, measured on report; nothing fitted again.",
    )


def _row(point: Mapping[str, Any]) -> list[float | None]:
    shares = [100 * point["refused"], 100 * point["over_refused"]]
    return [*shares, point["kl1"], point["kl32"], point["nll"]]
