"""Prompts: shipped benign sets, files, hub data sets; chat templates; neutral text."""

from __future__ import annotations

from interp.data.chat import ChatFormat, encode
from interp.data.prompts import (
    PromptSet,
    check_classes,
    is_shipped,
    load_class,
    load_pairs,
    shipped_sets,
)
from interp.data.text import fit_passages, neutral_passages

__all__ = [
    "ChatFormat",
    "PromptSet",
    "check_classes",
    "encode",
    "fit_passages",
    "is_shipped",
    "load_class",
    "load_pairs",
    "neutral_passages",
    "shipped_sets",
]
