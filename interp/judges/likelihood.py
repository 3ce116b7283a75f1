"""Log-likelihood ratio: under which of two system prompts a response is the likelier one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.data.chat import ChatFormat
from interp.errors import JudgeError
from interp.judges.protocol import check_prompts, spread
from interp.lm import LM
from interp.records import without_folders


@dataclass(frozen=True, eq=False)
class LikelihoodRatio:
    """Nats per token by which a response is likelier under a trait's system prompt than under another.

    Mean per-token log-probability of the response with ``positive`` as system text less that with
    ``negative``, averaged over the pairs. Empty responses have no score. lm: the model without an edit.
    positive, negative: as many texts as each other, at least one; use other texts here than those with
    which the responses were made.
    """

    lm: LM
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    name: str = "likelihood ratio"
    threshold: float = 0.0

    def __post_init__(self) -> None:
        for side in ("positive", "negative"):
            object.__setattr__(self, side, tuple(_listed(getattr(self, side))))
        check_pairs(self.positive, self.negative)

    @classmethod
    def load(cls, lm: LM, path: Path) -> LikelihoodRatio:
        """The ratio of the pairs in a file (:func:`load_pairs`)."""
        return cls(lm, *load_pairs(path), path.stem)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """See :class:`interp.judges.Judge`; needs prompts."""
        check_prompts(prompts, responses, self.name)
        rows = [i for i, text in enumerate(responses) if text.strip()]
        if not rows:
            return [None] * len(responses)
        chosen = [prompts[i] for i in rows], [responses[i] for i in rows]
        pairs = zip(self.positive, self.negative, strict=True)
        ratios = [self._means(pos, *chosen) - self._means(neg, *chosen) for pos, neg in pairs]
        return spread((sum(ratios) / len(ratios)).tolist(), rows, len(responses))

    def _means(self, system: str, prompts: list[str], responses: list[str]) -> Tensor:
        """Mean log-probability per token ``[response]`` with a system text."""
        chat = replace(self.lm.chat or ChatFormat(), system=system)
        return self.lm.using(chat=chat).logprobs(prompts, responses).means

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": "likelihood ratio",
            "name": self.name,
            "positive": list(self.positive),
            "negative": list(self.negative),
            **model_json(self.lm),
        }


def load_pairs(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Positive and negative system texts of a JSON file.

    The file is ``{"positive": […], "negative": […]}`` or ``{"instruction": [{"pos": …, "neg": …}, …]}``.
    Raises JudgeError for any other, and for sides of other lengths.
    """
    try:
        content = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JudgeError(f"the file of system texts {path} cannot be read: {error}") from None
    try:
        if "instruction" in content:
            sides = [[pair[side] for pair in content["instruction"]] for side in ("pos", "neg")]
        else:
            sides = [_listed(content[side]) for side in ("positive", "negative")]
    except (KeyError, TypeError):
        sides = [[None]]
    if not all(isinstance(text, str) for side in sides for text in side):
        raise JudgeError(
            f'{path} must hold {{"positive": [texts], "negative": [texts]}}, or pairs of "pos" and "neg" '
            'under "instruction"'
        )
    check_pairs(*sides)
    return tuple(sides[0]), tuple(sides[1])


def check_pairs(positive: Sequence[str], negative: Sequence[str]) -> None:
    """Raise JudgeError unless there are as many positive texts as negative ones, and any."""
    if len(positive) != len(negative) or not positive:
        raise JudgeError(
            f"a likelihood ratio needs pairs of system texts, got {len(positive)} positive and "
            f"{len(negative)} negative"
        )


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def model_json(lm: LM) -> dict[str, Any]:
    """What scores made by a model depend on: its weights, precision and chat format."""
    from interp.edits import fingerprint

    return {
        "model": without_folders(getattr(lm.backend, "source", "")),
        "fingerprint": fingerprint(lm.hf, lm.anatomy),
        "dtype": str(next(lm.hf.parameters()).dtype).removeprefix("torch."),
        "chat": None if lm.chat is None else asdict(lm.chat),
    }
