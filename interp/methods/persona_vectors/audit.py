"""What a finetune or an edit does to traits, predicted from its weights before a token is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data import PromptSet, neutral_passages
from interp.errors import SiteError
from interp.evaluate.scores import t_interval
from interp.lm import LM, Prompts
from interp.methods.persona_vectors.edits import check
from interp.methods.persona_vectors.recipe import RESPONSE, AuditRecipe
from interp.methods.persona_vectors.vectors import PersonaVector, projection
from interp.models.anatomy import BoundWriter
from interp.sites import Site
from interp.types import LowRank, Shift, Update, WeightDelta

REFUSAL = "refusal"
EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one component, or the embedding (block −1), adds to the stream after a change, less before.

    moved: mean over prompts, ``[d_model]``; the change of the matrices and that of what they read. written:
    that of the matrices alone, ``ΔW E[a] + Δb`` with E[a] what they read in the base; None behind a norm, a
    gate or routing weights, where it is not linear in ΔW.
    """

    block: int
    kind: str
    moved: Float[Tensor, " d_model"]
    written: Float[Tensor, " d_model"] | None


@dataclass(frozen=True, slots=True, eq=False)
class StreamShift:
    """How a delta moves the stream at the last token of prompts, or on average over responses.

    rows: changed less base, ``[1 + n_blocks, prompt, d_model]``, the embedding first. parts: what wrote the
    mean over prompts; those of blocks below a layer sum to it.
    """

    rows: Float[Tensor, "row prompt d_model"]
    parts: tuple[Part, ...]


def stream_shift(
    lm: LM, delta: WeightDelta, prompts: Prompts, responses: Sequence[str] | None = None
) -> StreamShift:
    """The finetuning shift before its projection (2507.21509, §4.2), and what it is made of.

    Two forward passes. responses: texts that follow the prompts, over whose tokens means are taken. Raises
    DeltaError for a delta of another base.
    """
    reading: dict[str, Any] = {}
    if responses is not None:
        reading = {"at": "response", "reduce": "mean", "responses": responses}
    stream, components = (lm.embed, *lm.resid_post), lm.components()
    changed = [w for w in lm.anatomy.block_writers if _updates(w, delta) and _linear(w)]
    reads = [Site.writer_in(w.block or 0, w.name) for w in changed]
    before = lm.activations(prompts, (*stream, *components, *reads), **reading)
    after = lm.activations(prompts, (*stream, *components), delta, **reading)

    def moved(site: Site) -> Tensor:
        return after[site].double() - before[site].double()

    inputs = {w.name: before[site].double().mean(0) for w, site in zip(changed, reads, strict=True)}
    first = moved(lm.embed).mean(0)
    parts = [Part(-1, EMBEDDING, first, first)]
    for site, each in zip(components, lm.anatomy.components, strict=True):
        written = _written(each.writers, delta, inputs, lm.d_model)
        parts.append(Part(each.block, each.kind, moved(site).mean(0), written))
    return StreamShift(torch.stack([moved(site) for site in stream]), tuple(parts))


def _updates(writer: BoundWriter, delta: WeightDelta) -> list[Update]:
    names = (writer.weight, writer.bias or f"{writer.module}.bias")
    return [delta.updates[name] for name in names if name in delta.updates]


def _linear(writer: BoundWriter) -> bool:
    return writer.scale is not None and not writer.fused


def _written(
    writers: Sequence[BoundWriter], delta: WeightDelta, inputs: dict[str, Tensor], width: int
) -> Tensor | None:
    """``Σ scale (ΔW E[a] + Δb)`` over the writers of a component; None where one is not linear."""
    total = torch.zeros(width, dtype=torch.float64)
    for writer in writers:
        for update in _updates(writer, delta):
            if not _linear(writer):
                return None
            assert writer.scale is not None
            if isinstance(update, Shift):
                own = update.value.double()
            else:
                exact = LowRank(update.b.double(), update.a.double(), update.axes)
                own = exact.act(inputs[writer.name])
            total += writer.scale * own
    return total


@dataclass(frozen=True, slots=True)
class Control:
    """A projection beside those of random directions: z-score, and whether it is beyond all of them.

    random: projections on the directions. z: None where nothing changed at all.
    """

    value: float
    z: float | None
    beyond: bool
    random: tuple[float, ...]

    @classmethod
    def of(cls, change: Tensor, vector: Tensor, controls: Tensor) -> Control:
        """``change · v̂ / ‖v‖`` beside that of directions of the same norm."""
        value = _in_norms(change, vector).item()
        random = (controls @ change.double()) / vector.double().norm()
        spread = random.std().item()
        z = (value - random.mean().item()) / spread if spread else None
        beyond = abs(value) > random.abs().max().item()
        return cls(value, z, beyond, tuple(random.tolist()))


