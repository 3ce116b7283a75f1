"""Reading, planted and tone figures: they draw, and their verdicts follow the data, good or bad."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp.claims import computed
from interp.data.tone import load_tone
from interp.figures import draw
from interp.methods.representation_engineering import (
    planted,
    reading,
    tone,
)
from interp.records import FigureRecord, Provenance, outcomes
from interp.series import Axis, Line, Lines, Places
from interp.study import Study

D, ROWS = 24, 40


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(model="tiny:llama", limit=6, seeds=2)


def check(record: FigureRecord, name: str) -> None:
    assert record.key == f"representation_engineering/{name}"
    assert len(outcomes(record)) == len(record.claims) > 0
    assert record.paper_figure is None
    draw(record)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("reading", reading.reading),
        ("cosines", reading.cosines_by_block),
        ("stability", reading.stability),
        ("separation", reading.separation),
        ("projection", reading.projection),
        ("tone", tone.tone),
    ],
)
def test_figures_of_a_model_draw(study: Study, name: str, make) -> None:
    record = make(study)
    check(record, name)
    assert record.provenance.model == "tiny:llama"
    assert record.provenance.fingerprint == study.fingerprint
    assert record.provenance.prompts


def test_streams_are_captured_once(study: Study) -> None:
    first = reading.streams(study, "fit")
    assert reading.streams(study, "fit") is first
    blocks, rows, width = first["refuse"].shape
    anatomy = study.lm.anatomy
    assert (blocks, rows, width) == (anatomy.n_blocks, 6, anatomy.d_model)


# --- reading -----------------------------------------------------------------------------------


def planted_streams(shift: float, seed: int) -> reading.Streams:
    """Five layers of two Gaussian classes, ``shift`` apart along the first coordinate."""
    generator = torch.Generator().manual_seed(seed)
    pos, neg = (torch.randn(5, ROWS, D, generator=generator) for _ in range(2))
    pos[..., 0] += shift
    return {"refuse": pos, "comply": neg}


def judged(claims: Any, lines: list[Line]) -> dict[str, bool]:
    """Statistic → whether the claim about it holds, for these lines."""
    record = FigureRecord(
        key="representation_engineering/test",
        title="test",
        series=Lines(Places("block", values=range(len(lines[0].values))), Axis("y"), lines),
        provenance=Provenance(model="planted data"),
        claims=claims,
    )
    return {o.claim.statistic.split("/")[-1]: o.holds for o in outcomes(record)}


def test_separated_classes_are_read_and_shuffled_ones_are_not() -> None:
    fit, report = planted_streams(4.0, 0), planted_streams(4.0, 1)
    claims = reading.READING_CLAIMS
    assert judged(claims, reading.reading_lines(fit, report))["difference_of_means_least"]
    order = torch.randperm(2 * ROWS, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([fit["refuse"], fit["comply"]], 1)[:, order]
    shuffled = {"refuse": rows[:, :ROWS], "comply": rows[:, ROWS:]}
    verdicts = judged(claims, reading.reading_lines(shuffled, report))
    assert not verdicts["difference_of_means_least"]


def test_pairs_that_share_a_nuisance_leave_centred_pca_behind() -> None:
    fit, report = planted_streams(4.0, 0), planted_streams(4.0, 1)
    verdicts = judged(reading.READING_CLAIMS, reading.reading_lines(fit, report))
    assert verdicts["centred_pca_mean_shortfall"]


# --- planted -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planted", "planted_nuisance"])
def test_planted_figures_are_reproduced(name: str) -> None:
    record = getattr(planted, name)(Study())
    check(record, name)
    assert record.verdict == "shape reproduced"
    assert record.provenance.model == "planted data"


def test_the_closed_form_at_64_rows() -> None:
    assert planted.predicted_cosine(3.0, 128, 64, 64) == pytest.approx(0.832, abs=5e-4)


def test_planted_data_are_as_said() -> None:
    pos, neg, truth = planted.plant(5.0, 4000, 2, nuisance=4.0, d=8)
    gap = pos.mean(1) - neg.mean(1)
    assert (gap * truth).sum(-1).tolist() == pytest.approx([5, 5], abs=0.15)
    largest = torch.linalg.eigvalsh(
        torch.stack([torch.cov((p - q).T) for p, q in zip(pos, neg, strict=True)])
    )
    assert largest[:, -1].sqrt().tolist() == pytest.approx([planted.threshold(4.0)] * 2, rel=0.05)
    assert largest[:, 0].sqrt().tolist() == pytest.approx([planted.threshold(1.0)] * 2, rel=0.1)


def test_an_estimator_that_fails_gives_a_bad_verdict() -> None:
    failing = dict.fromkeys(planted.ISOTROPIC, "pca-diff")
    lines = planted.isotropic_lines(3, failing)
    assert not judged(planted.PLANTED_CLAIMS, lines)["means_off_prediction"]


# --- tone --------------------------------------------------------------------------------------


def line(label: str, slope: float) -> Line:
    values = [slope * alpha for alpha in tone.STRENGTHS]
    return Line(label, values, values, values)


def test_statistics_of_known_slopes() -> None:
    slopes = {10: -0.2, 14: -0.7, 18: 0.5, 22: 2.0, 26: 2.4}
    lines = [line(f"block {block}", slope) for block, slope in slopes.items()]
    series = Lines(
        Places("α", values=tone.STRENGTHS),
        Axis("change"),
        [line(tone.RANDOM, -0.3), *lines],
        beside={
            "late": ["block 22", "block 26"],
            "early": ["block 10", "block 14"],
            "random_size": 0.3,
        },
    )
    assert computed("tone/late_least_move", series) == pytest.approx(2.0)
    assert computed("tone/early_greatest_move", series) == pytest.approx(-0.2)
    assert computed("tone/random_share", series) == pytest.approx(0.15)


def test_relative_depth() -> None:
    assert [tone.at_depth(b, 30) for b in tone.SWEEP] == list(tone.SWEEP)
    assert [tone.at_depth(b, 60) for b in tone.LATE] == [44, 52]
    assert tone.at_depth(26, 2) == 1


def test_the_tone_is_that_of_the_next_word(study: Study) -> None:
    """A shift along the unembedding of the positive words, at the last block, raises their tone."""
    lm, material = study.lm, load_tone()
    words = material.tokens(lm.tokenizer)
    assert not set(words["positive"]) & set(words["negative"])
    head = lm.hf.get_submodule(lm.anatomy.unembed).weight.detach().float()
    positive, negative = (head[list(words[side])].mean(0) for side in ("positive", "negative"))
    shift = positive - negative
    contexts = tone.continuing(lm, material.contexts[:2])
    last = lm.n_blocks - 1
    moved = tone.steered(lm, contexts, last, 20 * shift / shift.norm(), words)
    assert moved[tone.STRENGTHS.index(0.0)].abs().max() == 0
    assert (moved[-1] > 0).all()
    assert (moved[0] < 0).all()


def test_openings_end_the_prompts_and_contexts_are_new(study: Study) -> None:
    material, lm = load_tone(), study.lm
    assert not set(material.stems) & set(material.contexts)
    batch = tone.continuing(lm, material.stems[:3], material.personas["positive"])
    for row, stem in zip(batch.ids, material.stems, strict=False):
        text = lm.tokenizer.decode(row)
        assert text.endswith(stem)
        assert material.personas["positive"] in text


def test_a_random_shift_is_as_long_and_repeats() -> None:
    shift = torch.full((16,), 3.0)
    drawn = tone.random_shifts(shift)
    assert drawn.norm(dim=-1).tolist() == pytest.approx([12.0] * tone.RANDOM_DRAWS, rel=1e-5)
    assert drawn.equal(tone.random_shifts(shift))


# --- separation --------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "holds"), [(4.0, [True, True]), (0.0, [False, True])])
def test_separation_is_judged_by_d_prime_and_clusters(
    monkeypatch: pytest.MonkeyPatch, study: Study, shift: float, holds: list[bool]
) -> None:
    made = {"fit": planted_streams(shift, 0), "report": planted_streams(shift, 1)}
    monkeypatch.setattr(reading, "streams", lambda study, split: made[split])
    record = reading.separation(study)
    found = [o.holds for o in outcomes(record)]
    assert [found[0], found[2]] == holds
    beside = record.series.beside
    assert len(beside["residual_geometry"]) == len(beside["silhouette"]) == 5
    line = record.series.lines[0]
    assert all(a < v < b for a, v, b in zip(line.low, line.values, line.high, strict=True))


def test_the_plane_shows_the_shift_on_its_first_axis(
    monkeypatch: pytest.MonkeyPatch, study: Study
) -> None:
    monkeypatch.setattr(reading, "streams", lambda study, split: planted_streams(4.0, 1))
    record = reading.projection(study)
    assert [o.holds for o in outcomes(record)] == [True, True]
    (pos, neg) = record.series.groups
    assert min(pos.x) > max(neg.x) - 4.0
    assert sum(pos.x) / ROWS == pytest.approx(-sum(neg.x) / ROWS, rel=1e-6)


def test_no_spread_is_no_d_prime() -> None:
    assert reading.known(torch.tensor([1.0, float("nan"), float("inf")])) == [1.0, None, None]
