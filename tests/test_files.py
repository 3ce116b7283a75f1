"""Files are whole or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from interp import files
from interp.errors import NotFinite


def test_json_is_written_whole_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    files.write_json(target, {"a": 1})
    files.write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 2}
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    files.write_json(target, {"a": 1})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(target, {"a": 2})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_not_a_number_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match="is not written"):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_hash_moves_when_a_boundary_moves() -> None:
    assert files.sha256_text("ab", "c") != files.sha256_text("a", "bc")


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert files.sha256_file(path).startswith("ba7816bf")


def test_directory_replaces_an_older_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("old", "new"):
        staged = tmp_path / "staged"
        staged.mkdir()
        (staged / "f").write_text(content)
        files.publish_directory(staged, target)
    assert (target / "f").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_directory_comes_back_when_the_move_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, staged = tmp_path / "model", tmp_path / "staged"
    for folder, content in ((target, "old"), (staged, "new")):
        folder.mkdir()
        (folder / "f").write_text(content)
    real = os.replace

    def fails_once_staged(source: Path, destination: Path) -> None:
        if Path(source) == staged:
            raise OSError("disk full")
        real(source, destination)

    monkeypatch.setattr(os, "replace", fails_once_staged)
    with pytest.raises(OSError, match="disk full"):
        files.publish_directory(staged, target)
    assert (target / "f").read_text() == "old"


def test_half_of_a_surrogate_pair_is_kept_in_json(tmp_path: Path) -> None:
    value = {"token": "a\ud83d", "pair": "😀"}
    files.write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
