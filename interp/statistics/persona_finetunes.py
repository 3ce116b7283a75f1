"""Statistics of the figures of finetunes of the persona-vector module, and the labels they go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from interp.claims import statistics
from interp.series import Histogram, Lines, Scatter, SmallMultiples
from interp.series.scatter import Correlation, correlation

BEFORE, AFTER = "while training", "after training"
"""Lines of preventative and of post-hoc steering."""
EVERYWHERE, RANDOM = "while training, all blocks", "random vectors while training"
PLAIN, BASE = "plain finetune", "base model"
STEERED, CAFT, PENALTY = "steered while training", "CAFT", "penalty in the loss"
SCORE, NLL = "score", "NLL of neutral text"


Columns = Mapping[str, Sequence[float | None]]
"""By trait, a value for each finetune."""


def panel(trait: str, measure: str) -> str:
    """Title of the panel of one measure of one trait."""
    return f"{trait}: {measure}"


def related(x: Sequence[float | None], y: Sequence[float | None]) -> Correlation | None:
    """The correlation of two columns where both are known; None where one of them does not vary."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    varies = len(pairs) > 2 and all(len(set(column)) > 1 for column in zip(*pairs, strict=True))
    return correlation(pairs) if varies else None


def _r(x: Sequence[float | None], y: Sequence[float | None]) -> float:
    """Pearson's r; 0 where it does not exist."""
    found = related(x, y)
    return 0.0 if found is None else found.r


def _least_r(predicted: Columns, change: Columns) -> float:
    """Least r over traits."""
    return min(_r(predicted[trait], change[trait]) for trait in change)


def _least_low(predicted: Columns, change: Columns) -> float:
    """Least lower end of Fisher's interval over traits; −1 where there is none."""
    found = (related(predicted[trait], change[trait]) for trait in change)
    return min(-1.0 if each is None or each.low is None else each.low for each in found)


@statistics("finetunes")
def finetunes(series: SmallMultiples) -> dict[str, float]:
    """Correlations over finetunes, one for each trait (``x`` and ``y`` beside the panels).

    least_r, mean_r, least_r_low: over traits; the last is of the lower ends of Fisher's intervals. cross_r:
    mean of the correlations of one trait's x with another's y. own_beyond_cross: mean_r less cross_r.
    """
    x, y = series.beside["x"], series.beside["y"]
    own = [related(x[trait], y[trait]) for trait in x]
    mean = fmean(_r(x[trait], y[trait]) for trait in x)
    cross = fmean([_r(x[a], y[b]) for a in x for b in y if a != b] or [0.0])
    lows = [each.low if each is not None and each.low is not None else -1.0 for each in own]
    return {
        "least_r": min(_r(x[trait], y[trait]) for trait in x),
        "mean_r": mean,
        "least_r_low": min(lows),
        "cross_r": cross,
        "own_beyond_cross": mean - cross,
    }


@statistics("question_sets")
def question_sets(series: SmallMultiples) -> dict[str, float]:
    """Least r by trait at other questions, and how far the traits' own questions are ahead on average."""
    x, own, y = (series.beside[name] for name in ("x", "own_x", "y"))
    other = [_r(x[trait], y[trait]) for trait in x]
    return {
        "least_r": min(other),
        "own_beyond_other": fmean(_r(own[trait], y[trait]) for trait in x) - fmean(other),
    }


