"""Attribution sums to the model's own logit difference, and finds what was planted."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp.attribution.direct import (
    Attribution,
    Openers,
    attribute,
    attribution_record,
    class_contrast,
    logit_lens,
)
from interp.attribution.readout import bind_readout
from interp.backends import Backend
from interp.backends.hooks import HooksBackend
from interp.backends.opening import wrap
from interp.edits import ablation, canonical
from interp.errors import InterpError, PromptError
from interp.figures import draw
from interp.maths import unit
from interp.methods.refusal.attributing import phrase_openers
from interp.models import tiny_model
from interp.records import Claim, FigureRecord, Provenance
from interp.sites import Site
from interp.types import Direction, TokenBatch

OPENERS = Openers((5, 9, 11), (7, 20))
ROUND_OFF = 1e-4


def prompts(n: int = 6, seed: int = 0) -> TokenBatch:
    """Left-padded prompts of different lengths, longer than every tiny sliding window."""
    ids = torch.randint(3, 97, (n, 17), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, :5], mask[n // 2, :3] = 0, 0
    return TokenBatch(ids, mask)


def true_margin(backend: Backend, batch: TokenBatch, openers: Openers = OPENERS) -> Tensor:
    """The margin from the model's logits alone, with a soft cap taken back."""
    logits = backend.logits(batch).double()
    if cap := backend.anatomy.logit_cap:
        logits = cap * torch.atanh(logits / cap)
    refuse, comply = list(openers.positive), list(openers.negative)
    return logits[:, refuse].mean(1) - logits[:, comply].mean(1)


# --- the identity ------------------------------------------------------------------------------


def test_contributions_sum_to_the_models_own_logit_difference(tiny: nn.Module) -> None:
    backend, batch = wrap(tiny), prompts()
    found = attribute(backend, batch, OPENERS, batch_size=4)
    total = found.contributions.sum(1) + found.constant
    assert found.contributions.dtype == torch.float64
    assert found.contributions.shape == (6, 1 + len(backend.anatomy.components))
    assert (total - true_margin(backend, batch)).abs().max() < ROUND_OFF
    assert found.residual.abs().max() < ROUND_OFF
    torch.testing.assert_close(found.residual, found.measured - total, atol=1e-12, rtol=0)


def test_the_lens_at_the_last_block_is_the_true_margin(tiny: nn.Module) -> None:
    backend, batch = wrap(tiny), prompts()
    lens = logit_lens(backend, batch, OPENERS, batch_size=4)
    assert lens.shape == (6, 1 + backend.anatomy.n_blocks)
    assert (lens[:, -1] - true_margin(backend, batch)).abs().max() < ROUND_OFF
    assert (lens[:, 0] - lens[:, -1]).abs().max() > ROUND_OFF
    torch.testing.assert_close(attribute(backend, batch, OPENERS, batch_size=4).lens, lens)


def test_a_component_left_out_shows_in_the_residual(tiny: nn.Module) -> None:
    anatomy = wrap(tiny).anatomy
    for left_out in (0, len(anatomy.components) - 1):
        fewer = [c for i, c in enumerate(anatomy.components) if i != left_out]
        backend = HooksBackend(tiny, None, replace(anatomy, components=tuple(fewer)), "")
        found = attribute(backend, prompts(), OPENERS)
        assert found.residual.abs().max() > 10 * ROUND_OFF


def test_sums_survive_grouping_and_running(tiny: nn.Module) -> None:
    found = attribute(wrap(tiny), prompts(), OPENERS)
    grouped = found.by_block()
    assert len(set(grouped.labels)) == len(grouped.labels)
    torch.testing.assert_close(grouped.contributions.sum(1), found.contributions.sum(1))
    torch.testing.assert_close(grouped.residual, found.residual, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.running()[:, -1] + found.residual, found.measured)
    torch.testing.assert_close(found.running(), grouped.running())


