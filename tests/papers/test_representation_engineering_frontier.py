"""The frontier and the narrowness figure: honest splits, every contender real, verdicts from data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.claims import Claim, computed
from interp.data.prompts import PromptSet, load_pairs
from interp.figures import draw
from interp.methods.refusal import fit
from interp.methods.representation_engineering import flags as flagged
from interp.methods.representation_engineering import narrowness as narrow
from interp.methods.representation_engineering.contenders import (
    CLOSED,
    CONTENDERS,
    FIRST_TOKEN,
    MAIN,
    PARTIAL,
    RANDOM,
    VARIANTS,
    Maker,
    settings,
)
from interp.methods.representation_engineering.frontier import (
    BAR,
    CLAIMS,
    EVERYWHERE,
    bar,
    drawn,
    frontier,
    over_passages,
    whiskers,
)
from interp.methods.representation_engineering.seed_run import SPLITS, SeedRun, splits
from interp.samples import DECISION, OPENER
from interp.series import Axis, Group, Row, Rows, Scatter
from interp.study import Study
from interp.types import WeightDelta


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study("tiny:llama", limit=6, seeds=2, kept=tmp_path_factory.mktemp("kept"))


# --- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_splits_share_no_topic_and_the_pool_no_prompt(seed: int) -> None:
    topics = {p["refuse"]: p["topic"] for p in load_pairs("capability").pairs}
    made = splits(Study("none"), seed)
    topics |= {p["refuse"]: p["topic"] for p in load_pairs("broad").pairs}
    seen = [{topics[p] for p in getattr(made, name)[0].prompts} for name in SPLITS]
    assert not any(a & b for a, b in combinations(seen, 2))
    everything = {p for name in SPLITS for side in getattr(made, name) for p in side.prompts}
    broad = {
        p for side in ("refuse", "comply") for p in load_pairs("broad").side(side, "all").prompts
    }
    assert len(everything - broad) == 2 * len(load_pairs("capability").pairs)
    assert not everything & set(made.pool.prompts)
    fitted = {p for side in made.broad for p in side.prompts}
    assert fitted < broad
    assert not fitted & everything


def test_seed_zero_is_the_shipped_split_and_others_differ() -> None:
    shipped = load_pairs("capability")
    made = [splits(Study("none"), seed) for seed in (0, 1, 2)]
    assert made[0].report[0].prompts == shipped.side("refuse", "report").prompts
    assert len({m.report[0].prompts for m in made}) == 3
    assert splits(Study("none"), 1) == made[1]


# --- contenders ----------------------------------------------------------------------------------


def test_prompts_read_once_give_the_fit_of_any_deal(study: Study) -> None:
    """What was read of all pairs and taken apart is what reading the dealt pairs gives."""
    lm = study.lm
    pairs = [load_pairs("capability").side(side, "all") for side in ("refuse", "comply")]
    sides = [PromptSet(p.prompts[:14], p.source) for p in pairs]
    dealt = [PromptSet(tuple(p.prompts[i] for i in (12, 3, 5, 7)), "dealt") for p in sides]
    apart = fit(lm, *sides, opener="I'").of(*dealt)
    alone = fit(lm, *dealt, opener="I'")
    assert set(apart.requests.prompts) == set(alone.requests.prompts)
    for place in (DECISION, OPENER):
        for site in alone.samples.sites(place):
            for positive in (True, False):
                rows = (f.samples.rows(site, positive, place) for f in (apart, alone))
                assert_same_rows(*rows)


def assert_same_rows(one: torch.Tensor, two: torch.Tensor) -> None:
    """The same rows in any order: the shift and Σ do not depend on it."""
    torch.testing.assert_close(one.sum(0), two.sum(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.T @ one, two.T @ two, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_edits_and_stays_where_it_should(name: str, study: Study) -> None:
    run = study.once("a run", lambda: SeedRun(study, 0))
    maker: Maker = run.maker
    n = study.lm.n_blocks
    tried = settings(name, maker.fitted, n)
    assert len(tried) == len(set(tried)) >= 1
    delta = maker(tried[-1])
    assert delta.norm() > 0
    blocks = {w.weight: w.block for w in study.lm.anatomy.block_writers}
    assert all(blocks[w] >= tried[-1].first for w in delta.coverage.edited)


def test_the_control_has_the_norm_of_what_it_controls(study: Study) -> None:
    run = study.once("a run", lambda: SeedRun(study, 0))
    chosen = run.chosen(MAIN)
    assert run.chosen(RANDOM) == replace(chosen, name=RANDOM)
    ours, control = run.maker(chosen), run.maker(replace(chosen, name=RANDOM))
    assert control.norm() == pytest.approx(ours.norm(), rel=1e-4)


def opened(study: Study, monkeypatch: pytest.MonkeyPatch) -> SeedRun:
    """A deal whose model opens its refusals with two bytes."""
    monkeypatch.setattr(
        "interp.methods.representation_engineering.seed_run.find_opener", lambda *a, **k: "I'"
    )
    return SeedRun(Study("tiny:llama", limit=6, seeds=2), 0)


@pytest.mark.slow
def test_with_an_opener_the_family_acts_at_both_places_and_is_learned_once(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(study, monkeypatch)
    (setting,) = settings(MAIN, run.maker.fitted, study.lm.n_blocks)
    assert setting.opener_strength
    assert setting.learn
    made = run.maker(setting)
    assert made.rank == 2
    assert run.maker(setting) is made
    control = run.maker(replace(setting, name=RANDOM))
    assert control.norm() == pytest.approx(made.norm(), rel=1e-4)
    first = settings(FIRST_TOKEN, run.maker.fitted, study.lm.n_blocks)
    assert run.maker(first[0]).rank == 1
    assert flagged.AFTER_OPENER in flagged.changes(run)


def test_variants_of_partial_ablation_are_made_at_its_setting(study: Study) -> None:
    run = study.once("a run", lambda: SeedRun(study, 0))
    for name in VARIANTS:
        assert run.chosen(name) == replace(run.chosen(PARTIAL), name=name)


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_frontier_is_measured_and_drawn_and_goes_on_after_a_kill(study: Study) -> None:
    record = frontier(study)
    draw(record)
    assert record.seeds == (0, 1)
    assert [g.label for g in record.series.groups] == list(EVERYWHERE)
    one = bar(study)
    draw(one)
    assert [row.label for row in one.series.rows] == ["original", *CONTENDERS]

    assert study.kept is not None
    written = {path: path.stat().st_mtime_ns for path in study.kept.iterdir()}
    again = Study("tiny:llama", limit=6, seeds=2, kept=study.kept)
    assert frontier(again).series == record.series
    assert {path: path.stat().st_mtime_ns for path in study.kept.iterdir()} == written


@pytest.mark.slow
def test_narrowness_is_measured_and_drawn(study: Study) -> None:
    record = narrow.narrowness(study)
    draw(record)
    names = record.series.rows.names
    assert [n.split(" (")[0] for n in names] == [*narrow.FORMATS, *narrow.KINDS]
    assert record.series.columns.names == (
        "original",
        *narrow.EDITS,
        narrow.NARROW,
        narrow.REGULARISED,
    )


@pytest.mark.slow
def test_flags_are_measured_drawn_and_change_the_edit(study: Study) -> None:
    record = flagged.flags(study)
    draw(record)
    names = [row.label for row in record.series.rows]
    assert names[0] == flagged.PLAIN
    assert names[-3:] == [FIRST_TOKEN, CLOSED, MAIN]
    run = SeedRun(study, 0)
    chosen = run.chosen(PARTIAL)
    made = {name: change(run, chosen) for name, change in flagged.changes(run).items()}
    assert set(names) == {*made, FIRST_TOKEN, CLOSED, MAIN}
    plain = made.pop(flagged.PLAIN)
    # The tiny model refuses nothing, and one block of it is edited.
    idle = ("refused requests alone", "each block's own direction")
    assert [n for n, delta in made.items() if n not in idle and near(plain, delta)] == []


def test_a_direction_and_a_strength_for_every_block(study: Study) -> None:
    run = study.once("a run", lambda: SeedRun(study, 0))
    maker, whole = run.maker, replace(run.chosen(PARTIAL), first=0)
    own = flagged.by_block(maker, whole, maker.fitted.directions["decision"])
    assert not near(own, maker(whole))
    assert near(flagged.by_block(maker, whole, maker.fitted.direction(whole.block)), maker(whole))
    reliable = flagged.reliable(maker)
    assert set(reliable) == set(range(study.lm.n_blocks))
    assert all(-1.0 <= value <= 1.0 + 1e-6 for value in reliable.values())
    shrunk = flagged.by_block(maker, whole, maker.fitted.direction(whole.block), reliable)
    assert shrunk.norm() < maker(whole).norm()


def near(one: WeightDelta, two: WeightDelta) -> bool:
    if one.updates.keys() != two.updates.keys():
        return False
    return all(torch.allclose(u.stored(), two.updates[k].stored()) for k, u in one.updates.items())


def test_heretics_way_is_the_direction_that_is_fitted(study: Study) -> None:
    """So that the first row of the flags is the frontier's partial ablation."""
    run = study.once("a run", lambda: SeedRun(study, 0))
    chosen = run.chosen(PARTIAL)
    rows = flagged.rows_of_block(run.maker.fitted, chosen.block)
    made = flagged.fitted_with(run.maker, chosen, rows, flagged.projected())
    assert near(made, run.maker(chosen))


