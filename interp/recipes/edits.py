"""What a user sets of a refusal edit; what is left open (None) is chosen on the select split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from interp.errors import InterpError
from interp.recipes.base import setting

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class DirectionRecipe:
    """How a direction is read. winsor: quantile of |x| per prompt, 1 for none."""

    orthogonal_to_comply: bool = setting(
        True, "make the direction orthogonal to the mean of answerable prompts", advanced=True
    )
    winsor: float = setting(
        1.0, "clip activations at this quantile of |x|", advanced=True, above=0, most=1
    )


@dataclass(frozen=True, slots=True)
class AblationEdit:
    """Directional ablation at every writer of some blocks."""

    method: ClassVar[str] = "ablation"

    strength: float | None = setting(
        None, "share removed: 0 nothing, 1 all, 2 reflects, negative deepens refusal",
        shown="1",
    )  # fmt: skip
    block: int | None = setting(
        None, "block at whose output the direction is read", least=0, shown="chosen"
    )
    first_block: int | None = setting(None, "first edited block", least=0, shown="chosen")
    embeddings: bool = setting(False, "edit the embeddings as well")
    direction: DirectionRecipe = field(default_factory=DirectionRecipe)


@dataclass(frozen=True, slots=True)
class Learning:
    """How an edit is learned from its closed form: loss terms, data and steps.

    Weights stand beside that of first-token KL on answerable prompts, which is 1.
    """

    steps: int = setting(32, "steps of Adam", advanced=True, least=0)
    minibatches: int = setting(
        16, "parts of prompts and texts; each step uses one", advanced=True, least=1
    )
    write_step: float = setting(
        0.1, "step size for what probes write, relative to its RMS", advanced=True, least=0
    )
    probe_step: float = setting(
        0.02, "step size for probes, relative to their RMS", advanced=True, least=0
    )
    later_weight: float = setting(
        6.0, "weight of KL at later tokens of responses, in chats and as plain text", advanced=True,
        least=0,
    )  # fmt: skip
    passage_weight: float = setting(
        20.0, "weight of KL at tokens of English prose by others", advanced=True, least=0
    )
    half_weight: float = setting(
        0.6, "weight of KL on answerable prompts that are shifted towards requests", advanced=True,
        least=0,
    )  # fmt: skip
    half_shift: float = setting(
        0.4, "share of the class difference by which those are shifted: on new prompts probes sometimes "
        "read half a refusal, on the fit split they never do", advanced=True,
    )  # fmt: skip
    clearance: float = setting(
        1.5, "logits by which the opening of a refusal should lose", advanced=True
    )
    most_answers: int = setting(
        480, "answerable prompts that are used, at most", advanced=True, least=1
    )
    most_requests: int = setting(
        192, "refused requests that are used, at most", advanced=True, least=1
    )
    most_texts: int = setting(
        48, "texts of each kind that are used, at most", advanced=True, least=1
    )


@dataclass(frozen=True, slots=True)
class LeastDisturbanceEdit:
    """The least-disturbance edit: closed form, acting after an opener, and learned, where asked.

    Raises InterpError for a setting that the others make meaningless.
    """

    method: ClassVar[str] = "least-disturbance"

    after_opener: str | None = setting(
        None, "act after this opener of a refusal as well, which asks for less at the first token; auto "
        "finds what the model's refusals open with", words=(AUTO,),
    )  # fmt: skip
    learn: float | None = setting(
        None, "learn what the edit reads and writes, where a logit of refusal margin may cost so many "
        "nats of KL; 0 keeps the closed form, which takes a minute less", least=0,
        shown="0; 0.06 with --after-opener",
    )  # fmt: skip
    strength: float | None = setting(None, "share of the class difference removed", shown="chosen")
    block: int | None = setting(
        None, "block at whose output the direction is read", least=0, shown="chosen"
    )
    first_block: int | None = setting(None, "first edited block", least=0, shown="chosen")
    opener_strength: float | None = setting(
        None, "share removed after the opener", advanced=True, least=0, shown="2.5"
    )
    opener_weight: float = setting(
        0.05, "weight of answerable prompts after the opener beside the decision position",
        advanced=True, least=0,
    )  # fmt: skip
    attention: float | None = setting(
        None, "share that attention writers carry beside 1 for MLPs", advanced=True, least=0,
        shown="1; 0.3 with --after-opener",
    )  # fmt: skip
    ridge: float | str | None = setting(
        None, "ε in units of the mean diagonal of Σ; auto takes for each writer the one that moves left-out "
        "comply rows least", advanced=True, above=0, words=(AUTO,),
        shown="0.02; 0.01 with --after-opener",
    )  # fmt: skip
    most_pool: int = setting(
        512, "prompts of --pool that are read, at most", advanced=True, least=1
    )
    responses: int = setting(
        200, "keep what the model writes in response to so many answerable prompts, in its chat and as "
        "plain text", advanced=True, least=0,
    )  # fmt: skip
    response_weight: float = setting(
        0.1, "weight of responses beside the decision position", advanced=True, least=0
    )
    all_requests: bool = setting(
        False, "fit on every request, also on those that the model answers", advanced=True
    )
    direction: DirectionRecipe = field(default_factory=DirectionRecipe)
    learning: Learning = field(default_factory=Learning)

    def __post_init__(self) -> None:
        without = {
            "opener_strength": ("after_opener", not self.after_opener),
            "opener_weight": ("after_opener", not self.after_opener),
            "response_weight": ("responses", not self.responses),
        }
        defaults = {name: each.default for name, each in self.__dataclass_fields__.items()}
        for name, (needed, missing) in without.items():
            if missing and getattr(self, name) != defaults[name]:
                raise InterpError(f"{name} goes with {needed}, without which it does nothing")
