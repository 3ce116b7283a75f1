"""Traits: contrastive instructions, questions and a rubric, in the JSON files of the paper's authors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from interp.errors import PersonaError
from interp.files import sha256_text, write_json

SHIPPED = Path(__file__).with_name("traits")
HELPFUL = "helpful"
"""The negative assistant's adjective where a trait has no opposite of its own."""
LEAST_STEM = 4
STEM_SHARE = 0.7
"""A question names a trait if one of its words begins with this share of a word of the trait's name, and with
``LEAST_STEM`` letters: sycophancy and sycophantic, not formal and form."""
FILLERS = frozenset(
    {"speaks", "speak", "talks", "like", "with", "that", "this", "very", "answers", "from"}
)
"""Words of a description-like name ("speaks like a pirate") that questions may hold."""
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Trait:
    """A trait: what a model is told to show or not to show, and what it is asked.

    name: shown beside results and part of file names. instructions: pairs of system texts, the first with the
    trait. questions: for extraction; evaluation_questions: for everything that is reported. eval_prompt: the
    rubric of a judging model, with ``{question}`` and ``{answer}``. adjective, opposite: "You are a(n)
    ADJECTIVE assistant." stands before each instruction. score: name in :data:`interp.judges.TRAITS` of a
    programmatic score, if there is one. demonstrations: questions with an answer that shows the trait and one
    that does not, for models that do not follow instructions alone. made_by: who wrote the texts.

    Raises PersonaError for empty texts, duplicates, questions in both lists, and a rubric without its places.
    """

    name: str
    instructions: tuple[tuple[str, str], ...]
    questions: tuple[str, ...]
    evaluation_questions: tuple[str, ...]
    eval_prompt: str
    description: str = ""
    adjective: str = ""
    opposite: str = HELPFUL
    score: str | None = None
    demonstrations: tuple[tuple[str, str, str], ...] = ()
    made_by: str = ""

    def __post_init__(self) -> None:
        if wrong := self._wrong():
            raise PersonaError(f"the trait {self.name!r} {wrong}")
        if not self.adjective:
            object.__setattr__(self, "adjective", self.name)

    def _wrong(self) -> str | None:
        """What is wrong with the texts; None if nothing is."""
        texts = [t for pair in self.instructions for t in pair]
        shown = [question for question, _, _ in self.demonstrations]
        questions = [*self.questions, *self.evaluation_questions, *shown]
        written = [*texts, *questions, *(t for each in self.demonstrations for t in each)]
        if not self.name.strip() or not self.instructions or not self.questions:
            return "needs a name, pairs of instructions, and questions"
        if any(not isinstance(t, str) or not t.strip() for t in written):
            return "has an empty instruction, question or demonstration; remove it"
        if not all(map(is_unicode, (*written, self.eval_prompt, self.name, self.description))):
            return "has a text with half a character (a lone surrogate); write it anew"
        if twice := duplicates(texts):
            return f"has the same instruction twice: {twice[0]!r}; remove one"
        if twice := duplicates(questions):
            return (
                f"asks the same twice: {twice[0]!r}; extraction questions, evaluation questions and "
                "demonstrations must differ"
            )
        if missing := [
            place for place in ("{question}", "{answer}") if place not in self.eval_prompt
        ]:
            return f"has no {missing[0]} in its eval_prompt; write it where that text belongs"
        return None

    def system(self, pair: int, *, positive: bool) -> str:
        """System text of a rollout: the assistant's adjective and one instruction."""
        adjective = self.adjective if positive else self.opposite
        article = "an" if adjective[:1].lower() in "aeiou" else "a"
        return f"You are {article} {adjective} assistant. {self.instructions[pair][not positive]}"

    def history(self, count: int, *, positive: bool) -> tuple[tuple[str, str], ...]:
        """The first ``count`` demonstrations of one side as earlier turns. PersonaError for fewer."""
        if count > len(self.demonstrations):
            raise PersonaError(
                f"the trait {self.name!r} has {len(self.demonstrations)} demonstrations, not {count}; write "
                "more into its file, or ask for fewer (demonstrations, 0 for none)"
            )
        return tuple((q, pos if positive else neg) for q, pos, neg in self.demonstrations[:count])

    @cached_property
    def sha256(self) -> str:
        """Hash of all that rollouts and judges read."""
        return sha256_text(json.dumps(self.as_json() | {"made_by": ""}, sort_keys=True))

    def named_in(self, question: str) -> bool:
        """Whether a question names the trait."""
        return names_trait(question, (self.name, self.adjective))

    def without_pairs(self, held_out: int) -> Trait:
        """The trait without its last ``held_out`` pairs of instructions. PersonaError if none is left."""
        if not 0 <= held_out < len(self.instructions):
            raise PersonaError(
                f"{held_out} of {len(self.instructions)} pairs of instructions cannot be held out"
            )
        return replace(self, instructions=self.instructions[: len(self.instructions) - held_out])

    # --- files --------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """The authors' keys (``instruction``, ``questions``, ``eval_prompt``) and our own beside them."""
        return {
            "name": self.name,
            "description": self.description,
            "adjective": self.adjective,
            "opposite": self.opposite,
            "score": self.score,
            "made_by": self.made_by,
            "instruction": [{"pos": pos, "neg": neg} for pos, neg in self.instructions],
            "questions": list(self.questions),
            "evaluation_questions": list(self.evaluation_questions),
            "demonstrations": [
                {"question": question, "pos": pos, "neg": neg}
                for question, pos, neg in self.demonstrations
            ],
            "eval_prompt": self.eval_prompt,
        }

    def save(self, path: Path | str) -> Path:
        """Write the trait as JSON, atomically; the path."""
        write_json(Path(path), self.as_json())
        return Path(path)

    @classmethod
    def load(cls, path: Path | str, evaluation: Path | str | None = None) -> Trait:
        """The trait in a JSON file, ours or the authors' (``trait_data_extract/TRAIT.json``).

        evaluation: the authors' second file, whose questions are for evaluation. Raises PersonaError.
        """
        path = Path(path).expanduser()
        content = _read(path)
        if evaluation is not None:
            content = {
                **content,
                "evaluation_questions": _read(Path(evaluation)).get("questions", []),
            }
        return cls.from_json(content, path.stem, str(path.name))

    @classmethod
    def from_json(cls, content: Any, name: str, source: str) -> Trait:
        """The trait in a JSON object. name: for one that names itself not. source: shown in errors."""
        try:
            pairs = tuple((_text(p["pos"]), _text(p["neg"])) for p in content["instruction"])
            lists = [
                tuple(map(_text, content.get(key, ())))
                for key in ("questions", "evaluation_questions")
            ]
            shown = tuple(
                (_text(d["question"]), _text(d["pos"]), _text(d["neg"]))
                for d in content.get("demonstrations", ())
            )
            texts = {
                key: _text(content[key])
                for key in ("description", "adjective", "opposite", "score", "made_by")
                if content.get(key)
            }
            own = _text(content.get("name") or name)
            rubric = _text(content["eval_prompt"])
            return cls(own, pairs, lists[0], lists[1], rubric, demonstrations=shown, **texts)
        except (KeyError, TypeError, AttributeError) as error:
            raise PersonaError(
                f"{source} is no trait file ({type(error).__name__}: {error}); it needs 'instruction' (pairs "
                "of 'pos' and 'neg'), 'questions' and 'eval_prompt'"
            ) from None


