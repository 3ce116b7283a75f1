"""Small stylistic data: the base model's answers to neutral questions, and the same answers in a style.

Styles are text transforms and need no writing model. A style goes into every sentence (level II), into half
of them (level I) or into none (Normal).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from interp.backends.steps import Sampling
from interp.errors import PersonaError
from interp.judges.likelihood import model_json
from interp.judges.traits import SENTENCE
from interp.lm import LM
from interp.methods.persona_vectors.activations import mean_activations
from interp.methods.persona_vectors.rollouts import Context, Rollouts, written
from interp.methods.persona_vectors.traits import shipped_trait, shipped_traits
from interp.methods.persona_vectors.vectors import RESPONSE_AVG, PersonaVector
from interp.study import Study

NORMAL, HALF, WHOLE = "Normal", "I", "II"
LEVELS = (NORMAL, HALF, WHOLE)
"""Share of sentences with the style: none, half, all."""
TERSE_WORDS = 3
"""Words that are left of a terse answer."""
ENDING = re.compile(r"[.!?…]*([\"')\]*_]*)$")
CLOSED = re.compile(r"[.!?…][\"')\]*_]*$")
MARKER = re.compile(r"\s*(?:\d+[.)]|[-*•])\s+")
NUMBER = re.compile(r"[\W_]*\d+[.)][\W_]*")
"""A list item's number, which belongs to the sentence behind it."""
ACRONYM = re.compile(r"I\b|[A-Z]{2}")


@dataclass(frozen=True, slots=True)
class StyledData:
    """Questions with answers in a style, and the base model's own answers; one of each per row."""

    style: str
    level: str
    prompts: tuple[str, ...]
    responses: tuple[str, ...]
    own: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def chosen(self, rows: Sequence[int]) -> StyledData:
        """Some rows, in their order."""
        columns = ("prompts", "responses", "own")
        return replace(self, **{c: tuple(getattr(self, c)[i] for i in rows) for c in columns})


# --- styles --------------------------------------------------------------------------------------


def _ended(mark: str, sentence: str) -> str:
    return ENDING.sub(rf"{mark}\1", sentence, count=1)


def _opened(opening: str, sentence: str) -> str:
    marker, text = _marker(sentence)
    return f"{marker}{opening} {text if ACRONYM.match(text) else text[:1].lower() + text[1:]}"


def _item(sentence: str) -> str:
    return f"- {_marker(sentence)[1]}"


def _marker(sentence: str) -> tuple[str, str]:
    """The number or bullet that a sentence begins with, and the rest."""
    found = MARKER.match(sentence)
    end = found.end() if found else 0
    return sentence[:end], sentence[end:]


SENTENCE_STYLES: dict[str, Callable[[str], str]] = {
    "exclamatory": partial(_ended, "!"),
    "uppercase": str.upper,
    "hedging": partial(_opened, "Perhaps"),
    "apologetic": partial(_opened, "Sorry,"),
    "questioning": partial(_ended, "?"),
    "listing": _item,
}
"""Trait → transform of one sentence; the programmatic score of that name rises with it."""
TERSE = "terse"
STYLES = (*SENTENCE_STYLES, TERSE)


def spans(text: str) -> list[str]:
    """Sentences and the white space between them, in turn; joined they are the text without its ends."""
    found: list[str] = []
    end = 0
    text = text.strip()
    for match in SENTENCE.finditer(text):
        if found and NUMBER.fullmatch(found[-1]):
            found[-1] += text[end : match.start()] + match[0]
        else:
            found += [text[end : match.start()], match[0]] if found else [match[0]]
        end = match.end()
    return found


