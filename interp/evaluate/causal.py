"""Choose a direction by what it does: ablated, it should end refusals; added, it should make them.

Direction selection of Arditi et al. 2406.11717 (section 2 and its appendix on selection). For the raw
difference of means at each block and each template token after the prompt:

- *bypass*: mean refusal metric on refuse prompts with the direction ablated from all that is written
  to the stream. They ablate at every block's input and at every attention and MLP output; the input
  is the sum of the embedding and those outputs, so ablating every writer with the embeddings is the same.
- *induce*: mean refusal metric on comply prompts with the raw difference added once, at all positions.
- *kl*: mean first-token ``KL(base ‖ ablated)`` on comply prompts, in nats.

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


# --- the refusal metric ------------------------------------------------------------------------


def metric_of(logits: Float[Tensor, "n vocab"], openers: Openers) -> Float[Tensor, " n"]:
    """Log-odds ``log p − log (1 − p)`` of the refusal openers, ``p = Σ_{t∈R} p_t``, in float64."""
    p = logits.double().softmax(-1)[:, list(openers.positive)].sum(-1)
    return torch.log(p + EPSILON) - torch.log(1 - p + EPSILON)


def refusal_metric(
    lm: LM, prompts: Prompts, openers: Openers, edit: AnyEdit = None
) -> Float[Tensor, " n"]:
    """Log-odds that the answer to each prompt begins with a refusal opener (Arditi et al., section 2)."""
    return metric_of(lm.logits(prompts, edit).float(), openers)


# --- candidates --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
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


def candidates(
    lm: LM,
    refuse: Prompts,
    comply: Prompts,
    *,
    blocks: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
) -> list[Candidate]:
    """Differences of means at the output of every block (or ``blocks``) and at ``positions``.

    positions: negative offsets; None for the tokens after the prompt, the last five at most. A place
    where the classes do not differ is left out. Raises NoDirection when none is left.
    """
    batches = [lm.tokens(side) for side in (refuse, comply)]
    if positions is None:
        n = min(max(shared_ending(*batches), 1), MOST_POSITIONS)
        positions = range(-n, 0)
    sites = [Site.resid_post(b) for b in (range(lm.n_blocks) if blocks is None else blocks)]
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
                found.append(Candidate(site.block, place, direction))
    if not found:
        raise NoDirection(
            "the two classes differ at no block and position; are the prompt sets the same?"
        )
    return found


# --- scores ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CausalScore:
    """What a direction does. bypass, induce: mean log-odds; kl: nats."""

    block: int
    position: int
    bypass: float
    induce: float
    kl: float


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Held-out prompts of both classes, ready to try directions on.

    unedited: mean refusal metric of (refuse, comply) prompts before any edit. base: log-probabilities
    ``[n, vocab]`` of the first token on comply prompts.
    """

    lm: LM
    refuse: TokenBatch
    comply: TokenBatch
    openers: Openers
    unedited: tuple[float, float]
    base: Tensor = field(repr=False)

    @classmethod
    def prepare(cls, lm: LM, refuse: Prompts, comply: Prompts, openers: Openers) -> Trial:
        """Measure the unedited model once."""
        lm = lm.using(watch=unwatched)
        batches = [lm.tokens(side) for side in (refuse, comply)]
        logits = [lm.logits(batch).float() for batch in batches]
        before, after = (metric_of(each, openers).mean().item() for each in logits)
        return cls(lm, *batches, openers, (before, after), logits[1].log_softmax(-1))

    def score(self, candidate: Candidate) -> CausalScore:
        """Three passes; as hooks, which cost nothing to put in place."""
        ablated = ablation(self.lm.hf, self.lm.anatomy, candidate.direction, embeddings=True)
        added = steering(Site.resid_post(candidate.block), candidate.raw)
        edited = first_log_probs(self.lm, self.comply, ablated)
        return CausalScore(
            candidate.block,
            candidate.position,
            bypass=refusal_metric(self.lm, self.refuse, self.openers, ablated).mean().item(),
            induce=refusal_metric(self.lm, self.comply, self.openers, added).mean().item(),
            kl=kl_nats(self.base, edited).mean().item(),
        )


# --- the choice --------------------------------------------------------------------------------


def broken(
    score: CausalScore,
    n_blocks: int,
    *,
    kl_limit: float = KL_LIMIT,
    induce_at_least: float = INDUCE_AT_LEAST,
    depth_limit: float = DEPTH_LIMIT,
) -> list[str]:
    """The limits that a score breaks, in words; empty when it may be chosen."""
    depth = (score.block + 1) / n_blocks  # their layer l = block + 1, and l < 0.8 L
    checks = [
        (math.isfinite(score.bypass), f"bypass {score.bypass} is no number"),
        (score.kl <= kl_limit, f"kl {score.kl:.3g} is above kl_limit {kl_limit:g}"),
        (
            score.induce >= induce_at_least,
            f"induce {score.induce:.3g} is below induce_at_least {induce_at_least:g}",
        ),
        (depth < depth_limit, f"depth {depth:.2f} is not below depth_limit {depth_limit:g}"),
    ]
    return [said for holds, said in checks if not holds]


def nearest(scores: Sequence[CausalScore], n_blocks: int, **limits: float) -> CausalScore:
    """The score that breaks the fewest limits; among those, the one with the least bypass."""
    if not scores:
        raise InterpError("nothing to choose from: no direction has been scored")
    return min(scores, key=lambda s: (len(broken(s, n_blocks, **limits)), s.bypass))


def select(scores: Sequence[CausalScore], n_blocks: int, **limits: float) -> CausalScore:
    """The least bypass among the scores within all limits (those of :func:`broken`).

    n_blocks: of the model. Raises InterpError when no score is, with the one that came nearest.
    """
    best = nearest(scores, n_blocks, **limits)
    if said := broken(best, n_blocks, **limits):
        raise InterpError(
            f"no direction keeps all limits; the nearest, at block {best.block} and position "
            f"{best.position} with bypass {best.bypass:.3g}, does not: {', '.join(said)}; relax that "
            "limit, or fit on prompts that the model does refuse"
        )
    return best