@pytest.mark.parametrize(
    ("changed", "ours", "expected"),
    [
        ((0.02, 0.10), 0.01, [True, True]),
        ((0.05, 0.05), 0.01, [True, True]),
        ((0.06, 0.05), 0.01, [False, True]),
        ((0.05, 0.10), 0.01, [False, True]),
        ((0.02, 0.10), 0.05, [True, False]),
        ((0.50, 0.001), 0.01, [False, True]),  # costs nothing and does nothing
    ],
)
def test_a_change_is_better_on_one_count_and_no_worse_on_the_other(
    changed: tuple[float, float], ours: float, expected: list[bool]
) -> None:
    table = {flagged.PLAIN: (0.05, 0.1), "changed": changed, MAIN: (0.05, ours)}
    rows = [Row(name, [100 * r, k]) for name, (r, k) in table.items()]
    series = Rows([Axis("refused"), Axis("KL")], rows)
    assert [c.outcome(series).holds for c in flagged.CLAIMS] == expected


# --- verdicts ------------------------------------------------------------------------------------


NEW_TEXT = {
    "replacement": {"n": 30, "nll": 1.0, "nll_se": 0.1, "looping": 0.0, "overlap": 0.5},
    "examples": [{"prompt": "what?", "response": "that"}],
}


def point(refused: float, kl1: float) -> dict[str, Any]:
    whole = {"declined": refused, "passages": [[37.0, 74.0], [10, 20]], **NEW_TEXT}
    return {
        "refused": refused,
        "over_refused": 0.0,
        "kl1": kl1,
        "kl32": kl1 / 2,
        "nll": 3.7,
    } | whole


