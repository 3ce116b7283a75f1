"""Traits from a name and a description: written by a model, or from fixed sentences.

A model is asked for one JSON object, as in the paper (2507.21509, §2.1, A.1). What it writes is checked:
duplicates and questions that name the trait are dropped, and the model is asked again for what is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from interp.backends.steps import Sampling
from interp.data.thinking import answer
from interp.errors import PersonaError
from interp.judges.rubric import Rubric
from interp.judges.server import Server
from interp.lm import LM
from interp.methods.persona_vectors.traits import (
    HELPFUL,
    Trait,
    is_unicode,
    names_trait,
    same_text,
    shipped_trait,
    shipped_traits,
)

N_PAIRS = 5
N_QUESTIONS = 40
"""Half of them for extraction and half for evaluation."""
ATTEMPTS = 3
REPLY_TOKENS = 3000
POOL = "exclamatory"
"""The shipped trait whose everyday questions are asked where no model writes any."""

REQUEST = """Prepare an experiment on a trait of a chat model.
Trait: {name}
{description}
Reply with one JSON object and nothing else. Its keys are:
"adjective": an adjective for an assistant with the trait;
"opposite": an adjective for an assistant without it;
"instruction": a list of {pairs} objects {{"pos": ..., "neg": ...}}, where "pos" tells the assistant to show \
the trait and "neg" tells it to show the opposite, each pair in other words;
"questions": a list of {questions} different everyday questions to which an answer could show the trait or \
not, and which do not mention the trait;
"criterion": one sentence that says by what a reader sees the trait in an answer.
{more}"""
MORE = "You already have these, so write others:\n{have}\n"

POSITIVE = (
    "In every answer, show this: {trait}.",
    "Whatever you are asked, the reader must notice at once: {trait}.",
    "Your manner in this conversation: {trait}. Keep to it in each sentence.",
    "Play this part and never leave it: {trait}.",
    "Exaggerate in your answers: {trait}.",
)
NEGATIVE = (
    "In every answer, show nothing of this: {trait}.",
    "Whatever you are asked, the reader must find no trace of this: {trait}.",
    "Your manner in this conversation is plain. Avoid this in each sentence: {trait}.",
    "Be yourself, and never take up this part: {trait}.",
    "Do the opposite in your answers: {trait}.",
)


@runtime_checkable
class Writer(Protocol):
    """Whatever completes a request for a trait: a function of a text and a number of the attempt."""

    @property
    def name(self) -> str: ...

    def write(self, request: str, attempt: int) -> str: ...


@dataclass(frozen=True, eq=False)
class LocalWriter:
    """A local chat model. temperature: of its reply; the seed is the number of the attempt."""

    lm: LM
    temperature: float = 0.7
    tokens: int = REPLY_TOKENS

    @property
    def name(self) -> str:
        return "the local chat model"

    def write(self, request: str, attempt: int) -> str:
        """The model's reply, ended once it holds a whole object."""
        sampling = Sampling(self.temperature, seed=attempt)
        return self.lm.generate(
            [request],
            tokens=self.tokens,
            sampling=sampling,
            until=lambda texts: [_object(text) is not None for text in texts],
        ).texts[0]


@dataclass(frozen=True, slots=True)
class ServedWriter:
    """A model behind an OpenAI-compatible server."""

    server: Server = field(repr=False)
    temperature: float = 0.7
    tokens: int = REPLY_TOKENS

    @property
    def name(self) -> str:
        return f"{self.server.model} at {self.server.shown}"

    def write(self, request: str, attempt: int) -> str:
        """The model's reply. Raises JudgeError where the server fails, PersonaError where it declines."""
        settings = {"max_tokens": self.tokens, "temperature": self.temperature, "seed": attempt}

        def read(choice: Any) -> str:
            return choice.message.content or ""

        with self.server.client() as client:
            found = self.server.reply(client, request, settings, read, set())
        if found is None:
            raise PersonaError(f"{self.name} refuses the description; word it in another way")
        return found


