"""A paper's page, notebook and cards: what cards write on the page, and what a paper still lacks.

Cards write a table of verdicts, and every claim as measured. Nobody types these numbers, so page and cards
cannot disagree. Everything else on a page is prose, which stays as it is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from interp.claims import Outcome
from interp.errors import RecordError
from interp.files import write_text
from interp.papers import cards
from interp.printable import markdown
from interp.records import FigureRecord, outcomes
from interp.study import FigureSpec, Paper

BEGIN = "<!-- cards: begin (interp draw writes what is between these marks) -->"
END = "<!-- cards: end -->"
MISSING = "missing"
_DEFINES = re.compile(r"^\s*(async def|def|class) ", re.MULTILINE)
HEAD = "| figure | card | stands for | verdict |\n|---|---|---|---|"


def page_path(paper: Paper, pages: Path) -> Path:
    """Where a paper's page lies in a directory of pages."""
    return pages / Path(paper.page).name


def listing(paper: Paper, folder: Path, pages: Path) -> str:
    """Markdown of a paper's figures from the cards under ``folder``, in the paper's order.

    pages: the directory of the page, from which links to pictures start. A figure without a card is
    shown as missing; one that was not run here has its row alone, which says what it needs.
    """
    found = cards(folder)
    drawn = [(spec, found.get(f"{paper.key}/{spec.name}")) for spec in paper.figures]
    rows = [_row(paper, spec, card) for spec, card in drawn]
    pictures = Path(os.path.relpath(folder, pages)).as_posix()
    sections = [
        _section(spec, card, pictures)
        for spec, card in drawn
        if card is not None and card.needs is None
    ]
    return "\n\n".join(["\n".join([HEAD, *rows]), *sections])


def replaced(page: str, text: str) -> str:
    """A page with ``text`` between its marks. RecordError unless it has each mark once, in order."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or page.count(BEGIN) > 1 or page.count(END) > 1:
        raise RecordError(
            f"the page must have the lines {BEGIN!r} and {END!r} once each, in this order, around "
            "the part that its cards write"
        )
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def update(paper: Paper, folder: Path, pages: Path) -> Path:
    """Bring a paper's page up to date with its cards; returns its path.

    RecordError names a page that has no marks, which is left as it was.
    """
    path = page_path(paper, pages)
    text = listing(paper, folder, pages)
    try:
        write_text(path, replaced(path.read_text(encoding="utf-8"), text))
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    return path


def update_all(papers: Iterable[Paper], folder: Path, pages: Path | None = None) -> list[Path]:
    """Bring every paper's page that there is up to date with the cards under ``folder``; their paths.

    pages: by default ``papers`` beside the cards, not in the working directory: the cards of one place
    must not write the pages of another.
    """
    pages = pages or beside(folder, "papers")
    return [update(p, folder, pages) for p in papers if page_path(p, pages).is_file()]


def begin(paper: Paper, folder: Path) -> None:
    """Write a page with a paper's title and the marks, where the directory of pages has none of it yet."""
    path = page_path(paper, beside(folder, "papers"))
    if path.parent.is_dir() and not path.exists():
        write_text(path, f"# {paper.title}\n\narXiv {paper.arxiv}\n\n{BEGIN}\n{END}\n")


def beside(folder: Path, name: str) -> Path:
    """A directory beside that of the cards."""
    return Path(os.path.normpath(folder / ".." / name))


def problems(paper: Paper, folder: Path) -> Iterator[str]:
    """What is amiss with a paper's cards, page and notebook, one sentence each.

    folder: directory of the cards; ``papers`` and ``notebooks`` lie beside it.
    """
    yield from _of_cards(paper, folder)
    yield from _of_page(paper, folder)
    yield from _of_notebook(beside(folder, "notebooks") / Path(paper.notebook).name)


def _of_cards(paper: Paper, folder: Path) -> Iterator[str]:
    found = cards(folder)
    for spec in paper.figures:
        key = f"{paper.key}/{spec.name}"
        if (card := found.pop(key, None)) is None:
            yield f"{key} has no card: interp run {paper.key} --figure {spec.name}"
        elif card.paper_figure != spec.stands_for or (card.needs is None) != (
            spec.make is not None
        ):
            yield f"the card {key} is not what the paper lists: interp run {paper.key} --figure {spec.name}"
        elif card.needs is None and not (folder / f"{key}.svg").is_file():
            yield f"{key} has no picture: interp draw {key}"
    for key in found:
        if key.startswith(f"{paper.key}/"):
            yield f"{key} is no figure that the paper lists: delete its card, or list it"


def _of_page(paper: Paper, folder: Path) -> Iterator[str]:
    path = page_path(paper, beside(folder, "papers"))
    if not path.is_file():
        yield f"there is no page {path}: make the directory {path.parent}, and interp run begins it"
        return
    page = path.read_text(encoding="utf-8")
    for text in (paper.title, paper.arxiv):
        if text not in page:
            yield f"{path} does not name {text}"
    try:
        if replaced(page, listing(paper, folder, path.parent)) != page:
            yield f"{path} does not say what the cards say: interp draw"
    except RecordError as error:
        yield f"{path}: {error}"


def _of_notebook(path: Path) -> Iterator[str]:
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [c for c in cells if c["cell_type"] == "code"]
        texts = ["".join(c["source"]) for c in code]
    except FileNotFoundError:
        yield f"there is no notebook {path}"
        return
    except (ValueError, KeyError, TypeError):
        yield f"{path} is no notebook"
        return
    if any(_DEFINES.search(text) for text in texts):
        yield f"{path} defines a function or a class: move it into the paper's package"
    if any(c.get("outputs") for c in code):
        yield f"{path} holds outputs: clear them"


def _row(paper: Paper, spec: FigureSpec, card: FigureRecord | None) -> str:
    verdict = MISSING if card is None else card.verdict
    key = f"{paper.key}/{spec.name}"
    cells = [markdown(text) for text in (spec.title, spec.stands_for or "ours", verdict)]
    return f"| {cells[0]} | card `{key}` | {cells[1]} | {cells[2]} |"


def _section(spec: FigureSpec, card: FigureRecord, pictures: str) -> str:
    """The picture of a card, and its claims."""
    parts = [f"### {markdown(spec.title)}", f"![{markdown(card.title)}]({pictures}/{card.key}.svg)"]
    if claims := "\n".join(_claims(card)):
        parts.append(claims)
    return "\n\n".join(parts)


def _claims(card: FigureRecord) -> Iterator[str]:
    for outcome in outcomes(card):
        holds = "holds" if outcome.holds else "**does not hold**"
        measured = _numbers(outcome.ours)
        yield f"- {holds}: {markdown(outcome.claim.statement)} (measured {measured}; {_test(outcome)})"


def _test(outcome: Outcome) -> str:
    """What a value was tested for: ``at most 0.3``, ``falls``, ``at least 0, tolerance 0.1``."""
    claim = outcome.claim
    limit = "" if claim.theirs is None else f" {_numbers(claim.theirs)}"
    tolerance = f", tolerance {_numbers(claim.tolerance)}" if claim.tolerance else ""
    return f"{claim.test}{limit}{tolerance}"


def _numbers(value: Any) -> str:
    """One number or several, floats with three digits."""
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
