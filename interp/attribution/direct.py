"""Direct logit attribution: which component of which block writes a margin of logits.

Attribution of component c: ``s(x_L) · v·c``, where c is what the component adds to the stream at
the decision position (the last prompt token), x_L the stream that enters the final norm, s(x_L) the
norm's scale, held fixed for each prompt, and v its gain and the unembedding difference as one
direction (see :mod:`interp.attribution.readout`). Embedding, components and a constant sum to the
model's own margin. Compare classes: a shared prompt suffix puts a large constant into the
embedding, which the contrast (mean over positive − mean over negative prompts) cancels up to the
difference in s. A contribution is what a component writes, not what would change without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from interp.attribution.openers import BATCH, Openers, find_openers, openers_from_model
from interp.attribution.readout import Readout, bind_readout, check_readout
from interp.backends.protocol import Backend, residual_sites
from interp.errors import PromptError
from interp.records import Claim, FigureRecord, Provenance
from interp.series import Contribution, StackedAttribution, Total
from interp.sites import Site
from interp.types import TokenBatch

__all__ = [
    "Attribution",
    "Contrast",
    "Openers",
    "attribute",
    "attribution_record",
    "class_contrast",
    "find_openers",
    "logit_lens",
    "openers_from_model",
]

EMBED = -1
NAMES = {
    "embedding": "embedding",
    "attention": "attention",
    "ssm": "SSM",
    "mlp": "MLP",
    "expert": "expert",
}
"""Kinds in the order in which they are stacked, as people write them."""
SMALLEST_CLASS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Contributions to the margin, in logits, float64.

    contributions: ``[n, c]``, one column per component, the embedding first (block −1). measured:
    the model's own margin ``[n]``, before any soft cap. lens: see :func:`logit_lens`. constant:
    what the biases of the final norm and the unembedding add. cap: the soft cap that the model puts
    on its logits, if any.
    """

    contributions: Float[Tensor, "n c"]
    labels: tuple[str, ...]
    blocks: tuple[int, ...]
    kinds: tuple[str, ...]
    measured: Float[Tensor, " n"]
    lens: Float[Tensor, "n positions"]
    constant: float
    openers: Openers
    n_blocks: int
    cap: float | None = None

    @property
    def residual(self) -> Float[Tensor, " n"]:
        """Measured minus everything attributed: round-off, unless the anatomy misses a writer."""
        return self.measured - self.contributions.sum(1) - self.constant

    def by_block(self) -> Attribution:
        """The same with one column for each kind in each block."""
        groups: dict[tuple[int, str], list[int]] = {}
        for i, group in enumerate(zip(self.blocks, self.kinds, strict=True)):
            groups.setdefault(group, []).append(i)
        columns = [self.contributions[:, places].sum(1) for places in groups.values()]
        return replace(
            self,
            contributions=torch.stack(columns, 1),
            labels=tuple("embed" if b == EMBED else f"{b}.{kind}" for b, kind in groups),
            blocks=tuple(b for b, _ in groups),
            kinds=tuple(kind for _, kind in groups),
        )

    def running(self) -> Float[Tensor, "n positions"]:
        """Sum of the constant, the embedding and the blocks so far: ``[n, 1 + blocks]``."""
        steps = torch.zeros(len(self.measured), 1 + self.n_blocks, dtype=torch.float64)
        steps.index_add_(1, torch.tensor(self.blocks) + 1, self.contributions)
        return steps.cumsum(1) + self.constant

    def contrast(self, n_positive: int) -> Contrast:
        """Mean over the first ``n_positive`` prompts − mean over the others, with standard errors.

        The constant cancels. Raises PromptError when a class has fewer than two prompts.
        """
        values, errors = class_contrast(self.contributions, n_positive)
        measured, error = class_contrast(self.measured[:, None], n_positive)
        residual, _ = class_contrast(self.residual[:, None], n_positive)
        return Contrast(
            self.labels, self.blocks, self.kinds, values, errors, measured.item(), error.item(),
            residual.item(),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """A class contrast of an :class:`Attribution`, in logits; errors are standard errors."""

    labels: tuple[str, ...]
    blocks: tuple[int, ...]
    kinds: tuple[str, ...]
    values: Float[Tensor, " c"]
    errors: Float[Tensor, " c"]
    measured: float
    measured_error: float
    residual: float

    def top(self, k: int) -> list[tuple[str, float]]:
        """The ``k`` largest contributions by size, with their sign."""
        order = self.values.abs().argsort(descending=True)[:k].tolist()
        return [(self.labels[i], self.values[i].item()) for i in order]


def class_contrast(
    values: Float[Tensor, "n c"], n_positive: int
) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Difference of class means and its standard error ``√(var⁺/n⁺ + var⁻/n⁻)`` (Welch).

    The prompts of a class count as independent, which is careful for matched pairs.
    """
    if min(n_positive, len(values) - n_positive) < SMALLEST_CLASS:
        raise PromptError(
            f"a contrast needs at least {SMALLEST_CLASS} prompts in each class, got {n_positive} and "
            f"{len(values) - n_positive}"
        )
    pos, neg = values[:n_positive], values[n_positive:]
    variance = pos.var(0) / len(pos) + neg.var(0) / len(neg)
    return pos.mean(0) - neg.mean(0), variance.sqrt()


def attribute(
    backend: Backend,
    batches: TokenBatch | Sequence[TokenBatch],
    openers: Openers,
    *,
    batch_size: int = BATCH,
) -> Attribution:
    """Attribute the margin of every prompt, in one forward pass each (last position only).

    batches: prompts in the order of the rows that come back; positive before negative ones for ``contrast``.
    To attribute an edited model, call this inside ``with backend.editing(edit)``.
    Raises InterpError when the readout that the family describes is not the model's.
    """
    given = [batches] if isinstance(batches, TokenBatch) else list(batches)
    if not given or not len(given[0]):
        raise PromptError("no prompts to attribute")
    readout = bind_readout(backend, openers)
    check_readout(backend, readout, openers, given[0])
    parts = [
        _attribute(backend, readout, part) for batch in given for part in batch.split(batch_size)
    ]
    contributions, measured, lens = (torch.cat(each) for each in zip(*parts, strict=True))
    anatomy = backend.anatomy
    return Attribution(
        contributions=contributions,
        labels=("embed", *(c.name for c in anatomy.components)),
        blocks=(EMBED, *(c.block for c in anatomy.components)),
        kinds=("embedding", *(c.kind for c in anatomy.components)),
        measured=measured,
        lens=lens,
        constant=readout.constant,
        openers=openers,
        n_blocks=anatomy.n_blocks,
        cap=anatomy.logit_cap,
    )


def _attribute(
    backend: Backend, readout: Readout, batch: TokenBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """Contributions ``[n, c]``, measured ``[n]`` and lens ``[n, 1 + blocks]`` of one batch."""
    states = residual_sites(backend.anatomy)
    sources = [Site.embed(), *(Site.component(c.name) for c in backend.anatomy.components)]
    found = backend.capture(batch, list(dict.fromkeys([*states, *sources])), -1)
    last = found[states[-1]]
    scale, direction = readout.scale(last), readout.direction
    columns = [scale * (found[site].double() @ direction) for site in sources]
    lens = [readout.margin(found[site]) for site in states]
    return torch.stack(columns, 1), readout.measured(last), torch.stack(lens, 1)


def logit_lens(
    backend: Backend, batch: TokenBatch, openers: Openers, *, batch_size: int = BATCH
) -> Float[Tensor, "n positions"]:
    """The margin that each block's own state reads out as: ``[n, 1 + blocks]``, embedding first.

    Unlike attribution it takes the norm's scale of each state anew (nostalgebraist 2020,
    "interpreting GPT: the logit lens"). The last column is the model's margin, before any soft cap.
    """
    readout = bind_readout(backend, openers)
    check_readout(backend, readout, openers, batch)
    sites = residual_sites(backend.anatomy)
    rows = []
    for part in batch.split(batch_size):
        found = backend.capture(part, sites, -1)
        rows.append(torch.stack([readout.margin(found[site]) for site in sites], 1))
    return torch.cat(rows)


def attribution_record(
    attribution: Attribution,
    n_positive: int,
    provenance: Provenance,
    *,
    key: str,
    title: str,
    classes: tuple[str, str] = ("positive", "negative"),
    claims: Sequence[Claim] = (),
) -> FigureRecord:
    """The class contrast as a figure: bars per block and kind, running sum, measured, residual.

    The logit lens is drawn beside the running sum. classes: names of the two classes in
    the record. claims point into the series that is built here.
    """
    words = dict(zip(classes, _words(attribution.openers), strict=True))
    return FigureRecord(
        key=key,
        title=title,
        series=_series(attribution, n_positive, words),
        provenance=provenance,
        n=dict(zip(classes, (n_positive, len(attribution.measured) - n_positive), strict=True)),
        intervals="± 1 standard error",
        claims=tuple(claims),
        caption=_caption(words, attribution.cap),
    )


def _series(
    attribution: Attribution, n_positive: int, words: dict[str, list[str]]
) -> StackedAttribution:
    """Bars of the class contrast. words: the openers of each class."""
    contrast = attribution.by_block().contrast(n_positive)
    return StackedAttribution(
        unit="logits",
        positions=("embed", *(str(i) for i in range(attribution.n_blocks))),
        parts=_parts(contrast, attribution.n_blocks),
        cumulative=_with_errors(attribution.running(), n_positive),
        lens=_with_errors(attribution.lens, n_positive),
        measured=contrast.measured,
        residual=contrast.residual,
        beside={
            "measured_error": contrast.measured_error,
            "largest_residual": attribution.residual.abs().max().item(),
            "soft_cap": attribution.cap,
            "openers": words,
        },
    )


def _words(openers: Openers) -> tuple[list[str], list[str]]:
    """The openers as text, or as token ids of a model without a tokenizer."""
    return (
        [str(w) for w in openers.positive_words or openers.positive],
        [str(w) for w in openers.negative_words or openers.negative],
    )


def _caption(words: dict[str, list[str]], cap: float | None) -> str:
    first, second = (", ".join(w.strip() for w in side) for side in words.values())
    capped = f", before the soft cap of {cap:g}" if cap else ""
    classes = " − ".join(words).capitalize()
    return (
        f"Margin: mean logit of the openers {first} − mean logit of {second}{capped}. "
        f"{classes} prompts, at the last prompt token; the final norm's scale is held fixed."
    )


def _parts(contrast: Contrast, n_blocks: int) -> tuple[Contribution, ...]:
    """One list of bars for each kind of component, with a place for every block."""
    parts = []
    for kind in (k for k in NAMES if k in contrast.kinds):
        values, errors = [0.0] * (1 + n_blocks), [0.0] * (1 + n_blocks)
        for i, (block, own) in enumerate(zip(contrast.blocks, contrast.kinds, strict=True)):
            if own == kind:
                values[block + 1] = contrast.values[i].item()
                errors[block + 1] = contrast.errors[i].item()
        parts.append(Contribution(NAMES[kind], kind, tuple(values), tuple(errors)))
    return tuple(parts)


def _with_errors(values: Float[Tensor, "n c"], n_positive: int) -> Total:
    means, errors = class_contrast(values, n_positive)
    return Total(tuple(means.tolist()), tuple(errors.tolist()))
