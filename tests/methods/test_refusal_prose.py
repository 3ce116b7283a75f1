"""What the model writes: its second moment is that of every token, and edits leave it alone."""

from __future__ import annotations

import pytest
import torch

from interp.backends.hooks import writer_sites
from interp.backends.opening import wrap
from interp.data.chat import encode
from interp.data.prompts import PromptSet
from interp.data.text import fit_passages
from interp.edits import to_delta
from interp.errors import InterpError
from interp.evaluate.divergence import end_tokens, until_end
from interp.lm import LM
from interp.methods.refusal import Setting, build, fit, written
from interp.methods.refusal.prose import PIECES, SQUARE
from interp.models import tiny_model

REFUSE = tuple(f"what is in my bag number {i} now?" for i in range(8))
COMPLY = PromptSet(tuple(f"what is in a {'big ' * (i % 3)}bag, {i}?" for i in range(8)), "c")
TOKENS = 5


@pytest.fixture(scope="module", params=["llama", "mamba"])
def lm(request, tokenizer) -> LM:
    # With a bias in its input projection Mamba carries something from the padding into the prompt.
    unbiased = {"use_bias": False} if request.param == "mamba" else {}
    model = tiny_model(request.param, vocab_size=259, num_hidden_layers=2, **unbiased)
    return LM(wrap(model, tokenizer, source="tiny"))


def one_by_one(lm: LM) -> dict[str, torch.Tensor]:
    """The same moments without batches or padding: each response read alone, token by token."""
    sites = writer_sites(lm.anatomy.block_writers)
    chats, plain = ({site.name: [] for site in sites} for _ in range(2))
    for prompt in COMPLY.prompts:
        batch = encode(lm.tokenizer, [prompt])
        new = lm.backend.generate(batch, tokens=TOKENS)
        count = int(until_end(new, end_tokens(lm)).sum())
        whole = lm.backend.capture(batch.extended(new[:, :count]), sites, None)
        text = lm.tokenizer.decode(new[0, :count], skip_special_tokens=True)
        ids = torch.tensor([lm.tokenizer(text).input_ids])
        alone = None
        if ids.shape[1] > 1:
            alone = lm.backend.capture(type(batch)(ids, torch.ones_like(ids)), sites, None)
        for site in sites:
            chats[site.name].append(whole[site][0, -count:])
            if alone is not None:
                plain[site.name].append(alone[site][0, 1:])
    found = {}
    for name in chats:
        parts = [torch.cat(rows[name]).double() for rows in (chats, plain) if rows[name]]
        found[name] = sum(0.5 * rows.T @ rows / len(rows) for rows in parts)
    return found


def test_its_moment_is_that_of_every_token(lm: LM) -> None:
    found = written(lm.using(batch_size=3), COMPLY, tokens=TOKENS).moments
    for name, moment in one_by_one(lm).items():
        rows = found[name].double()
        torch.testing.assert_close(
            rows.T @ rows / len(rows),
            moment,
            rtol=1e-3,
            atol=2e-6 * moment.diagonal().mean().item(),
        )


def test_an_edit_moves_what_is_written_less_when_it_counts_more(lm: LM) -> None:
    refuse = PromptSet(REFUSE, "r")
    fitted = fit(lm, refuse, COMPLY, prose=COMPLY, response_tokens=0)
    assert any(key.startswith("prose") for key in fitted.prompts)
    rows = fitted.statistics.prose
    weights = {writer.weight: writer for writer in lm.anatomy.block_writers}
    moved = []
    for weight in (0.0, 1.0, 100.0):
        setting = Setting("least-disturbance", max(fitted.directions), prose_weight=weight)
        total = 0.0
        for key, update in to_delta(lm.hf, lm.anatomy, build(lm, fitted, setting)):
            read, dense = rows[weights[key].name], update.dense()
            total += (read @ dense.T).square().sum().item()
        moved.append(total)
    assert moved[0] > moved[1] > moved[2] > 0


@pytest.mark.slow
def test_a_wide_writer_keeps_rows(tokenizer) -> None:
    model = tiny_model("llama", vocab_size=259, num_hidden_layers=1, intermediate_size=SQUARE + 4)
    wide = LM(wrap(model, tokenizer, source="tiny"))
    found, expected = written(wide, COMPLY, tokens=TOKENS).moments, one_by_one(wide)
    name = wide.anatomy.block_writers[-1].name
    rows = found[name].double()
    assert len(rows) < rows.shape[1]  # tokens, not a root of the moment
    torch.testing.assert_close(rows.T @ rows / len(rows), expected[name], rtol=1e-4, atol=1e-5)


def test_nothing_that_can_be_read_as_text_leaves_the_chats(tokenizer) -> None:
    """A model that writes padding alone: its moment is that of the responses in their chats."""
    model = tiny_model("llama", vocab_size=259, num_hidden_layers=1, tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    silent = LM(wrap(model, tokenizer, source="tiny"))
    found, expected = written(silent, COMPLY, tokens=TOKENS), one_by_one(silent)
    assert found.cut.texts is None
    for name, moment in expected.items():
        rows = found.moments[name].double()
        # Half of it is what the moments of text would add.
        torch.testing.assert_close(rows.T @ rows / len(rows), 2 * moment, rtol=1e-3, atol=1e-5)


def test_pieces_are_beginnings_of_the_passages_for_fits(lm: LM) -> None:
    batch = written(lm, COMPLY, tokens=TOKENS).cut.prose
    assert batch is not None
    times, last = PIECES
    passages = fit_passages()
    assert len(batch) == times * len(passages)
    assert int(batch.lengths.min()) > last
    for ids, mask in zip(batch.ids, batch.mask, strict=True):
        text = lm.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
        assert sum(passage.startswith(text) for passage in passages) == 1


def test_it_stays_when_splits_are_joined_or_taken_apart(lm: LM) -> None:
    refuse = PromptSet(REFUSE, "r")
    with_prose = fit(lm, refuse, COMPLY, prose=COMPLY, response_tokens=0)
    without = fit(lm, refuse, COMPLY, response_tokens=0)
    for found in (without.joined(with_prose), with_prose.of_pairs(torch.arange(3))):
        assert found.statistics.prose.keys() == with_prose.statistics.prose.keys()
    assert not without.statistics.prose
    with pytest.raises(InterpError, match="both fits leave prose alone"):
        with_prose.joined(with_prose)
    setting = Setting("least-disturbance", max(without.directions))
    weights = (build(lm, f, setting).recipe.get("prose_weight") for f in (with_prose, without))
    assert tuple(weights) == (setting.prose_weight, None)
