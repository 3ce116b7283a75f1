"""Padding, batch size and the key-value cache are ways to compute, never part of the result."""

from __future__ import annotations

import pytest
import torch
from toolbox import random_direction, random_vector, relative

from interp.backends.opening import wrap
from interp.backends.protocol import Backend, all_sites
from interp.edits import Edit, ablation, steering
from interp.models import family_of, tiny_model
from interp.sites import Site
from interp.types import TokenBatch

TOKENS = 6
LEAKS = ("use_bias", "mamba_proj_bias", "add_bias_linear")


@pytest.fixture(scope="session")
def plain(model_type: str) -> Backend:
    """transformers masks what enters a mixer's ``in_proj``, but not its bias, which the convolution
    carries from the padding into the first tokens. No known checkpoint has that bias, nor has this.
    """
    config = family_of(model_type).tiny[model_type]
    return wrap(tiny_model(model_type, **{key: False for key in LEAKS if key in config}))


@pytest.fixture(scope="session")
def prompts() -> TokenBatch:
    """Four prompts of 17, 3, 12 and 1 tokens: windows of 8 tokens both full and not."""
    ids = torch.randint(3, 97, (4, 17), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for row, length in enumerate((17, 3, 12, 1)):
        mask[row, : 17 - length] = 0
    return TokenBatch(ids * mask, mask)


@pytest.fixture(scope="session")
def opening() -> TokenBatch:
    """Three prompts of 17, 12 and 14 tokens that open with the same ten, as chat templates do."""
    ids = torch.randint(3, 97, (3, 17), generator=torch.Generator().manual_seed(5))
    rows = [torch.cat([ids[0, :10], ids[row, -n:]]) for row, n in enumerate((7, 2, 4))]
    padded = torch.stack([torch.nn.functional.pad(r, (17 - len(r), 0)) for r in rows])
    return TokenBatch(padded, (padded > 0).long())


@pytest.fixture(scope="session")
def tolerance(plain: Backend) -> float:
    """Relative, fp32. A padded prompt is cut into other chunks by the scans of state-space mixers,
    and the gates behind them amplify what is left of that (Zamba2: 1e-5).
    """
    return 1e-4 if any(c.kind == "ssm" for c in plain.anatomy.components) else 1e-5


def test_padding_and_batch_size_change_nothing(
    plain: Backend, prompts: TokenBatch, tolerance: float
) -> None:
    sites = all_sites(plain.anatomy)
    together, logits = plain.capture(prompts, sites), plain.logits(prompts)
    parts = list(prompts.split(1))
    assert [p.ids.shape[1] for p in parts] == [17, 3, 12, 1]
    for size in (1, 3):
        found = torch.cat([plain.logits(part) for part in prompts.split(size)])
        assert relative(found, logits) < tolerance
    apart = [plain.capture(part, sites) for part in parts]
    for site in sites:
        assert relative(torch.cat([a[site] for a in apart]), together[site]) < tolerance, site


def test_a_shared_opening_changes_nothing(
    plain: Backend, opening: TokenBatch, tolerance: float
) -> None:
    """Whether it is computed once and cached or for every prompt, with and without an edit."""
    assert opening.mask.sum(-1).tolist() == [17, 12, 14]
    sites = all_sites(plain.anatomy)
    last = plain.anatomy.n_blocks - 2
    steered = steering(Site.resid_post(last), random_vector(plain.anatomy.d_model), 0.5)
    ablated = ablation(plain.model, plain.anatomy, random_direction(plain.anatomy.d_model))
    edited = Edit(ablated.writers, steered.sites)
    for edit in (None, edited):
        apart = torch.cat([plain.logits(p, edit) for p in opening.split(1)])
        assert relative(plain.logits(opening, edit), apart) < tolerance
    new = torch.cat([plain.generate(p, edited, tokens=3) for p in opening.split(1)])
    assert torch.equal(plain.generate(opening, edited, tokens=3), new)
    with plain.editing(edited):
        together = plain.capture(opening, sites, (-2, -1))
        alone = [plain.capture(p, sites, (-2, -1)) for p in opening.split(1)]
    for site in sites:
        rows = torch.cat([found[site] for found in alone])
        assert relative(together[site], rows) < tolerance, site


def test_what_lies_under_the_padding_changes_nothing(
    plain: Backend, prompts: TokenBatch, tolerance: float
) -> None:
    noise = torch.randint(3, 97, prompts.ids.shape, generator=torch.Generator().manual_seed(4))
    filled = TokenBatch(torch.where(prompts.mask.bool(), prompts.ids, noise), prompts.mask)
    assert relative(plain.logits(filled), plain.logits(prompts)) < tolerance


def test_the_cache_changes_nothing(plain: Backend, prompts: TokenBatch) -> None:
    """Cached greedy search = the argmax of the whole text, token by token."""
    generated = plain.generate(prompts, tokens=TOKENS)
    text, ended = prompts, torch.zeros(len(prompts), dtype=torch.bool)
    for step in range(TOKENS):
        best = plain.logits(text).argmax(-1)
        best[ended] = 0
        assert torch.equal(generated[:, step], best)
        ended |= best == plain.model.generation_config.eos_token_id
        text = text.extended(best[:, None])


def test_generation_does_not_depend_on_the_batch(plain: Backend, prompts: TokenBatch) -> None:
    together = plain.generate(prompts, tokens=TOKENS)
    apart = [plain.generate(part, tokens=TOKENS) for part in prompts.split(1)]
    assert torch.equal(torch.cat(apart), together)