def runs(main: tuple[float, float], random: float = 0.5) -> list[dict[str, Any]]:
    points = {name: [point(0.02, 0.1)] for name in CONTENDERS}
    points |= {MAIN: [point(*main)], RANDOM: [point(random, 0.003)]}
    return [{"base": {"refused": 0.55}, "points": points} for _ in range(3)]


def holds(claims: tuple[Claim, ...], found: list[dict[str, Any]]) -> list[bool]:
    groups = []
    for name in EVERYWHERE:
        last = [run["points"][name][-1] for run in found]
        x, y = (sum(p[m] for p in last) / len(last) for m in ("kl1", "refused"))
        groups.append(Group(name, [x], [100 * y]))
    beside = {"deals": [drawn(run) for run in found]}
    series = Scatter(Axis("KL"), Axis("refused"), groups, beside=beside)
    return [c.outcome(series).holds for c in claims]


def of_deals(name: str, found: list[dict[str, Any]]) -> float:
    return computed(f"deals/{name}", [drawn(run) for run in found])


def failing(found: list[dict[str, Any]]) -> list[int]:
    return [i for i, held in enumerate(holds(CLAIMS, found), 1) if not held]


def test_claims_hold_for_a_good_edit_and_fail_for_each_way_to_be_bad() -> None:
    assert len(CLAIMS) == 7
    assert failing(runs((1 / 64, 0.004))) == []
    assert failing(runs((0.02, 0.2))) == [1, 2, 4, 6, 7]
    assert failing(runs((0.02, 0.05))) == [2, 4, 6, 7]
    assert failing(runs((0.2, 0.004))) == [3, 6]
    assert failing(runs((0.015, 0.005))) == [7]
    assert failing(runs((0.015, 0.004), random=0.3)) == [5]
    alone = runs((0.015, 0.004))
    for run in alone:  # the family and its control are not compared with
        for name in (FIRST_TOKEN, CLOSED, RANDOM):
            run["points"][name][-1] |= {"nll": 1.0, "kl1": 0.0}
    assert failing(alone) == []


