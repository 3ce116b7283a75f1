"""Commands are tested in this process: starting another one takes longer than all that a command does."""

from __future__ import annotations

import pytest

from interp.export import exchange, reload


@pytest.fixture(autouse=True)
def near(monkeypatch) -> None:
    """Exports are reloaded here instead of in a fresh process (tests/export/test_export_fresh.py and the
    README's example start one)."""
    monkeypatch.setattr(exchange, "ask", reload.answer)
