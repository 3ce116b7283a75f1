"""Scores kept by content: what was scored before a kill is not scored again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import JudgeError
from interp.files import sha256_text
from interp.judges.protocol import Judge, check_prompts, finite
from interp.source import code_hash
from interp.watching import Watch, unwatched

FILE = "scores.sqlite"
BATCH = 32
"""Responses that are scored, then kept, at a time."""
WAIT = 60.0
"""Seconds to wait for another process that writes to the same file."""
KEYS = 500
"""Keys of one query, below the bound of old SQLite versions."""


@dataclass(frozen=True)
class CachedJudge:
    """A judge whose scores are kept in ``directory``; made by :func:`cached`."""

    judge: Judge
    directory: Path
    batch: int = BATCH
    watch: Watch = unwatched

    @property
    def name(self) -> str:
        return self.judge.name

    @property
    def threshold(self) -> float:
        return self.judge.threshold

    def as_json(self) -> dict[str, Any]:
        return self.judge.as_json()

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """See :class:`interp.judges.Judge`. Responses are scored and kept ``batch`` at a time."""
        check_prompts(prompts, responses)
        code = code_hash(type(self.judge).score)
        about = json.dumps([self.judge.as_json(), code], sort_keys=True)
        asked = list(prompts) or [""] * len(responses)
        keys = [sha256_text(about, p, r) for p, r in zip(asked, responses, strict=True)]
        with _opened(self.directory / FILE) as database:
            known = _known(database, keys)
            places = {key: i for i, key in enumerate(keys) if key not in known}
            progress = self.watch(self.name, len(places))
            missing = list(places.items())
            for start in range(0, len(missing), self.batch):
                part = dict(missing[start : start + self.batch])
                chosen = [prompts[i] for i in part.values()] if prompts else []
                found = self.judge.score(chosen, [responses[i] for i in part.values()])
                new = dict(zip(part, map(finite, found), strict=True))
                with database:
                    database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", new.items())
                known |= new
                progress(len(part))
        return [known[key] for key in keys]


def cached(
    judge: Judge, directory: str | Path, *, batch: int = BATCH, watch: Watch = unwatched
) -> CachedJudge:
    """The same judge, its scores kept in a file in ``directory``, by what they depend on.

    A score is found again if the judge's description (``as_json``), its code
    (:func:`interp.source.code_hash`), the prompt and the response are the same; those without a score are
    kept, too. The file holds hashes and scores and no texts; several processes may share it. batch: responses
    that are scored at a time, the most that a kill can lose.
    """
    return CachedJudge(judge, Path(directory), batch, watch)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database at ``path``, made if it is missing. Raises JudgeError for a file that is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT)) as database:
            with database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score REAL)"
                )
            yield database
    except (sqlite3.Error, OSError) as error:
        raise JudgeError(
            f"scores cannot be kept in {path} ({error}); remove the file if it is damaged, or name another "
            "directory"
        ) from error


def _known(database: sqlite3.Connection, keys: Sequence[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for start in range(0, len(keys), KEYS):
        part = keys[start : start + KEYS]
        marks = ", ".join("?" * len(part))
        query = f"SELECT key, score FROM scores WHERE key IN ({marks})"  # marks are question marks
        found |= dict(database.execute(query, part).fetchall())
    return found