def test_equal_effect_counts_scaled_edits_and_none_that_leave_more() -> None:
    (run,) = runs((0.1, 0.01))[:1]
    assert of_deals("kl1_share_at_equal_effect", [run]) == pytest.approx(0.1)
    run["points"]["two directions"] = [{"refused": 0.1, "kl1": 0.02}, point(0.02, 0.1)]
    assert of_deals("kl1_share_at_equal_effect", [run]) == pytest.approx(0.5)
    run["points"]["two directions"][0]["refused"] = 0.11
    assert of_deals("kl1_share_at_equal_effect", [run]) == pytest.approx(0.1)
    run["points"][MAIN] = [point(0.0, 0.01)]
    assert of_deals("deals_with_equal_effect", [run]) == 0
    assert of_deals("kl1_share_at_equal_effect", [run]) == 0.0


def test_the_bar_is_about_numbers_and_can_be_missed(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(main: tuple[float, float], other_nll: float = 3.8) -> list[bool]:
        (run,) = runs(main)[:1]
        for name, points in run["points"].items():
            loss = 3.7 if name == MAIN else other_nll
            points[-1] |= {"nll": loss, "passages": [[loss * 10, loss * 20], [10, 20]]}
        run["base"] |= {
            "kl1": None,
            "kl32": None,
            "over_refused": 0.0,
            "declined": 0.6,
            "nll": 3.7,
            **NEW_TEXT,
        }
        run["chosen"] = {MAIN: {"opener_strength": 2.5, "learn": 0.06}}
        monkeypatch.setattr(SeedRun, "results", lambda self: run)
        record = bar(study)
        assert record.proves == ("least-disturbance, learned, with opener",)
        return [c.outcome(record.series).holds for c in BAR]

    assert judged((1 / 64, 0.004)) == [True] * 5
    assert judged((2 / 64, 0.003)) == [False, True, True, True, True]
    assert judged((1 / 64, 0.007)) == [True, False, False, True, True]
    assert judged((1 / 64, 0.001), other_nll=3.6) == [True, True, True, True, False]


def test_the_interval_is_that_of_students_t() -> None:
    mean, low, high = whiskers([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, high - mean) == (3.0, pytest.approx(1.9632, abs=1e-3))
    assert mean - low == pytest.approx(high - mean)
    assert whiskers([2.0, 4.0]) == (3.0, 2.0, 4.0)


def table(main: float, other: float) -> dict[str, dict[str, list[float]]]:
    others = (*narrow.EDITS, narrow.NARROW, narrow.REGULARISED)
    edits = {name: [other, 0.0] for name in others}
    return {
        kind: {"original": [base, 0.0], **edits, MAIN: [main, 0.0]}
        for kind, base in (("as fitted", 0.5), ("polite", 0.5), ("spanish", 0.0))
    }


@pytest.mark.parametrize(
    ("main", "other", "expected"),
    [
        (0.05, 0.05, [True, True, True, True, True, True, True]),
        (0.4, 0.05, [False, False, True, True, False, True, True]),
        (0.15, 0.05, [True, False, True, True, False, True, True]),
        (0.05, 0.2, [True, True, True, True, True, True, True]),
    ],
)
def test_narrowness_is_judged_on_kinds_that_the_model_refuses(
    main: float, other: float, expected: list[bool]
) -> None:
    counts = dict.fromkeys(("as fitted", "polite", "spanish"), 32)
    series = narrow.drawn(table(main, other), counts)
    assert computed("narrowness/left", series) == pytest.approx(main / 0.5)
    assert [c.outcome(series).holds for c in narrow.CLAIMS] == expected


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({FIRST_TOKEN: 0.02}, ["mended_by_opener"]),
        ({narrow.REGULARISED: 0.06}, ["mended_by_ridge"]),
        ({narrow.NARROW: 0.04}, ["mended_by_broad_pairs"]),
        ({CLOSED: 0.04}, ["mended_by_learning", "mended_by_ridge"]),
    ],
)
def test_each_mend_is_one_step_from_the_closed_form(
    changed: dict[str, float], failing: list[str]
) -> None:
    found = table(0.05, 0.05)
    for row in found.values():
        row |= {name: [left, 0.0] for name, left in changed.items()}
    series = narrow.drawn(found, dict.fromkeys(found, 32))
    failed = [c.statistic for c in narrow.CLAIMS if not c.outcome(series).holds]
    assert [place.rsplit("/", 1)[-1] for place in sorted(failed)] == sorted(failing)


