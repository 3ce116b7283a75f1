"""The last tokens alone, with what precedes them kept, are the whole prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toolbox import assert_untouched, opened, random_direction, relative, state
from torch import nn

from interp.backends.prefix import supports_prefix
from interp.backends.protocol import Backend
from interp.backends.tail import Tail, frozen
from interp.edits import ablation, to_delta
from interp.types import TokenBatch, WeightDelta


@pytest.fixture(scope="module")
def backend(model_type: str) -> Backend:
    return opened(model_type, "hooks")


def edited(backend: Backend) -> WeightDelta:
    direction = random_direction(backend.model.config.get_text_config().hidden_size, 4)
    return to_delta(
        backend.model, backend.anatomy, ablation(backend.model, backend.anatomy, direction)
    )


@pytest.fixture(scope="module", params=["apart", "one opening"])
def prompts(request: pytest.FixtureRequest, batch: TokenBatch) -> TokenBatch:
    """Three prompts, and three that open with the same ten tokens, as chat templates do."""
    if request.param == "apart":
        return batch
    ids = torch.randint(3, 97, (3, 17), generator=torch.Generator().manual_seed(5))
    rows = [torch.cat([ids[0, :10], ids[row, -n:]]) for row, n in enumerate((7, 4, 5))]
    padded = torch.stack([torch.nn.functional.pad(r, (17 - len(r), 0)) for r in rows])
    return TokenBatch(padded, (padded > 0).long())


@pytest.mark.parametrize("keep", [1, 3])
def test_a_tail_is_the_prompt_with_and_without_an_edit(
    backend: Backend, prompts: TokenBatch, keep: int
) -> None:
    before, delta = state(backend.model), edited(backend)
    places = tuple(range(-keep, 0))
    plain, changed = (backend.logits(prompts, d, places) for d in (None, delta))
    assert relative(plain, changed) > 1e-3
    with torch.no_grad():
        assert relative(Tail.of(backend, prompts, keep).logits(backend.model), plain) < 1e-4
        with backend.editing(delta):
            tail = Tail.of(backend, prompts, keep)
            assert (tail.past is not None) == supports_prefix(backend.model, backend.anatomy)
            found = [tail.logits(backend.model) for _ in range(2)]  # the cache is as it was
    assert torch.equal(*found)
    assert relative(found[0], changed) < 1e-4
    assert_untouched(backend.model, before)


def test_gradients_reach_what_hooks_add_and_no_parameter(
    backend: Backend, batch: TokenBatch
) -> None:
    added = torch.zeros(backend.anatomy.d_model, requires_grad=True)
    tail = Tail.of(backend, batch, 2)
    asking = [p.requires_grad for p in backend.model.parameters()]
    block = backend.model.get_submodule(backend.anatomy.blocks[0])

    def add(module: nn.Module, args: object, out: Any) -> Any:
        return (out[0] + added, *out[1:]) if isinstance(out, tuple) else out + added

    handle = block.register_forward_hook(add)
    with frozen(backend.model):
        tail.logits(backend.model).square().mean().backward()
    handle.remove()
    assert added.grad is not None
    assert added.grad.any()
    assert all(p.grad is None for p in backend.model.parameters())
    assert [p.requires_grad for p in backend.model.parameters()] == asking


def test_parameters_ask_again_after_an_error() -> None:
    model = opened("llama", "hooks").model
    with pytest.raises(RuntimeError, match="stop"), frozen(model):
        raise RuntimeError("stop")
    assert all(p.requires_grad for p in model.parameters())


def test_a_batch_that_is_no_longer_than_its_tail_runs_whole() -> None:
    backend = opened("llama", "hooks")
    ids = torch.arange(5, 11).reshape(2, 3)
    batch = TokenBatch(ids, torch.tensor([[0, 1, 1], [1, 1, 1]]))
    tail = Tail.of(backend, batch, 2)
    assert tail.past is None
    with torch.no_grad():
        assert tail.logits(backend.model).shape[:2] == (2, 2)