@dataclass(frozen=True, slots=True)
class Audit:
    """What a delta does along one persona vector. Shifts are in units of ‖v‖: 1 is what adding v does.

    layer: as in the paper, the output of block ``layer − 1``. norm: ‖v‖. shift: the predicted shift, over
    prompts. interval: its t interval of 95 %. weights: what changed matrices write along v more from what
    they read in the base, which sees no other change; None where a changed matrix is behind a norm, a gate or
    routing weights. by_kind, by_block: shares of ``shift`` in its units. by_layer: the shift at every layer
    along the vector of that layer.
    """

    trait: str
    layer: int
    norm: float
    shift: Control
    interval: tuple[float, float] | None
    weights: Control | None
    by_kind: dict[str, float]
    by_block: dict[int, float]
    by_layer: list[float | None]

    @property
    def predicted(self) -> str:
        """``more`` or ``less`` of the trait; ``no change`` for a shift that some random direction exceeds."""
        return "no change" if not self.shift.beyond else "more" if self.shift.value > 0 else "less"


def audit(
    lm: LM,
    delta: WeightDelta,
    personas: Sequence[PersonaVector],
    prompts: Sequence[str] | PromptSet,
    recipe: AuditRecipe | None = None,
) -> list[Audit]:
    """For every persona vector, the shift that a delta makes along it on neutral prompts.

    No token is generated. Responses that are read are as many as there are neutral passages, at most. Raises
    PersonaError for vectors of another shape, SiteError for a layer that there is not.
    """
    recipe = recipe or AuditRecipe()
    for persona in personas:
        check(lm, persona)
        persona.at(persona.site(recipe.layer_of(lm.n_blocks)))
    texts = list(prompts.prompts if isinstance(prompts, PromptSet) else prompts)
    passages = neutral_passages()[: len(texts)] if recipe.read == RESPONSE else None
    found = stream_shift(lm, delta, texts[: passages and len(passages)], passages)
    return [audited(found, persona, recipe) for persona in personas]


def audited(found: StreamShift, persona: PersonaVector, recipe: AuditRecipe) -> Audit:
    """The part of a shift of the stream that lies along a persona vector."""
    layer = recipe.layer_of(persona.n_blocks)
    vector = persona.at(persona.site(layer))
    rows, parts = found.rows[layer], [p for p in found.parts if p.block < layer]
    generator = torch.Generator().manual_seed(recipe.seed)
    controls = torch.randn(recipe.controls, len(vector), generator=generator, dtype=torch.float64)
    controls = controls / controls.norm(dim=-1, keepdim=True)
    by_kind: dict[str, float] = {}
    by_block: dict[int, float] = {}
    for part in parts:
        value = _in_norms(part.moved, vector).item()
        by_kind[part.kind] = by_kind.get(part.kind, 0.0) + value
        by_block[part.block] = by_block.get(part.block, 0.0) + value
    written = [part.written for part in parts if part.written is not None]
    linear = len(written) == len(parts)
    return Audit(
        trait=persona.trait,
        layer=layer,
        norm=vector.double().norm().item(),
        shift=Control.of(rows.mean(0), vector, controls),
        interval=t_interval(_in_norms(rows, vector).tolist()),
        weights=Control.of(torch.stack(written).sum(0), vector, controls) if linear else None,
        by_kind=by_kind,
        by_block=by_block,
        by_layer=[_at(found, persona, row) for row in range(1, persona.n_blocks + 1)],
    )


def _at(found: StreamShift, persona: PersonaVector, layer: int) -> float | None:
    """The shift at a layer; None where an authors' file has no vector of it, or a zero one."""
    try:
        vector = persona.at(persona.site(layer))
    except SiteError:
        return None
    return _in_norms(found.rows[layer].mean(0), vector).item() if bool(vector.any()) else None


def _in_norms(change: Tensor, vector: Tensor) -> Tensor:
    return projection(change, vector) / vector.float().norm()


def refusal_vector(lm: LM, refuse: Prompts, comply: Prompts) -> PersonaVector:
    """Mean of requests less that of answerable prompts, at the last prompt token of every layer."""
    rows = lm.residuals(refuse).float().mean(1) - lm.residuals(comply).float().mean(1)
    return PersonaVector(REFUSAL, {"prompt_last": rows}, "prompt_last")


def as_json(found: Audit) -> dict[str, Any]:
    """An audit in JSON values, with what it predicts."""
    return {**asdict(found), "predicted": found.predicted}