def shipped_traits() -> tuple[str, ...]:
    """Names of the traits that come with the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.json")))


def shipped_trait(name: str) -> Trait:
    """A trait that comes with the package. Raises PersonaError with those that exist."""
    if name not in shipped_traits():
        raise PersonaError(f"no shipped trait {name!r}; there are {', '.join(shipped_traits())}")
    return Trait.load(SHIPPED / f"{name}.json")


def is_unicode(text: str) -> bool:
    """Whether a text can be written: JSON may hold halves of characters."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def same_text(text: str) -> str:
    """A text without case, marks and spaces at its ends, by which duplicates are found."""
    return " ".join(re.findall(r"\w+", text.lower()))


def duplicates(texts: Iterable[str]) -> list[str]:
    """Texts that were there before, in other case or with other marks."""
    seen: set[str] = set()
    found = []
    for text in texts:
        key = same_text(text) or text
        if key in seen:
            found.append(text)
        seen.add(key)
    return found


def names_trait(question: str, names: Sequence[str]) -> bool:
    """Whether a question holds a word of a trait's names, in that or a related form (:data:`STEM_SHARE`)."""
    words = set(_WORD.findall(question.lower()))
    wanted = {w for name in names for w in _WORD.findall(name.lower())} - FILLERS
    return any(_related(word, trait) for trait in wanted for word in words)


def _related(word: str, trait: str) -> bool:
    if len(trait) < LEAST_STEM:
        return False
    common = 0
    for a, b in zip(word, trait, strict=False):
        if a != b:
            break
        common += 1
    return common >= max(LEAST_STEM, STEM_SHARE * len(trait))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PersonaError(f"the trait file {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise PersonaError(f"{path} is no trait file: it must hold a JSON object")
    return content


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
