"""Truncation: the best approximation of its rank, with the error that it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import DeltaError
from interp.export import export, load_delta
from interp.export.truncation import truncated
from interp.types import Coverage, LowRank, Shift, WeightDelta

pytestmark = pytest.mark.usefixtures("in_process")


def delta_of(**updates) -> WeightDelta:
    return WeightDelta(updates, "unverified", {"method": "any"}, "any", Coverage((), {}))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([0, 3]),
)
def test_it_is_the_truncated_svd_of_the_product(d_out, d_in, have, keep, experts) -> None:
    generator = torch.Generator().manual_seed(d_out + 10 * d_in + 100 * have)
    lead = (experts,) if experts else ()
    axes = "expert out in" if experts else "out in"
    update = LowRank(
        torch.randn(*lead, d_out, have, generator=generator),
        torch.randn(*lead, have, d_in, generator=generator),
        axes,
    )
    made, report = truncated(delta_of(w=update), keep)
    kept = made.updates["w"]
    whole = update.dense().double()
    values = torch.linalg.svdvals(whole)
    left = values[..., keep:].square().sum().sqrt().item()
    error = (whole - kept.dense().double()).norm().item()
    assert error == pytest.approx(left, abs=1e-5 * whole.norm().item())
    assert report.relative * whole.norm().item() == pytest.approx(
        left, abs=1e-5 * whole.norm().item()
    )
    assert kept.rank <= max(keep, 1)
    if have > keep and values.shape[-1] > keep:
        largest = torch.linalg.matrix_norm(whole - kept.dense().double(), 2).max().item()
        assert report.spectral == pytest.approx(largest, abs=1e-5 * whole.norm().item())
    if have <= keep:
        assert kept is update
        assert report.cut == 0


def test_the_error_is_printed_and_stored(saved, tmp_path) -> None:
    base = saved("llama")
    thick = base.ablated(seed=1).compose(base.ablated(seed=2)).compose(base.ablated(seed=3))
    made, report = truncated(thick, 2)
    assert made.rank == 2
    assert 0 < report.relative <= report.worst < 1
    assert f"{report.relative:.2%}" in str(report)
    export(made, to="delta", **base.base, out=tmp_path / "delta")
    back = load_delta(tmp_path / "delta")
    assert back.recipe["truncation"]["relative"] == report.relative
    assert str(report) in back.exactness
    same, none = truncated(thick, 3)
    assert same is thick
    assert none.cut == 0


def test_biases_stay_and_ranks_below_one_are_refused() -> None:
    shift = Shift(torch.ones(3))
    update = LowRank(torch.eye(3), torch.eye(3))
    made, _ = truncated(delta_of(b=shift, w=update), 1)
    assert made.updates["b"] is shift
    assert made.updates["w"].rank == 1
    with pytest.raises(DeltaError, match="at least rank 1"):
        truncated(delta_of(w=update), 0)
    zero = replace(update, b=torch.zeros(3, 3))
    assert truncated(delta_of(w=zero), 1)[1].relative == 0.0
