"""How a writer of a model lies in its checkpoint: one tensor, or one for each fused expert."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from interp.errors import ModelNotFound
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.checkpoint import Checkpoint
from interp.types import Axes


@dataclass(frozen=True, slots=True)
class Piece:
    """One saved tensor of a parameter. key: its name in the files. expert: which part of a fused
    parameter it is, None for the whole. axes: how the saved tensor is stored."""

    key: str
    axes: Axes
    expert: int | None = None

    def canonical(self, stored: Tensor) -> Tensor:
        """The saved tensor as ``[*expert, d_model, d_in]``."""
        return stored if self.axes.endswith("out in") else stored.transpose(-1, -2)


def pieces(checkpoint: Checkpoint, writer: BoundWriter) -> tuple[Piece, ...]:
    """The saved tensors of a writer's weight, in expert order.

    Raises ModelNotFound for a tensor that is quantised, missing, or of another shape than the config
    gives.
    """
    split = writer.fused and len(writer.checkpoint) > 1
    found = []
    for e, name in enumerate(writer.checkpoint):
        key = checkpoint.find(name)
        if checkpoint.quantisation is not None and checkpoint.is_quantised(name):
            raise ModelNotFound(checkpoint.quantisation.explain(str(checkpoint.folder)))
        if key is None:
            raise ModelNotFound(
                f"{checkpoint.folder} lacks {name}; the download is incomplete or another model's"
            )
        # Experts that are saved one by one are plain linear layers, however they are fused later.
        axes: Axes = "out in" if split else writer.axes
        shape = (writer.d_out, writer.d_in) if split else writer.shape
        if checkpoint.tensors[key].shape != tuple(shape):
            raise ModelNotFound(
                f"{checkpoint.folder}: {key} has shape {checkpoint.tensors[key].shape}, its config "
                f"gives {tuple(shape)}; files and config belong to different models"
            )
        found.append(Piece(key, axes, e if split else None))
    return tuple(found)


def readers_of_experts(anatomy: Anatomy, name: str) -> tuple[tuple[str, ...], ...]:
    """Names in the files of a fused parameter of experts that no writer is, such as ``gate_up_proj``.

    One entry for each expert, with the tensors whose rows follow each other in it (gate, up). Empty for
    other parameters, and for experts that are saved fused.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    module, _, leaf = name.rpartition(".")
    writer = next((w for w in anatomy.block_writers if w.fused and w.module == module), None)
    if writer is None or len(writer.checkpoint) == 1:
        return ()
    parts: dict[str, list[str]] = {}
    for conversion in get_checkpoint_conversion_mapping(anatomy.model_type) or ():
        steps = [(type(s).__name__, s.dim) for s in getattr(conversion, "operations", ())]
        if steps in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            sources = [p.removesuffix(".weight") for p in conversion.source_patterns]
            target = conversion.target_patterns[0].rpartition(".")[2]
            parts[target] = [source.rpartition(".")[2] for source in sources]
    own = parts.get(writer.weight.rpartition(".")[2], [])
    if leaf not in parts or len(own) != 1:
        return ()
    return tuple(
        tuple(key.replace(f".{own[0]}.", f".{part}.") for part in parts[leaf])
        for key in writer.checkpoint
    )


def saved_before_renaming(anatomy: Anatomy, name: str) -> str:
    """A parameter's name in a checkpoint of a family whose names transformers changes on loading; the
    same name for other families."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    for conversion in get_checkpoint_conversion_mapping(anatomy.model_type) or ():
        if not getattr(conversion, "operations", ()):
            old, new = conversion.source_patterns[0], conversion.target_patterns[0]
            name = name.replace(new, old.replace("\\.", "."))
    return name
