"""Exports are whole or absent, and nothing of the user's is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from interp import files
from interp.errors import ExportError
from interp.export import export, load_delta, verify_export
from interp.export.staging import staged, sweep


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def nothing_is_left(folder: Path) -> bool:
    return names(folder) == []


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
def test_a_failure_at_the_rename_leaves_nothing(failure, saved, tmp_path, monkeypatch) -> None:
    base = saved("llama")

    def refuse(*args, **kwargs):
        raise failure

    monkeypatch.setattr(files.os, "replace", refuse)
    wanted = ExportError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(wanted):
        export(base.ablated(), to="delta", **base.base, out=tmp_path / "out")
    monkeypatch.undo()
    assert nothing_is_left(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_a_failed_export_leaves_the_older_one(saved, tmp_path, monkeypatch) -> None:
    base, out = saved("llama"), tmp_path / "out"
    export(base.ablated(), to="delta", **base.base, out=out)
    before = (out / "receipt.json").read_bytes()
    with pytest.raises(ExportError):
        export(base.ablated().scale(0.0), to="delta", **base.base, out=out)
    assert (out / "receipt.json").read_bytes() == before
    assert verify_export(out, str(base.path)).verdict == "verified"
    assert names(tmp_path) == ["out"]


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_leftovers_of_killed_runs_are_cleared(saved, tmp_path) -> None:
    base, out = saved("llama"), tmp_path / "out"
    code = (
        "import os, sys; from pathlib import Path; from interp.export.staging import staged\n"
        "with staged(Path(sys.argv[1])) as stage:\n"
        "    (stage / 'half').write_text('written'); os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    (killed,) = tmp_path.iterdir()
    assert killed.name.startswith(".out.export-")
    with staged(out):  # one that is still at work
        export(base.ablated(), to="delta", **base.base, out=out)
        assert killed.name not in names(tmp_path)
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == ["out"]


def test_an_export_moved_aside_by_a_killed_run_comes_back(tmp_path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    aside = tmp_path / f".out.old-{dead}"
    aside.mkdir()
    (aside / "receipt.json").write_text("{}")
    sweep(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    aside.mkdir()
    sweep(tmp_path / "out")
    assert names(tmp_path) == ["out"]


@pytest.mark.usefixtures("in_process")
def test_nothing_of_yours_is_overwritten(saved, tmp_path) -> None:
    base, out = saved("llama"), tmp_path / "out"
    edit = base.ablated()
    out.mkdir()
    export(edit, to="delta", **base.base, out=out)  # an empty directory is free
    export(edit, to="peft", **base.base, out=out)  # so is an export of ours
    assert {p.name for p in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "receipt.json",
        "verification",
    }
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds notes\.txt, which no export of ours wrote"):
        export(edit, to="delta", **base.base, out=out)
    assert (out / "notes.txt").read_text() == "mine"
    export(edit, to="delta", **base.base, out=out, overwrite=True)
    assert not (out / "notes.txt").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is a file"):
        export(edit, to="delta", **base.base, out=tmp_path / "file", overwrite=True)


@pytest.mark.usefixtures("in_process")
def test_the_base_itself_is_never_overwritten(saved) -> None:
    base = saved("llama")
    for out in (base.path, base.path.parent):
        with pytest.raises(ExportError, match="is or holds the base model"):
            export(base.ablated(), to="merged", **base.base, out=out, overwrite=True)


@pytest.mark.usefixtures("in_process")
def test_a_link_is_followed(saved, tmp_path) -> None:
    base = saved("llama")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        export(base.ablated(), to="delta", **base.base, out=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_delta(tmp_path / "real").base == base.ablated().base


def test_a_place_that_cannot_be_written_is_an_error(saved, tmp_path) -> None:
    base = saved("llama")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="cannot write"):
        export(base.ablated(), to="delta", **base.base, out=tmp_path / "file" / "out")