@statistics("samples")
def samples(series: SmallMultiples) -> dict[str, float]:
    """AUROC of projections of styled answers against the base model's own, least over traits.

    whole, half: of level II and of level I.
    """
    found = {level: [] for level in ("II", "I")}
    for panels in series.panels:
        assert isinstance(panels.series, Histogram)
        values = panels.series.beside["values"]
        for level in found:
            found[level].append(auroc(values[level], values["Normal"]))
    return {"whole": min(found["II"]), "half": min(found["I"])}


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Share of pairs in which the positive value is greater; ties count half."""
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return fmean(pairs)


@statistics("prevention")
def prevention(series: SmallMultiples) -> dict[str, float]:
    """What steering removes of the score that a finetune adds, and what it costs on neutral text.

    before, after, everywhere: least over traits of the share removed at α = 1 while training, after it, and
    with increments at all blocks while training. random: greatest over traits of the mean share that random
    vectors remove. cost_saved: least over traits of the NLL at the greatest α after training less that at the
    greatest α while training.
    """
    lines = {each.title: each.series for each in series.panels}
    traits: Mapping[str, Mapping[str, float]] = series.beside["traits"]
    shares: dict[str, list[float]] = {name: [] for name in (BEFORE, AFTER, EVERYWHERE, RANDOM)}
    saved = []
    for trait, scores in traits.items():
        plot, cost = lines[panel(trait, SCORE)], lines[panel(trait, NLL)]
        assert isinstance(plot, Lines)
        assert isinstance(cost, Lines)
        added = scores[PLAIN] - scores[BASE]
        for name, found in shares.items():
            found.append(_share(scores[PLAIN] - _at(plot, name, 1.0), added))
        last = plot.x.values[-1]
        saved.append(_at(cost, AFTER, last) - _at(cost, BEFORE, last))
    return {
        "before": min(shares[BEFORE]),
        "after": min(shares[AFTER]),
        "everywhere": min(shares[EVERYWHERE]),
        "random": max(shares[RANDOM]),
        "cost_saved": min(saved),
    }


def _share(part: float, whole: float) -> float:
    """Part of a whole; 0 of nothing."""
    return part / whole if whole else 0.0


def _at(series: Lines, label: str, place: float) -> float:
    """The value of a line at one place."""
    line = next(line for line in series.lines if line.label == label)
    value = line.values[(line.x or series.x.values).index(place)]
    assert value is not None
    return value


@statistics("training_controls")
def training_controls(series: SmallMultiples) -> dict[str, float]:
    """Shares of what a plain finetune adds, least or greatest over traits.

    steered_score, caft_score: greatest share of the added score that is left. penalty_kept: least share of it
    that the penalty leaves. penalty_projection: greatest share of the added projection that it leaves.
    """
    left: dict[str, list[tuple[float, float]]] = {name: [] for name in (STEERED, CAFT, PENALTY)}
    for each in series.panels:
        assert isinstance(each.series, Scatter)
        points = {group.label: group.points[0] for group in each.series.groups}
        base, plain = points[BASE], points[PLAIN]
        for name, found in left.items():
            x, y = (_share(points[name][k] - base[k], plain[k] - base[k]) for k in (0, 1))
            found.append((x, y))
    return {
        "steered_score": max(y for _, y in left[STEERED]),
        "caft_score": max(y for _, y in left[CAFT]),
        "penalty_kept": min(y for _, y in left[PENALTY]),
        "penalty_projection": max(x for x, _ in left[PENALTY]),
    }


@statistics("audit")
def audit(series: SmallMultiples) -> dict[str, float]:
    """How a shift that was predicted from weights goes with the measured change of a trait's score.

    Beside the panels lie ``shift``, ``response``, ``weights`` and ``change`` by trait, a value for each
    finetune; ``clear``, whether a change is beyond both intervals; ``random``, the shift along each random
    direction; and ``styles``, the trait of a finetune's data.

    least_r, least_r_low: over traits; the second of the lower ends of Fisher's intervals. response_least_r,
    weights_least_r: of the other predictions. sign: share of clear changes whose sign is predicted. clear:
    their number. named: share of finetunes whose greatest shift is along the trait of their data.
    beyond_random: least over traits of the share of random directions with a smaller |r|.
    """
    about = series.beside
    shift, change, styles = about["shift"], about["change"], about["styles"]
    signs = [
        (a > 0) == (b > 0)
        for trait in shift
        for a, b, clear in zip(shift[trait], change[trait], about["clear"][trait], strict=True)
        if clear
    ]
    named = [
        max(shift, key=lambda trait: shift[trait][i]) == style
        for i, style in enumerate(styles)
        if style
    ]
    beyond = [
        fmean(
            abs(_r(random, change[trait])) < _r(shift[trait], change[trait])
            for random in about["random"]
        )
        for trait in shift
    ]
    return {
        "least_r": _least_r(shift, change),
        "least_r_low": _least_low(shift, change),
        "response_least_r": _least_r(about["response"], change),
        "weights_least_r": _least_r(about["weights"], change),
        "sign": fmean(signs) if signs else 0.0,
        "clear": len(signs),
        "named": fmean(named) if named else 0.0,
        "beyond_random": min(beyond),
    }