def test_two_writers_of_one_kind_in_one_block_are_one_bar() -> None:
    found = Attribution(
        torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]]).double(),
        labels=("embed", "a", "b", "c", "d"),
        blocks=(-1, 0, 0, 0, 1),
        kinds=("embedding", "ssm", "mlp", "ssm", "ssm"),
        measured=torch.tensor([31.5]).double(),
        lens=torch.zeros(1, 3).double(),
        constant=0.5,
        openers=OPENERS,
        n_blocks=2,
    )
    grouped = found.by_block()
    assert grouped.labels == ("embed", "0.ssm", "0.mlp", "1.ssm")
    assert grouped.contributions.tolist() == [[1.0, 10.0, 4.0, 16.0]]
    assert found.running().tolist() == [[1.5, 15.5, 31.5]]
    assert found.residual.tolist() == [0.0]


def test_contributions_do_not_depend_on_batching_or_padding() -> None:
    backend, batch = wrap(tiny_model("qwen3_moe")), prompts()
    one = attribute(backend, batch, OPENERS, batch_size=6)
    parts = attribute(backend, [batch.rows(0, 2), batch.rows(2, 6)], OPENERS, batch_size=1)
    torch.testing.assert_close(one.contributions, parts.contributions, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.measured, parts.measured, atol=1e-5, rtol=0)


def test_one_forward_pass_a_batch_and_two_for_the_check() -> None:
    backend = wrap(tiny_model("gpt2"))
    calls = []
    handle = backend.model.register_forward_pre_hook(lambda *_: calls.append(1))
    attribute(backend, prompts(6), OPENERS, batch_size=2)
    handle.remove()
    assert len(calls) == 3 + 2


@pytest.mark.parametrize("other", ["nnsight", "transformer_lens"])
def test_backends_agree(other: str) -> None:
    model = tiny_model("llama")
    ours = attribute(wrap(model), prompts(), OPENERS)
    theirs = attribute(wrap(model, backend=other), prompts(), OPENERS)
    torch.testing.assert_close(ours.contributions, theirs.contributions, atol=1e-5, rtol=0)
    assert theirs.residual.abs().max() < ROUND_OFF


def test_an_edited_model_is_attributed_as_edited() -> None:
    backend, batch = wrap(tiny_model("llama")), prompts()
    direction = Direction(unit(bind_readout(backend, OPENERS).direction.float()), 1, "test")
    edit = ablation(backend.model, backend.anatomy, direction, embeddings=True)
    with backend.editing(edit):
        edited = attribute(backend, batch, OPENERS)
    assert edited.residual.abs().max() < ROUND_OFF
    assert edited.contributions.abs().max() < ROUND_OFF, "nothing is written along the margin"
    assert attribute(backend, batch, OPENERS).contributions.abs().max() > 0.01


def test_half_precision_is_attributed_with_a_residual_of_its_round_off() -> None:
    found = attribute(wrap(tiny_model("llama", dtype=torch.bfloat16)), prompts(), OPENERS)
    assert ROUND_OFF < found.residual.abs().max() < 0.1


# --- planted truth -----------------------------------------------------------------------------


def plant(model: nn.Module, component: int, batch: TokenBatch, n_positive: int) -> str:
    """Make one writer write the margin where the classes differ; the component's label."""
    backend = wrap(model)
    target = backend.anatomy.components[component]
    writer = target.writers[0]
    site = Site.writer_in(target.block, writer.name)
    last = Site.resid_post(backend.anatomy.n_blocks - 1)
    found = backend.capture(batch, [site, last])
    inputs, size = found[site].double(), 3 * found[last].double().norm(dim=-1).mean()
    gap = inputs[:n_positive].mean(0) - inputs[n_positive:].mean(0)
    along = unit(bind_readout(backend, OPENERS).direction)
    with torch.no_grad():
        weight = canonical(model.get_parameter(writer.weight), writer.axes)
        weight += (size * torch.outer(along, gap / gap.square().sum())).to(weight)
    return f"{target.block}.{target.kind}"