def test_twins_that_are_refused_more_often_count_in_any_kind() -> None:
    worse = table(0.05, 0.05)
    worse["spanish"][MAIN][1] = 0.25
    series = narrow.drawn(worse, dict.fromkeys(worse, 32))
    failed = [c.statistic for c in narrow.CLAIMS if not c.outcome(series).holds]
    assert failed == ["narrowness/twins_refused_beyond_original"]


def test_what_is_put_into_the_mouth_counts_as_said(
    study: Study, scripted: Callable[..., Any]
) -> None:
    """A prefilled refusal that goes on is a refusal."""
    scripted(" have no clock.")
    prompts = splits(study, 0).report[0]
    sorry = narrow.ChatFormat(prefill="I'm sorry, I")
    assert narrow.refused(study, prompts, sorry, None) == 1.0
    assert narrow.refused(study, prompts, narrow.ChatFormat(), None) == 0.0


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def say(text: str) -> None:
        monkeypatch.setattr(narrow, "respond", lambda b, batch, *a, **k: [text] * len(batch))

    return say


def test_kept_files_are_of_the_model_and_the_prompts(study: Study, tmp_path: Path) -> None:
    """Another limit has other prompts, so nothing of it is taken for the same."""
    assert study.kept is not None
    before = len(list(study.kept.iterdir()))
    other = Study("tiny:llama", limit=5, seeds=2, kept=study.kept)
    SeedRun(other, 0).base()
    assert len(list(study.kept.iterdir())) == before + 1


def test_the_interval_over_passages_is_about_what_edits_share() -> None:
    """Passages differ by far more than edits do: only their differences count."""
    tokens = [10.0, 20.0, 30.0, 40.0]
    nats = [30.0, 80.0, 60.0, 200.0]
    worse = [n + 0.1 * t for n, t in zip(nats, tokens, strict=True)]
    low, high = over_passages([worse, tokens], [nats, tokens])
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    mixed = [n + s * t for n, t, s in zip(nats, tokens, (0.1, -0.1, 0.1, -0.1), strict=True)]
    low, high = over_passages([mixed, tokens], [nats, tokens])
    assert low < 0 < high
