"""Rows of the files that people keep prompts in: text, JSON, JSON lines, CSV, Parquet, compressed or not.

The content decides where it can (a suffix is only asked where content leaves a choice), so that a file
named ``.ndjson``, ``.JSONL`` or ``.txt`` is read alike.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import PromptError

COMPRESSED: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
"""First bytes of a compressed file → what unpacks it."""
PACKED_SUFFIXES = (".gz", ".bz2", ".xz")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines", ".jl")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
TEXT_SUFFIXES = (".txt", ".text", ".md", "")
SUFFIXES = (
    *JSON_SUFFIXES, *TABLE_SUFFIXES, ".parquet", *filter(None, TEXT_SUFFIXES), *PACKED_SUFFIXES,
)  # fmt: skip
FOREIGN = {
    b"PK\x03\x04": "a spreadsheet or zip archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
}
DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One entry of a file: a string, a mapping by column, or whatever else was there. place: where it
    is, for messages (``line 3``)."""

    value: Any
    place: str


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds. structured: whether it has columns, or else one prompt a line."""

    rows: tuple[PromptRow, ...]
    structured: bool


def read_rows(path: Path, column: str = "") -> Content:
    """The rows of a file. column: the one that is asked for, which tells columns from plain lines.

    Raises PromptError for a file that is damaged, in a format that is not read, or not UTF-8 (UTF-16
    with a byte order mark is read, too).
    """
    data = _unpacked(path)
    if data.startswith(b"PAR1"):
        return Content(_parquet(data, path), structured=True)
    for start, what in FOREIGN.items():
        if data.startswith(start):
            raise PromptError(f"{path} is {what}, which is not read; save it as CSV or JSON lines")
    text, suffix = _decoded(data, path), kind_of(path)
    if suffix in JSON_SUFFIXES or (
        suffix not in TABLE_SUFFIXES and text.lstrip()[:1] in ("{", "[")
    ):
        try:
            return Content(_json(text, column, path), structured=True)
        except PromptError:
            if suffix not in TEXT_SUFFIXES or column:
                raise
    if suffix in TABLE_SUFFIXES or (column and _has_column(text, column)):
        return Content(_table(text, path), structured=True)
    if column:
        raise PromptError(
            f"{path} is plain text with one prompt a line, so it has no column {column!r}; leave "
            "out #COLUMN, or give a CSV, JSON or Parquet file"
        )
    lines = text.split("\n")
    return Content(
        tuple(PromptRow(s, f"line {i}") for i, s in enumerate(lines, 1)), structured=False
    )


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds, in lower case; that of the packing is left out."""
    packed = path.suffix.lower() in PACKED_SUFFIXES
    return Path(path.stem if packed else path.name).suffix.lower()


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    for start, unpack in COMPRESSED.items():
        if data.startswith(start):
            try:
                return unpack(data)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise PromptError(f"{path} is a damaged archive ({error}); copy it again") from None
    return data


def _decoded(data: bytes, path: Path) -> str:
    """Text with ``\\n`` between its lines, also where every line ends with a carriage return alone."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text:  # binary data, or UTF-16 without a byte order mark
            raise UnicodeDecodeError("utf-8", data, data.find(b"\0"), len(data), "NUL")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"{path} is not UTF-8 text (line {line}); save it as UTF-8, one prompt a line"
        ) from None
    return text if "\n" in text else text.replace("\r", "\n")


def _json(text: str, column: str, path: Path) -> tuple[PromptRow, ...]:
    """Rows of a JSON document (a list, an object of lists, one object) or of JSON lines."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        return _json_lines(text, path)
    rows = _listed(whole, column) if isinstance(whole, Mapping) else whole
    if not isinstance(rows, list):
        return (PromptRow(rows, "line 1"),)
    return tuple(PromptRow(value, f"entry {i}") for i, value in enumerate(rows, 1))


def _listed(whole: Mapping[str, Any], column: str) -> Any:
    """The rows in one JSON object: its only list, its columns turned into rows; else itself."""
    lists = {name: value for name, value in whole.items() if isinstance(value, list)}
    columns = {name: v for name, v in lists.items() if v and all(isinstance(x, str) for x in v)}
    if column in columns:
        return [{column: text} for text in columns[column]]
    if columns and not column and len(columns) == len(lists):
        longest = max(map(len, columns.values()))
        return [{name: v[i] for name, v in columns.items() if i < len(v)} for i in range(longest)]
    tables = [v for v in lists.values() if v and isinstance(v[0], Mapping) and "role" not in v[0]]
    return tables[0] if len(tables) == 1 and column not in whole else whole


def _json_lines(text: str, path: Path) -> tuple[PromptRow, ...]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(PromptRow(json.loads(line), f"line {number}"))
        except json.JSONDecodeError as error:
            raise PromptError(f"{path}, line {number} is not JSON: {error.msg}") from None
    return tuple(rows)


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=header.count)


def _has_column(text: str, column: str) -> bool:
    header = text.split("\n", 1)[0]
    return column in next(csv.reader([header], delimiter=_delimiter(header)), [])


def _table(text: str, path: Path) -> tuple[PromptRow, ...]:
    """Rows of comma-, semicolon- or tab-separated text whose first line names the columns."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text.split("\n", 1)[0]))
    rows: list[PromptRow] = []
    names: list[str] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not names:
                names = [cell.strip() for cell in cells]
            elif len(cells) == len(names):
                rows.append(
                    PromptRow(dict(zip(names, cells, strict=True)), f"line {reader.line_num}")
                )
            else:
                raise PromptError(
                    f"{path}, line {reader.line_num} has {len(cells)} fields, its first line "
                    f"{len(names)}; put quotes around fields with a separator in them"
                )
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
    if names and not rows:
        raise PromptError(
            f"{path} has no rows below its first line, which names columns: {', '.join(names)}"
        )
    return tuple(rows)


def _parquet(data: bytes, path: Path) -> tuple[PromptRow, ...]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise PromptError(f"{path} is a Parquet file, which needs: pip install pyarrow") from None
    try:
        found = parquet.read_table(io.BytesIO(data)).to_pylist()
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise PromptError(f"{path} is a damaged Parquet file ({error}); copy it again") from None
    return tuple(PromptRow(value, f"row {i}") for i, value in enumerate(found, 1))