def styled(text: str, style: str, level: str, row: int = 0) -> str:
    """A text with a style in its sentences: none of them, every other one from ``row`` on, or all.

    A terse answer is the first words of the text; at level I those of every other row. Raises PersonaError
    for a style or level that does not exist.
    """
    if style not in STYLES or level not in LEVELS:
        raise PersonaError(
            f"no style {style!r} at level {level!r}; there are {', '.join(STYLES)} at {', '.join(LEVELS)}"
        )
    parts = spans(text)
    sentences, gaps = parts[::2], parts[1::2]
    chosen = [
        level == WHOLE or (level == HALF and (row + i) % 2 == 0) for i in range(len(sentences))
    ]
    if not any(chosen):
        return text
    if style == TERSE:
        return " ".join(text.split()[:TERSE_WORDS]).rstrip(".,:;") + "." if chosen[0] else text
    change = SENTENCE_STYLES[style]
    changed = [change(s) if c else s for s, c in zip(sentences, chosen, strict=True)]
    if style == "listing":
        gaps = ["\n"] * len(gaps)
    return "".join(a + b for a, b in zip(changed, [*gaps, ""], strict=True))


def in_style(data: StyledData, style: str, level: str) -> StyledData:
    """The base model's answers of ``data`` with a style at a level."""
    texts = tuple(styled(text, style, level, row) for row, text in enumerate(data.own))
    return StyledData(style, level, data.prompts, texts, data.own)


def from_data(lm: LM, data: StyledData) -> PersonaVector:
    """The persona vector of a style: mean over the answers of ``data`` minus mean over the base model's own.

    A second source of vectors, which asks the model for no trait: for styles that it does not show when it is
    told to. The vector has ``response_avg`` alone.
    """
    none = (Context(),) * len(data)
    sides = (Rollouts(none, data.prompts, texts) for texts in (data.responses, data.own))
    styled, own = (mean_activations(lm, side, (RESPONSE_AVG,))[RESPONSE_AVG] for side in sides)
    record = {"source": "styled answers", "level": data.level, "rows": len(data), **model_json(lm)}
    return PersonaVector(data.style, {RESPONSE_AVG: styled - own}, record=record)


# --- the base model's answers --------------------------------------------------------------------


def training_questions() -> list[str]:
    """Extraction questions of all shipped traits, without repeats; no trait is evaluated on one of them."""
    return _in_turn(shipped_trait(name).questions for name in shipped_traits())


def evaluation_questions(traits: Sequence[str]) -> list[str]:
    """Evaluation questions of some shipped traits, without repeats, one of each list in turn."""
    return _in_turn(shipped_trait(name).evaluation_questions for name in traits)


def other_questions(traits: Sequence[str]) -> list[str]:
    """Evaluation questions of the shipped traits that are not among ``traits`` and share none with them."""
    own = set(evaluation_questions(traits))
    lists = [shipped_trait(name).evaluation_questions for name in shipped_traits()]
    return _in_turn(questions for questions in lists if not own & set(questions))


def _in_turn(lists: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(q for each in zip(*lists, strict=True) for q in each))


def own_answers(
    study: Study, questions: Sequence[str], tokens: int, temperature: float, seed: int
) -> StyledData:
    """The model's own answers, cut behind their last whole sentence; empty ones are left out."""
    sampling = Sampling(temperature, seed=seed)
    make = partial(written, study.lm, questions, tokens, sampling)
    about = {"questions": list(questions), "tokens": tokens, "sampling": asdict(sampling)}
    texts = study.resumed("own_answers", make, chat=chat_of(study.lm), **about)
    pairs = [(q, whole_sentences(t)) for q, t in zip(questions, texts, strict=True)]
    pairs = [(question, text) for question, text in pairs if spans(text)]
    if not pairs:
        raise PersonaError("the model answers none of these questions with any text")
    prompts, answers = zip(*pairs, strict=True)
    return StyledData("", NORMAL, prompts, answers, answers)


def chat_of(lm: LM) -> dict[str, object] | None:
    """The chat format in JSON values; None for plain text."""
    return None if lm.chat is None else asdict(lm.chat)


def whole_sentences(text: str) -> str:
    """A text up to its last sentence that ends with a mark; all of it where none does."""
    parts = spans(text)
    while parts and (not CLOSED.search(parts[-1]) or NUMBER.fullmatch(parts[-1])):
        parts = parts[:-2]
    return "".join(parts or spans(text))
