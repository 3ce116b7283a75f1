"""What a user sets of a refusal edit; what is left open (None) is chosen on the select split."""

from __future__ import annotations

from dataclasses import dataclass, field

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
class LeastDisturbanceEdit:
    """The least-disturbance edit: closed form, acting after an opener, refit and learned where asked.

    Raises InterpError for a setting that the others make meaningless.
    """

    after_opener: str | None = setting(
        None, "act after this opener of a refusal as well, which asks for less at the first token; auto "
        "finds what the model's refusals open with", words=(AUTO,),
    )  # fmt: skip
    learn: float | None = setting(
        None, "learn what the edit reads and writes, where a logit of refusal margin may cost so many "
        "nats of KL; 0 keeps the closed form, which takes minutes less", least=0,
        shown="0; 0.06 with --after-opener",
    )  # fmt: skip
    strength: float | None = setting(None, "share of the class difference removed", shown="chosen")
    block: int | None = setting(
        None, "block at whose output the direction is read", least=0, shown="chosen"
    )
    first_block: int | None = setting(None, "first edited block", least=0, shown="chosen")
    opener_strength: float | None = setting(
        None, "share removed after the opener", advanced=True, least=0, shown="chosen"
    )
    refit_strength: float | None = setting(
        None, "fit again on the requests that are still refused, at this share of the strengths; 0 for once",
        advanced=True, least=0, shown="chosen",
    )  # fmt: skip
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
    response_tokens: int = setting(
        16, "response tokens of comply prompts that the edit keeps unchanged", advanced=True,
        least=0,
    )  # fmt: skip
    response_weight: float = setting(
        0.05, "weight of response tokens beside the decision position", advanced=True, least=0
    )
    prose: int | None = setting(
        None, "keep what the model writes in response to so many answerable prompts, as a response and "
        "as plain text, and shipped English prose while learning", advanced=True, least=0,
        shown="0; 200 with --after-opener",
    )  # fmt: skip
    prose_weight: float = setting(
        0.1, "weight of prose beside the decision position", advanced=True, least=0
    )
    all_requests: bool = setting(
        False, "fit on every request, also on those that the model answers", advanced=True
    )
    direction: DirectionRecipe = field(default_factory=DirectionRecipe)

    def __post_init__(self) -> None:
        no_prose = self.prose == 0 or (self.prose is None and not self.after_opener)
        without = {
            "opener_strength": ("after_opener", not self.after_opener),
            "refit_strength": ("after_opener", not self.after_opener),
            "opener_weight": ("after_opener", not self.after_opener),
            "response_weight": ("response_tokens", not self.response_tokens),
            "prose_weight": ("prose", no_prose),
        }
        defaults = {name: each.default for name, each in self.__dataclass_fields__.items()}
        for name, (needed, missing) in without.items():
            if missing and getattr(self, name) != defaults[name]:
                raise InterpError(f"{name} goes with {needed}, without which it does nothing")
