"""Choose a direction by its effects: ablated, it should end a behaviour; added, it should cause it.

Direction selection of Arditi et al. 2406.11717 (section 2 and its appendix on selection). For the raw
difference of means at each block and each template token after the prompt:

- *bypass*: mean log-odds of the openers on positive prompts with the direction ablated at every writer.
  They ablate at every block's input and at every attention and MLP output; the input is the sum of the
  embedding and those outputs, so ablating every writer with the embeddings is the same.
- *induce*: mean log-odds on negative prompts with the raw difference added once, at all positions.
- *kl*: mean first-token ``KL(base ‖ ablated)`` on negative prompts, in nats.

Blocks here are those whose *output* is read. Their layer l is the *input* of block l, that is our block
``l − 1``; their layer 0 (embeddings, the same at a template token for every prompt) has no direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from interp.attribution.openers import Openers
from interp.backends.protocol import AnyEdit
from interp.data.tokens import Prompts
from interp.edits import ablation, steering
from interp.errors import InterpError, NoDirection
from interp.evaluate.divergence import first_log_probs, kl_nats
from interp.lm import LM
from interp.maths import unit
from interp.sites import Site
from interp.types import Direction, TokenBatch
from interp.watching import unwatched

EPSILON = 1e-8
MOST_POSITIONS = 5
KL_LIMIT, INDUCE_AT_LEAST, DEPTH_LIMIT = 0.1, 0.0, 0.8
"""The limits of Arditi et al."""
ROUND_OFF = 1e-5
"""Of the mean stream: a difference of classes below it is what padding and batching leave in fp32."""


# --- directions --------------------------------------------------------------------------------


def opener_log_odds(logits: Float[Tensor, "n vocab"], openers: Openers) -> Float[Tensor, " n"]:
    """Log-odds ``log p − log (1 − p)`` of the positive openers, ``p = Σ_{t∈R} p_t``, in float64.

    With refusal openers, the refusal metric of Arditi et al. (section 2).
    """
    p = logits.double().softmax(-1)[:, list(openers.positive)].sum(-1)
    return torch.log(p + EPSILON) - torch.log(1 - p + EPSILON)


@dataclass(frozen=True, slots=True, eq=False)
class PlacedDirection:
    """A direction and where it was read: the output of ``block``, ``position`` counted from the end."""

    block: int
    position: int
    direction: Direction

    @property
    def raw(self) -> Float[Tensor, " d"]:
        """The difference of means with its own length, which is what is added."""
        return self.direction.vector * self.direction.norm


def shared_ending(*batches: TokenBatch) -> int:
    """How many tokens all prompts end with: those of the chat template, and a common last mark."""
    rows = [(b.ids.flip(-1), b.mask.flip(-1)) for b in batches]
    width = min(ids.shape[1] for ids, _ in rows)
    first = rows[0][0][0, :width]
    same = [((ids[:, :width] == first) & (mask[:, :width] == 1)).all(0) for ids, mask in rows]
    return int(torch.stack(same).all(0).int().cumprod(0).sum())


def placed_directions(
    lm: LM,
    positive: Prompts,
    negative: Prompts,
    *,
    blocks: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> list[PlacedDirection]:
    """Differences of means at the output of every block (or ``blocks``) and at ``positions``.

    positions: negative offsets; None for the tokens after the prompt, the last five at most. A place
    where the classes do not differ is left out. Raises NoDirection when none is left.
    """
    batches = [lm.tokens(side) for side in (positive, negative)]
    if positions is None:
        n = min(max(shared_ending(*batches), 1), MOST_POSITIONS)
        positions = range(-n, 0)
    sites = [lm.resid_post[b] for b in (range(lm.n_blocks) if blocks is None else blocks)]
    pos, neg = (lm.activations(batch, sites, at=positions) for batch in batches)
    found = []
    for site in sites:
        means = [side[site].double().mean(0) for side in (pos, neg)]
        raw = means[0] - means[1]
        apart = raw.norm(dim=-1) > ROUND_OFF * means[1].norm(dim=-1)
        for place, row, differ in zip(positions, raw, apart, strict=True):
            if differ:
                source, length = f"difference of means at position {place}", row.norm().item()
                direction = Direction(unit(row).float(), site.block, source, length)
                found.append(PlacedDirection(site.block, place, direction))
    if not found:
        raise NoDirection(
            "the two classes differ at no block and position; are the prompt sets the same?"
        )
    return found


# --- scores ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CausalScore:
    """Effects of a direction. bypass, induce: mean log-odds; kl: nats."""

    block: int
    position: int
    bypass: float
    induce: float
    kl: float


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Held-out prompts of both classes, ready to try directions on.

    unedited: mean log-odds of the openers on (positive, negative) prompts before any edit. base:
    log-probabilities ``[n, vocab]`` of the first token on negative prompts.
    """

    lm: LM
    positive: TokenBatch
    negative: TokenBatch
    openers: Openers
    unedited: tuple[float, float]
    base: Tensor = field(repr=False)

    @classmethod
    def prepare(cls, lm: LM, positive: Prompts, negative: Prompts, openers: Openers) -> Trial:
        """Measure the unedited model once."""
        lm = lm.using(watch=unwatched)
        batches = [lm.tokens(side) for side in (positive, negative)]
        logits = [lm.logits(batch).float() for batch in batches]
        pos, neg = (opener_log_odds(each, openers).mean().item() for each in logits)
        return cls(lm, *batches, openers, (pos, neg), logits[1].log_softmax(-1))

    def score(self, candidate: PlacedDirection) -> CausalScore:
        """Bypass, induce and KL of a direction, in three passes; as hooks, which are put in place at once."""
        lm = self.lm
        ablated = ablation(lm.hf, lm.anatomy, candidate.direction, embeddings=True)
        added = steering(Site.resid_post(candidate.block), candidate.raw)

        def mean_log_odds(batch: TokenBatch, edit: AnyEdit) -> float:
            return opener_log_odds(lm.logits(batch, edit).float(), self.openers).mean().item()

        return CausalScore(
            candidate.block,
            candidate.position,
            bypass=mean_log_odds(self.positive, ablated),
            induce=mean_log_odds(self.negative, added),
            kl=kl_nats(self.base, first_log_probs(lm, self.negative, ablated)).mean().item(),
        )


# --- the choice --------------------------------------------------------------------------------


def broken(score: CausalScore, n_blocks: int) -> list[str]:
    """Names of the measures with which a score breaks a limit; empty when it may be chosen."""
    depth = (score.block + 1) / n_blocks  # their layer l = block + 1, and l < 0.8 L
    kept = {
        "bypass": math.isfinite(score.bypass),
        "kl": score.kl <= KL_LIMIT,
        "induce": score.induce >= INDUCE_AT_LEAST,
        "depth": depth < DEPTH_LIMIT,
    }
    return [name for name, holds in kept.items() if not holds]


def nearest(scores: Sequence[CausalScore], n_blocks: int) -> CausalScore:
    """The score that breaks the fewest limits; among those, the one with the least bypass."""
    if not scores:
        raise InterpError("nothing to choose from: no direction has been scored")
    return min(scores, key=lambda s: (len(broken(s, n_blocks)), s.bypass))
