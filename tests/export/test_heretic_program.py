"""heretic's environment: found, listed, made once; with a stand-in for pip and for heretic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from interp.errors import ExportError
from interp.export import heretic_program
from interp.export.heretic_program import Program, find, install


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.delenv(heretic_program.VARIABLE, raising=False)
    monkeypatch.setattr(heretic_program, "cache_directory", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_nothing_is_found_where_nothing_is() -> None:
    assert find() is None


def test_a_named_program_must_be_there(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv(heretic_program.VARIABLE, str(tmp_path / "heretic"))
    with pytest.raises(ExportError, match="which is no file; unset it or mend it"):
        find()
    (tmp_path / "heretic").touch()
    assert find().executable == tmp_path / "heretic"


def test_it_is_made_once_and_a_killed_attempt_is_begun_anew(monkeypatch, cache) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(heretic_program, "_run", lambda words: asked.append(list(words)))
    said: list[str] = []
    folder = heretic_program._folder()
    folder.mkdir(parents=True)
    (folder / "half").touch()  # without the stamp that ends an installation
    first = install(said.append)
    assert not (folder / "half").exists()
    assert len(asked) == 3
    assert asked[0][1:3] == ["-m", "venv"]
    assert asked[1][-1].startswith("torch==")
    assert asked[2][-1] == "heretic-llm==1.4.0"
    assert "once; about 2 GB" in said[0]
    assert install(said.append) == first
    assert len(asked) == 3


def test_without_a_network_it_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setattr(heretic_program, "PACKAGE", "no-such-package-anywhere")

    def run(words, **options):
        return subprocess.CompletedProcess(words, 1, "", "noise\nERROR: no matching distribution\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        ExportError, match=r"ERROR: no matching distribution; it needs a network.*INTERP"
    ):
        install()
    assert find() is None


def test_an_endless_installation_is_stopped(monkeypatch) -> None:
    def run(words, **options):
        raise subprocess.TimeoutExpired(words, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ExportError, match="took more than"):
        install()


def test_packages_are_listed_by_that_environments_own_python(monkeypatch) -> None:
    here = Program(Path(sys.executable).with_name("pytest"))
    with pytest.raises(ExportError, match="is not heretic: heretic-llm is not installed"):
        here.packages()
    monkeypatch.setattr(heretic_program, "PACKAGE", "peft")
    monkeypatch.setattr(heretic_program, "ROOTS", ("peft", "no-such-package"))
    found = here.packages()
    assert {"peft", "torch", "transformers", "huggingface-hub"} <= found.keys()
    assert "no-such-package" not in found
    import peft

    assert found["peft"] == peft.__version__


def test_a_python_that_does_not_run_is_an_error(tmp_path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ExportError, match="broken"):
        Program(tmp_path / "heretic").packages()


def test_the_stamp_is_written_last(monkeypatch, cache) -> None:
    def run(words):
        raise ExportError("no")

    monkeypatch.setattr(heretic_program, "_run", run)
    with pytest.raises(ExportError):
        install()
    assert not (heretic_program._folder() / heretic_program.STAMP).exists()
    monkeypatch.setattr(heretic_program, "_run", lambda words: None)
    install()
    stamp = json.loads((heretic_program._folder() / heretic_program.STAMP).read_text())
    assert stamp == {"heretic-llm": "1.4.0"}
