"""Exports: a weight delta as files, each reloaded in a fresh process before it counts as written.

One file a format, found by scanning this package for ``EXPORTER``. Importing this package imports
neither transformers nor peft.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.export.delta import load_delta, save_delta
from interp.export.gate import shipped_cards
from interp.export.receipt import Receipt
from interp.export.verify import export, export_on, verify_export

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interp.export.exporter import Exporter

    EXPORTERS: Mapping[str, Exporter]

__all__ = [
    "EXPORTERS",
    "Receipt",
    "export",
    "export_on",
    "load_delta",
    "save_delta",
    "shipped_cards",
    "verify_export",
]


def __getattr__(name: str) -> Any:
    # The scan imports every module here, the fresh process's entry point among them, which
    # `python -m` must find not yet imported; hence on first use only.
    if name == "EXPORTERS":
        from interp.export.exporter import exporters

        return exporters()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
