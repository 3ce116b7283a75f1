"""The coverage receipt: every matrix that writes the stream of a model, without loading its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interp.errors import ModelNotFound
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.checkpoint import INDEX, SINGLE, Checkpoint, spellings
from interp.models.loading import resolve
from interp.models.quantised import Quantisation, of_config
from interp.models.skeleton import skeleton


@dataclass(frozen=True, slots=True)
class Line:
    """One writer on the receipt. reach: what an edit would do to it."""

    weight: str
    kind: str
    block: int | None
    shape: tuple[int, ...]
    axes: str
    bias: str | None
    gain: str | None
    tied: bool
    saved_as: tuple[str, ...]
    reach: str


@dataclass(frozen=True, slots=True)
class CoverageReceipt:
    """Everything that writes one model's residual stream. quantisation: how its weights are quantised,
    empty for plain values. unreached: modules that no edit reaches → why."""

    model: str
    model_type: str
    d_model: int
    n_blocks: int
    block_kinds: tuple[str, ...]
    tied: bool
    quantisation: str
    writers: tuple[Line, ...]
    unreached: dict[str, str]

    def counts(self) -> dict[str, int]:
        """Writers per kind."""
        found: dict[str, int] = {}
        for line in self.writers:
            found[line.kind] = found.get(line.kind, 0) + 1
        return found

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "counts": self.counts()}


def receipt(name: str, *, trust_remote_code: bool = False) -> CoverageReceipt:
    """Describe a model from its config and the names in its weight files; no tokenizer, no weights read.

    Raises ModelNotFound (also when a file lacks a writer that the family describes), UnknownFamily,
    UndescribedWriter.
    """
    model, anatomy = skeleton(name, trust_remote_code=trust_remote_code)
    checkpoint = _checkpoint(Path(resolve(name)))
    saved = frozenset(() if checkpoint is None else checkpoint.tensors)
    quantised = of_config(model.config.to_dict()) if checkpoint is None else checkpoint.quantisation
    tied = anatomy.tied and not _own_head(anatomy, saved)
    if saved:
        _check_saved(name, anatomy, saved)
    opaque = quantised is not None and (checkpoint is None or bool(quantised.opaque))
    lines = tuple(_line(w, tied, opaque) for w in anatomy.writers)
    return CoverageReceipt(
        name, anatomy.model_type, anatomy.d_model, anatomy.n_blocks, anatomy.block_kinds,
        tied, _how(quantised), lines, anatomy.unreached,
    )  # fmt: skip


def _how(quantised: Quantisation | None) -> str:
    if quantised is None:
        return ""
    return quantised.how + (
        "" if quantised.opaque or not quantised.scales else ", read as its values"
    )


def _line(writer: BoundWriter, tied: bool, quantised: bool) -> Line:
    is_tied = writer.tied and tied
    return Line(
        weight=writer.weight,
        kind=writer.kind,
        block=writer.block,
        shape=writer.shape,
        axes=writer.axes,
        bias=writer.bias,
        gain=writer.gain,
        tied=is_tied,
        saved_as=writer.checkpoint,
        reach=_reach(writer, is_tied, quantised),
    )


def _reach(writer: BoundWriter, tied: bool, quantised: bool) -> str:
    if quantised and writer.kind != "embedding":
        return "hooks only (quantised)"
    if writer.kind == "embedding":
        return "with --embeddings" + (", unembedding untied first" if tied else "")
    if writer.fused:
        return f"every edit, {writer.shape[0]} experts at once"
    return "every edit" + (", through the post-norm gain" if writer.gain else "")


def _checkpoint(folder: Path) -> Checkpoint | None:
    """A local directory's safetensors; None for other formats and for hub ids."""
    known = any((folder / name).is_file() for name in (SINGLE, INDEX))
    return Checkpoint.open(folder) if known else None


def _own_head(anatomy: Anatomy, saved: frozenset[str]) -> bool:
    """A checkpoint that holds both embedding and unembedding loads untied whatever its config says."""
    both = (anatomy.unembed_checkpoint, anatomy.embeddings[0].checkpoint[0])
    return all(any(name in saved for name in spellings(key)) for key in both)


def _check_saved(name: str, anatomy: Anatomy, saved: frozenset[str]) -> None:
    missing = [key for w in anatomy.writers for key in w.checkpoint if not _holds(saved, key)]
    if missing:
        raise ModelNotFound(
            f"{name}: the weight files lack {missing[0]} and {len(missing) - 1} more; "
            "the download is incomplete or belongs to another model"
        )


def _holds(saved: frozenset[str], key: str) -> bool:
    """Whether a key is there, in any spelling, or packed by a quantiser behind the same stem."""
    stems = tuple(name.removesuffix(".weight") for name in spellings(key))
    return any(name.startswith(stems) for name in saved)
