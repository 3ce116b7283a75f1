"""What cards write on the pages of papers."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from figure_examples import some_lines

from interp.claims import Claim
from interp.cli import main
from interp.errors import RecordError
from interp.pages import BEGIN, END, listing, page_path, replaced, update
from interp.papers import load_paper
from interp.records import FigureRecord, Provenance
from interp.study import FigureSpec, Paper

ROOT = Path(__file__).parent.parent.parent
SHIPPED = load_paper("representation_engineering")
PAPER = Paper(
    "planned",
    "A paper",
    "0000.00000",
    (
        FigureSpec("one", "One", "a:b"),
        FigureSpec("big", "Big", stands_for="table 1", needs="a GPU"),
        FigureSpec("later", "Later", "a:b"),
    ),
)
PROSE = f"# A paper\n\nbefore\n\n{BEGIN}\nwhat was there\n{END}\n\nafter 0.5\n"


def record(level: float = 0.51234) -> FigureRecord:
    return FigureRecord(
        "planned/one",
        "One picture",
        some_lines(level=level, steps=[3, 2.0]),
        Provenance("m"),
        claims=(
            Claim("it is high", "at least", "/level", 0.5),
            Claim("it is low", "at most", "/level", 0.25, 0.1),
            Claim("they fall", "falls", "/steps"),
            Claim("they are the paper's", "equal", "/steps", (3, 2), source="table 1"),
        ),
    )


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A directory of pages beside one of cards, ``figures``."""
    needs = {"series": None, "needs": "a GPU", "claims": ()}
    for card in (record(), dataclasses.replace(record(), key="planned/big", **needs)):
        card.save(tmp_path / "figures")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/planned.md").write_text(PROSE, encoding="utf-8")
    return tmp_path / "papers"


def test_every_figure_is_listed_with_what_was_measured_or_is_needed(pages: Path) -> None:
    assert listing(PAPER, pages.parent / "figures", pages) == (
        "| figure | card | stands for | verdict |\n"
        "|---|---|---|---|\n"
        "| One | card `planned/one` | ours | not reproduced |\n"
        "| Big | card `planned/big` | table 1 | not run here: needs a GPU |\n"
        "| Later | card `planned/later` | ours | missing |\n"
        "\n"
        "### One\n"
        "\n"
        "![One picture](../figures/planned/one.svg)\n"
        "\n"
        "- holds: it is high (measured 0.512; at least 0.5)\n"
        "- **does not hold**: it is low (measured 0.512; at most 0.25, tolerance 0.1)\n"
        "- holds: they fall (measured 3, 2; falls)\n"
        "- holds: they are the paper's (measured 3, 2; equal 3, 2)"
    )


def test_a_card_that_claims_nothing_has_its_picture_alone(pages: Path) -> None:
    dataclasses.replace(record(), claims=()).save(pages.parent / "figures")
    text = listing(PAPER, pages.parent / "figures", pages)
    assert "| ours | measured |" in text
    assert text.endswith("\n\n![One picture](../figures/planned/one.svg)")


def test_a_changed_card_changes_the_page_between_its_marks_alone(pages: Path) -> None:
    figures = pages.parent / "figures"
    page = update(PAPER, figures, pages)
    first = page.read_text(encoding="utf-8")
    assert first.startswith(PROSE.partition(BEGIN)[0])
    assert first.endswith(PROSE.partition(END)[2])
    assert "what was there" not in first
    assert update(PAPER, figures, pages).read_text(encoding="utf-8") == first
    record(0.3).save(figures)
    second = update(PAPER, figures, pages).read_text(encoding="utf-8")
    assert second == replaced(first, listing(PAPER, figures, pages))
    assert "**does not hold**: it is high (measured 0.3; at least 0.5)" in second
    record().save(figures)
    assert update(PAPER, figures, pages).read_text(encoding="utf-8") == first


