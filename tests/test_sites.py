"""Site names and the TransformerLens names of them."""

from __future__ import annotations

import pytest

from interp.errors import SiteError
from interp.sites import Site


@pytest.mark.parametrize(
    ("site", "name"),
    [
        (Site.embed(), "hook_embed"),
        (Site.resid_pre(3), "blocks.3.hook_resid_pre"),
        (Site.resid_mid(0), "blocks.0.hook_resid_mid"),
        (Site.resid_post(12), "blocks.12.hook_resid_post"),
        (Site.component("blocks.3.attention"), "blocks.3.hook_attn_out"),
        (Site.component("blocks.3.mlp"), "blocks.3.hook_mlp_out"),
        (Site.component("blocks.3.ssm"), "blocks.3.hook_ssm_out"),
    ],
)
def test_names_go_both_ways(site: Site, name: str) -> None:
    assert str(site) == name
    assert Site.parse(name) == site


def test_unknown_name_lists_known_ones() -> None:
    with pytest.raises(SiteError, match="hook_resid_pre"):
        Site.parse("blocks.3.nonsense")
