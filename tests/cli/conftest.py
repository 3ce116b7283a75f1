"""Commands are tested in this process: starting another one takes longer than all that a command does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from interp.export import exchange, reload


@pytest.fixture(autouse=True, scope="module")
def near() -> Iterator[None]:
    """Exports are reloaded here instead of in a fresh process (tests/export/test_export_fresh.py and the
    README's example start one), also those of fixtures that a module shares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "ask", reload.answer)
        yield
