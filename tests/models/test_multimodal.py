"""Models that read images: their text stack is described like any other, and an image is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from interp.backends.opening import wrap
from interp.cli import main
from interp.edits import ablation, to_delta
from interp.errors import PromptError, UnknownFamily
from interp.models import describe, families, tiny_model
from interp.sites import Site
from interp.types import Direction, TokenBatch

TYPES = sorted(t for t, family in families().items() if family.image_writers)


def ablated(model: nn.Module) -> Any:
    anatomy = describe(model)
    vector = torch.randn(anatomy.d_model, generator=torch.Generator().manual_seed(0))
    direction = Direction(vector / vector.norm(), 0, "random")
    return to_delta(model, anatomy, ablation(model, anatomy, direction, embeddings=True))


def test_the_common_ones_are_described() -> None:
    assert TYPES == ["gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl"]


@pytest.mark.parametrize("model_type", TYPES)
def test_no_parameter_of_the_image_stack_is_a_writer_or_unclaimed(model_type: str) -> None:
    model = tiny_model(model_type)
    anatomy = describe(model)
    assert all(w.weight.startswith("model.language_model.") for w in anatomy.writers)
    for module in anatomy.image_writers:
        assert list(model.get_submodule(module).parameters())
    assert set(ablated(model).coverage.skipped) == set(anatomy.image_writers)


@pytest.mark.parametrize("model_type", TYPES)
def test_runs_do_not_depend_on_padding_or_on_earlier_runs(
    model_type: str, batch: TokenBatch
) -> None:
    backend = wrap(tiny_model(model_type))
    together = backend.generate(batch, tokens=5)
    logits = backend.logits(batch)
    for i in range(len(batch)):
        alone = TokenBatch(
            batch.ids[i : i + 1, batch.mask[i].argmax() :],
            batch.mask[i : i + 1, batch.mask[i].argmax() :],
        )
        assert torch.equal(backend.generate(alone, tokens=5)[0], together[i])
        assert torch.allclose(backend.logits(alone)[0], logits[i], atol=1e-5)
    assert torch.equal(backend.generate(batch, tokens=5), together)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_token_of_an_image_is_refused(model_type: str, batch: TokenBatch) -> None:
    token = int(batch.ids[1, 8])
    name = "image_token_id" if "qwen" in model_type else "image_token_index"
    backend = wrap(tiny_model(model_type, **{name: token}))
    for run in (
        lambda: backend.logits(batch),
        lambda: backend.generate(batch, tokens=2),
        lambda: backend.capture(batch, [Site.resid_post(0)]),
    ):
        with pytest.raises(
            PromptError, match=rf"prompt \d of its batch has the token of an image \(id {token}\)"
        ):
            run()


def test_another_text_stack_is_not_guessed() -> None:
    model = tiny_model("mistral3", text_config={"model_type": "qwen2"})
    with pytest.raises(UnknownFamily, match="stack of type 'qwen2' is not described, only mistral"):
        describe(model)


def test_inspect_and_edit_say_what_they_do_not_reach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("gemma3").save_pretrained(tmp_path / "m")  # type: ignore[operator]
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(tmp_path / "m")])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "7 writers" in shown
    assert "not edited: model.multi_modal_projector writes at positions of an image" in shown
