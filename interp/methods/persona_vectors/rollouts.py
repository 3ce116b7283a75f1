"""Responses to a trait's questions under both of its system prompts, kept by content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from interp.backends.steps import Sampling
from interp.data.chat import ChatFormat
from interp.files import sha256_text
from interp.lm import LM
from interp.methods.persona_vectors.recipe import ExtractionRecipe
from interp.methods.persona_vectors.traits import Trait
from interp.study import Study


@dataclass(frozen=True, slots=True)
class Context:
    """What stands before a question: a system text, earlier turns, or both; nothing for the model's own
    format. name: shown in figures."""

    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    name: str = ""

    def on(self, lm: LM) -> LM:
        """The model with this context in its chat format."""
        chat = lm.chat or ChatFormat()
        if self.system is not None:
            chat = replace(chat, system=self.system)
        return lm.using(chat=replace(chat, history=(*chat.history, *self.history)))


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Responses of one side; row i of the other side has the same question, instruction pair and sample.

    contexts, prompts, responses: one per row.
    """

    contexts: tuple[Context, ...]
    prompts: tuple[str, ...]
    responses: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def chosen(self, rows: Sequence[int]) -> Rollouts:
        """Some rows, in their order."""
        columns = (self.contexts, self.prompts, self.responses)
        return Rollouts(*(tuple(column[i] for i in rows) for column in columns))


def rollouts(
    study: Study,
    trait: Trait,
    questions: Sequence[str],
    recipe: ExtractionRecipe,
    *,
    positive: bool,
    samples: int | None = None,
) -> Rollouts:
    """Responses to questions under every instruction of one side: instruction by instruction.

    Each instruction is a step that the study keeps. Draws of different steps are independent.
    """
    samples = recipe.samples if samples is None else samples
    history = trait.history(recipe.demonstrations, positive=positive)
    columns: tuple[list[Any], ...] = ([], [], [])
    for pair in range(len(trait.instructions)):
        context = Context(trait.system(pair, positive=positive), history)
        seed = int(sha256_text(str(recipe.seed), str(pair), str(positive))[:8], 16)
        sampling = Sampling(recipe.temperature, samples, seed)
        found = _step(study, context, questions, recipe.tokens, sampling)
        columns[0].extend([context] * len(found))
        columns[1].extend(q for q in questions for _ in range(samples))
        columns[2].extend(found)
    return Rollouts(*map(tuple, columns))


def _step(
    study: Study, context: Context, questions: Sequence[str], tokens: int, sampling: Sampling
) -> list[str]:
    lm = context.on(study.lm)
    assert lm.chat is not None
    about = {
        "questions": list(questions),
        "tokens": tokens,
        "sampling": asdict(sampling),
        "chat": asdict(lm.chat),
        "dtype": str(next(lm.hf.parameters()).dtype),
    }
    make = partial(written, lm, questions, tokens, sampling)
    return study.resumed("persona_rollouts", make, **about)


def written(lm: LM, questions: Sequence[str], tokens: int, sampling: Sampling) -> list[str]:
    """Responses, all samples of the first question first."""
    texts = lm.generate(list(questions), tokens=tokens, sampling=sampling).texts
    return [text for each in texts for text in each] if sampling.samples > 1 else texts