@pytest.mark.parametrize(
    "page",
    ["none", f"{BEGIN}\n", f"{END}\n", f"{END}\n{BEGIN}\n", PROSE + BEGIN, PROSE + END],
)
def test_a_page_without_its_marks_is_an_error_and_stays(pages: Path, page: str) -> None:
    path = pages / "planned.md"
    path.write_text(page, encoding="utf-8")
    with pytest.raises(
        RecordError, match=r"planned\.md: the page must have the lines .* once each"
    ):
        update(PAPER, pages.parent / "figures", pages)
    assert path.read_text(encoding="utf-8") == page


def draw(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["draw", *words])
    return int(done.value.code or 0)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with one shipped card, and the shipped page with nothing between its marks."""
    (tmp_path / "figures" / SHIPPED.key).mkdir(parents=True)
    shutil.copy(ROOT / f"figures/{SHIPPED.key}/planted.json", tmp_path / "figures" / SHIPPED.key)
    page = (ROOT / SHIPPED.page).read_text(encoding="utf-8")
    (tmp_path / "papers").mkdir()
    (tmp_path / SHIPPED.page).write_text(replaced(page, "what was there"), encoding="utf-8")
    return tmp_path


def drawn_page(root: Path) -> str:
    """The page that the cards under a directory give."""
    page = (ROOT / SHIPPED.page).read_text(encoding="utf-8")
    return replaced(page, listing(SHIPPED, root / "figures", root / "papers"))


def test_draw_brings_the_pages_beside_the_cards_up_to_date(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draw("--folder", str(checkout / "figures")) == 0
    assert str(checkout / SHIPPED.page) in capsys.readouterr().out.splitlines()
    page = checkout / SHIPPED.page
    assert page.read_text(encoding="utf-8") == drawn_page(checkout)
    page.write_text(f"{BEGIN}{END}", encoding="utf-8")
    monkeypatch.chdir(checkout)
    assert draw(f"{SHIPPED.key}/planted") == 0
    assert SHIPPED.page in capsys.readouterr().out.replace(os.sep, "/").splitlines()
    assert "planted.svg" in page.read_text(encoding="utf-8")


def test_draw_leaves_the_pages_of_other_cards_alone(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other") / "figures"
    shutil.copytree(checkout / "figures", other)
    monkeypatch.chdir(checkout)
    before = (checkout / SHIPPED.page).read_text(encoding="utf-8")
    assert draw("--folder", str(other)) == 0
    assert (checkout / SHIPPED.page).read_text(encoding="utf-8") == before


def test_draw_takes_another_directory_of_pages(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, elsewhere = str(checkout / "figures"), checkout / "docs" / "pages"
    assert draw("--folder", folder, "--pages", str(elsewhere)) == 0
    assert not elsewhere.exists()
    elsewhere.mkdir(parents=True)
    assert draw("--folder", folder, "--pages", str(elsewhere)) == 0
    assert str(page_path(SHIPPED, elsewhere)) not in capsys.readouterr().out
    shutil.copy(checkout / SHIPPED.page, elsewhere)
    assert draw("--folder", folder, "--pages", str(elsewhere)) == 0
    text = page_path(SHIPPED, elsewhere).read_text(encoding="utf-8")
    assert f"](../../figures/{SHIPPED.key}/planted.svg)" in text


def test_draw_says_which_page_lacks_its_marks(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / SHIPPED.page).write_text("prose", encoding="utf-8")
    assert draw("--folder", str(checkout / "figures")) == 1
    assert f"{SHIPPED.key}.md: the page must have" in " ".join(capsys.readouterr().err.split())


def test_pages_are_written_without_torch(checkout: Path) -> None:
    code = (
        "import sys, pathlib, interp.pages as p\n"
        "from interp.papers import load_paper\n"
        "p.update(load_paper(sys.argv[1]), pathlib.Path('figures'), pathlib.Path('papers'))\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'matplotlib')))"
    )
    words = [sys.executable, "-c", code, SHIPPED.key]
    assert subprocess.run(words, cwd=checkout, check=False).returncode == 0
