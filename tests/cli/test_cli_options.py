"""Options that cannot be meant are wrong use, told before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp.cli import main


def call(*args: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize(
    "words",
    [
        ("edit", "ablation", "--out", "x", "--strength"),
        ("edit", "least-disturbance", "--out", "x", "--winsor"),
        ("edit", "persona", ".", "--out", "x", "--coefficient"),
        ("heretic", "--kernel", "1,1,1,1", "--out", "x", "--winsor"),
        ("diff", "x", ".", "--tolerance"),
    ],
)
def test_no_setting_is_nan(
    words: tuple[str, ...], number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*words, number) == 2
    assert "finite" in (found := capsys.readouterr().err) or "range" in found


def test_results_that_cannot_be_written_are_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    within = tmp_path / "file/below/r.json"
    for words in (
        ("measure", "--json", within),
        ("edit", "ablation", "--out", within),
        ("attribute", "--out", within),
        ("diff", "x", tmp_path, "--figure", within),
    ):
        assert call(*words) == 2
        assert "is not a directory" in capsys.readouterr().err