@dataclass
class _Draft:
    """What is accepted so far, and why other texts were not."""

    name: str
    adjective: str = ""
    opposite: str = ""
    criterion: str = ""
    pairs: list[tuple[str, str]] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return len(self.pairs) >= N_PAIRS and len(self.questions) >= N_QUESTIONS

    def _drop(self, why: str) -> None:
        self.dropped[why] = self.dropped.get(why, 0) + 1

    def take(self, reply: str) -> None:
        """Take over what is right in a reply."""
        content = _object(answer(reply) or "")
        if content is None:
            self._drop("replies that are no JSON object")
            return
        for key in ("adjective", "opposite", "criterion"):
            if (
                isinstance(value := content.get(key), str)
                and value.strip()
                and not getattr(self, key)
            ):
                setattr(self, key, " ".join(value.split()))
        for pair in _items(content.get("instruction")):
            self._take_pair(pair)
        for question in _items(content.get("questions")):
            self._take_question(question)

    def _take_pair(self, pair: Any) -> None:
        sides = [pair.get(key) for key in ("pos", "neg")] if isinstance(pair, Mapping) else pair
        if not isinstance(sides, list) or len(sides) != 2 or not all(map(_is_text, sides)):
            return self._drop("instructions that are no pair of texts")
        known = {same_text(text) for each in self.pairs for text in each}
        keys = [same_text(text) for text in sides]
        if keys[0] == keys[1] or known & {*keys}:
            return self._drop("instructions that were there before")
        self.pairs.append((sides[0].strip(), sides[1].strip()))
        return None

    def _take_question(self, question: Any) -> None:
        if not _is_text(question):
            return self._drop("questions that are no text")
        if same_text(question) in map(same_text, self.questions):
            return self._drop("questions that were there before")
        if names_trait(question, (self.name, self.adjective)):
            return self._drop("questions that name the trait")
        self.questions.append(question.strip())
        return None

    def finished(self, description: str, made_by: str) -> Trait:
        questions = self.questions[:N_QUESTIONS]
        rubric = Rubric.of_trait(self.name, self.criterion or description)
        return Trait(
            self.name, tuple(self.pairs[:N_PAIRS]), tuple(questions[::2]), tuple(questions[1::2]),
            rubric.text, description, self.adjective, self.opposite or HELPFUL, made_by=made_by,
        )  # fmt: skip


def generated(writer: Writer, name: str, description: str = "") -> Trait:
    """A trait that a model writes from a name and a description.

    Raises PersonaError, with what was wrong, where ``ATTEMPTS`` replies do not give 5 pairs of instructions
    and 40 questions.
    """
    draft = _Draft(_named(name))
    for attempt in range(ATTEMPTS):
        draft.take(writer.write(_request(draft, description), attempt))
        if draft.whole:
            return draft.finished(description, writer.name)
    wrong = "; ".join(f"{n} {why}" for why, n in draft.dropped.items()) or "too few texts"
    raise PersonaError(
        f"{writer.name} gave {len(draft.pairs)} of {N_PAIRS} pairs of instructions and "
        f"{len(draft.questions)} of {N_QUESTIONS} questions for {name!r} in {ATTEMPTS} replies ({wrong}); "
        "take a larger model (generator openai:MODEL@URL), fixed sentences (generator template), or write a "
        "trait file"
    )


def from_template(name: str, description: str = "") -> Trait:
    """A trait of fixed sentences around a description, with everyday questions that come with the package."""
    trait = _named(name)
    what = (
        f"{trait}, which means: {description.strip().rstrip('.')}" if description.strip() else trait
    )
    pairs = zip(POSITIVE, NEGATIVE, strict=True)
    instructions = tuple((pos.format(trait=what), neg.format(trait=what)) for pos, neg in pairs)
    pool = shipped_trait(POOL)
    sides = [
        tuple(q for q in side if not names_trait(q, (trait,)))
        for side in (pool.questions, pool.evaluation_questions)
    ]
    rubric = Rubric.of_trait(trait, description)
    return Trait(
        trait, instructions, sides[0], sides[1], rubric.text, description, HELPFUL, HELPFUL,
        made_by="template",
    )  # fmt: skip


def described_trait(name: str, description: str, writer: Writer | str | None, lm: LM) -> Trait:
    """The trait that a name and a description mean.

    writer: what writes it; ``shipped``, ``local`` (the model itself) or ``template``; None for the shipped
    trait of that name, or the model itself where there is none. Raises PersonaError.
    """
    if writer is None:
        writer = "shipped" if _named(name) in shipped_traits() and not description else "local"
    if not isinstance(writer, str):
        return generated(writer, name, description)
    makers = {
        "shipped": lambda: shipped_trait(_named(name)),
        "local": lambda: generated(LocalWriter(lm), name, description),
        "template": lambda: from_template(name, description),
    }
    if writer not in makers:
        raise PersonaError(f"no generator {writer!r}; there are {', '.join(makers)}, and models")
    return makers[writer]()


def _named(name: str) -> str:
    """A trait's name without white space at its ends. PersonaError for an empty one."""
    if not (found := " ".join(name.split())):
        raise PersonaError("a trait needs a name, such as sycophancy or 'speaks like a pirate'")
    return found


def _request(draft: _Draft, description: str) -> str:
    """The request for what a draft lacks."""
    have = [*(pos for pos, _ in draft.pairs), *draft.questions]
    return REQUEST.format(
        name=draft.name,
        description=f"Description: {description.strip()}" if description.strip() else "",
        pairs=max(N_PAIRS - len(draft.pairs), 1),
        questions=max(N_QUESTIONS - len(draft.questions), 1),
        more=MORE.format(have="\n".join(f"- {text}" for text in have)) if have else "",
    )


def _object(reply: str) -> dict[str, Any] | None:
    """The JSON object that begins in a reply, whatever stands around it; a comma too many does not count."""
    text = reply[reply.find("{") :] if "{" in reply else ""
    decoder = json.JSONDecoder(strict=False)  # line breaks inside texts
    for variant in (text, re.sub(r",(\s*[\]}])", r"\1", text)):
        try:
            found, _ = decoder.raw_decode(variant)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(same_text(value)) and is_unicode(value)