@pytest.mark.parametrize(
    ("model_type", "component"),
    [("llama", 3), ("gpt2", 2), ("gpt_neox", 5), ("mamba", 1), ("jamba", 0), ("granite", 2)],
)
def test_a_planted_writer_is_found(model_type: str, component: int) -> None:
    model, batch = tiny_model(model_type), prompts(12)
    before = attribute(wrap(model), batch, OPENERS).by_block().contrast(6)
    label = plant(model, component, batch, 6)
    after = attribute(wrap(model), batch, OPENERS).by_block().contrast(6)
    (name, value), (_, second) = after.top(2)
    assert name == label
    assert value > 2 * abs(second)
    assert after.measured > before.measured


# --- contrasts ---------------------------------------------------------------------------------


def test_contrast_and_standard_error_of_known_numbers() -> None:
    values = torch.tensor([[1.0], [3.0], [5.0], [0.0], [2.0]]).double()
    difference, error = class_contrast(values, 3)
    assert difference.item() == pytest.approx(2.0)
    assert error.item() == pytest.approx((4.0 / 3 + 2.0 / 2) ** 0.5)


def test_the_standard_error_covers_the_spread_of_repeated_samples() -> None:
    draws = torch.randn(2000, 30, 1, generator=torch.Generator().manual_seed(0)).double()
    draws[:, :10] *= 3
    found = [class_contrast(sample, 10) for sample in draws]
    spread = torch.stack([d for d, _ in found]).std().item()
    expected = torch.stack([e for _, e in found]).mean().item()
    assert expected == pytest.approx(spread, rel=0.06)


@pytest.mark.parametrize("n_positive", [0, 1, 5, 6])
def test_a_contrast_needs_two_prompts_in_each_class(n_positive: int) -> None:
    with pytest.raises(PromptError, match="at least 2 prompts in each class"):
        attribute(wrap(tiny_model("gpt2")), prompts(), OPENERS).contrast(n_positive)


def test_what_every_prompt_shares_cancels() -> None:
    batch = prompts()
    batch.ids[:, -1] = 42
    found = attribute(wrap(tiny_model("llama")), batch, OPENERS).contrast(3)
    assert found.labels[0] == "embed"
    # Not to zero: the scale of the final norm is each prompt's own.
    assert found.values[0].abs() < 0.05 * found.values.abs().max()
    assert found.values.sum().item() + found.residual == pytest.approx(found.measured)


# --- the readout is checked --------------------------------------------------------------------


def with_anatomy(model_type: str, **changes: Any) -> Backend:
    backend = wrap(tiny_model(model_type))
    return HooksBackend(backend.model, None, replace(backend.anatomy, **changes), "")


