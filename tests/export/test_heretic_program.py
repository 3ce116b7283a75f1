"""heretic's environment: found, listed, made once; with a stand-in for pip and for heretic."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interp.errors import ExportError
from interp.export import heretic_program
from interp.export.heretic_program import Program, find, install


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.delenv(heretic_program.VARIABLE, raising=False)
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def commands(monkeypatch) -> Commands:
    """Commands are recorded and not run; from ``commands.fail_at`` on they fail."""
    made = Commands()
    monkeypatch.setattr(subprocess, "run", made)
    return made


class Commands(list[list[str]]):
    fail_at: int | None = None

    def __call__(self, words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.append(list(words))
        failed = self.fail_at is not None and len(self) > self.fail_at
        says = "noise\nERROR: no matching distribution\n" if failed else ""
        return subprocess.CompletedProcess(words, int(failed), "", says)


def test_nothing_is_found_where_nothing_is() -> None:
    assert find() is None


def test_a_named_program_must_be_there(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(heretic_program.VARIABLE, str(tmp_path / "heretic"))
    with pytest.raises(ExportError, match="which is no file; unset it or mend it"):
        find()
    (tmp_path / "heretic").touch()
    assert find().executable == tmp_path / "heretic"


def test_it_is_made_once(commands) -> None:
    said: list[str] = []
    first = install(said.append)
    assert len(commands) == 3
    assert commands[0][1:3] == ["-m", "venv"]
    assert commands[1][-1].startswith("torch==")
    assert commands[2][-1] == "heretic-llm==1.4.0"
    assert "once; about 2 GB" in said[0]
    assert install(said.append) == find() == first
    assert len(commands) == 3


def test_a_failed_attempt_says_what_to_do_and_is_begun_anew(commands, cache) -> None:
    commands.fail_at = 2
    with pytest.raises(
        ExportError, match=r"ERROR: no matching distribution; it needs a network.*INTERP"
    ):
        install()
    assert find() is None
    half = Path(commands[0][-1]) / "half"
    half.parent.mkdir(parents=True)
    half.touch()
    commands.fail_at = None
    assert install().executable.is_relative_to(half.parent)
    assert not half.exists()
    assert find() is not None


def test_an_endless_installation_is_stopped(monkeypatch) -> None:
    def run(words, **options):
        raise subprocess.TimeoutExpired(words, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ExportError, match="took more than"):
        install()


def test_packages_are_listed_by_that_environments_own_python(tmp_path) -> None:
    with pytest.raises(ExportError, match="is not heretic: heretic-llm is not installed"):
        Program(Path(sys.executable).with_name("pytest")).packages()
    info = tmp_path / "site" / "heretic_llm-1.4.0.dist-info"
    info.mkdir(parents=True)
    needs = 'Requires-Dist: peft>=0.1\nRequires-Dist: no_such; extra == "more"\n'
    (info / "METADATA").write_text(f"Name: heretic-llm\nVersion: 1.4.0\n{needs}")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    found = Program(tmp_path / "heretic").packages()
    assert {"peft", "torch", "transformers", "huggingface-hub"} <= found.keys()
    assert "no-such" not in found
    import peft

    assert (found["heretic-llm"], found["peft"]) == ("1.4.0", peft.__version__)


def test_a_python_that_does_not_run_is_an_error(tmp_path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ExportError, match="broken"):
        Program(tmp_path / "heretic").packages()