def test_a_wrong_norm_offset_is_refused() -> None:
    family = replace(wrap(tiny_model("gemma")).anatomy.family, final_norm_offset=0.0)
    with pytest.raises(InterpError, match="neither an RMSNorm nor a LayerNorm with offset 0"):
        attribute(with_anatomy("gemma", family=family), prompts(), OPENERS)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("granite", {"logit_scale": 1.0}),
        ("gemma2", {"logit_cap": None}),
        ("llama", {"logit_cap": 3.0}),
        ("llama", {"final_norm": "model.layers.0.input_layernorm"}),
    ],
)
def test_a_readout_that_is_not_the_models_is_refused(
    model_type: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(InterpError, match=f"miss the logits of {model_type} by"):
        attribute(with_anatomy(model_type, **changes), prompts(), OPENERS)


@pytest.mark.parametrize(
    ("model_type", "centred", "epsilon"),
    [("llama", False, 1e-6), ("gpt2", True, 1e-5), ("olmo", True, 1e-5), ("cohere", True, 1e-5)],
)
def test_the_norm_is_recognised(model_type: str, centred: bool, epsilon: float) -> None:
    norm = bind_readout(wrap(tiny_model(model_type)), OPENERS).norm
    assert (norm.centred, norm.epsilon) == (centred, epsilon)


def test_epsilon_is_found_where_the_module_hides_it() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    backend = wrap(tiny_model("llama"))
    backend.model.model.norm = Hidden()
    assert bind_readout(backend, OPENERS).norm.epsilon == 1e-6


def test_an_unembedding_that_cannot_be_read_is_explained() -> None:
    backend = wrap(tiny_model("mistral"))
    head = backend.model.lm_head
    head.weight = nn.Parameter(head.weight.detach().to("meta"))
    with pytest.raises(InterpError, match="lm_head is offloaded or quantised"):
        attribute(backend, prompts(), OPENERS)


def test_a_token_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(InterpError, match="token 97 is outside the vocabulary of 97"):
        attribute(wrap(tiny_model("llama")), prompts(), Openers((5,), (97,)))


def test_no_prompts_are_no_attribution() -> None:
    with pytest.raises(PromptError, match="no prompts"):
        attribute(wrap(tiny_model("gpt2")), [], OPENERS)


# --- the figure --------------------------------------------------------------------------------


def made(model_type: str = "jamba", **options: Any) -> tuple[Attribution, FigureRecord]:
    found = attribute(wrap(tiny_model(model_type)), prompts(8), OPENERS)
    return found, attribution_record(
        found, 4, Provenance(model_type), **{"key": "paper/attribution", "title": "t", **options}
    )


def test_the_figures_bars_sum_to_what_it_calls_measured() -> None:
    found, record = made()
    series = record.series
    bars = [sum(column) for column in zip(*(p.values for p in series.parts), strict=True)]
    assert list(accumulate(bars)) == pytest.approx(series.cumulative.values)
    assert sum(bars) + series.residual == pytest.approx(series.measured)
    assert series.cumulative.values[-1] == pytest.approx(series.measured, abs=1e-5)
    assert series.lens.values[-1] == pytest.approx(series.measured, abs=1e-5)
    assert series.positions == ("embed", "0", "1", "2", "3")
    assert series.beside["largest_residual"] == found.residual.abs().max().item()
    kinds = [part.kind for part in series.parts]
    assert sorted(kinds) == ["attention", "embedding", "expert", "mlp", "ssm"]
    assert record.n == {"positive": 4, "negative": 4}
    assert record.verdict == "measured"


def test_the_figure_is_drawn_and_can_carry_a_claim() -> None:
    claim = Claim("the parts sum to the whole", "at most", "/largest_residual", ROUND_OFF)
    _, record = made(claims=(claim,))
    assert record.verdict == "shape reproduced"
    assert len(draw(record).axes) == 2


def test_a_soft_cap_is_said() -> None:
    assert "before the soft cap of 4." in made("gemma2")[1].caption
    assert "soft cap" not in made("llama")[1].caption


@pytest.mark.slow
def test_on_the_embedded_model_late_blocks_write_the_refusal_margin() -> None:
    from interp.backends import open_model
    from interp.data import encode, load_class

    backend = open_model("smollm2")
    sides = [
        encode(backend.tokenizer, load_class("capability", side, limit=12).prompts)
        for side in ("refuse", "comply")
    ]
    found = attribute(backend, sides, phrase_openers(backend.tokenizer))
    contrast = found.by_block().contrast(12)
    late = sum(v for b, v in zip(contrast.blocks, contrast.values.tolist(), strict=True) if b >= 15)
    assert found.residual.abs().max() < ROUND_OFF
    assert contrast.measured > 3 * contrast.measured_error
    assert late > 0.8 * contrast.measured


def test_fixtures_are_left_as_they_were() -> None:
    model = tiny_model("jamba")
    before = copy.deepcopy(model.state_dict())
    attribute(wrap(model), prompts(), OPENERS)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
