"""The ``gguf-vector`` format: a control vector, added by llama.cpp's ``--control-vector``.

``control-vector.gguf`` holds ``direction.k`` ``[d_model]`` in fp32, which llama.cpp adds to the
output of block ``k`` (0-based) at every position, as steering at ``resid_post[k]`` does. It rejects
``direction.0``, and has families in which it passes over some blocks. repeng writes the same files.
An edit fits when all it does is to shift the last bias of a block: the same addition, before it is
cast into weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.edits import Edit
from interp.errors import ExportError
from interp.export.exporter import Attached, Base, Exporter
from interp.export.gate import Passed
from interp.export.gguf_files import open_gguf, write_gguf
from interp.export.gguf_names import architectures, why_not
from interp.export.tensors import AGAIN
from interp.models.anatomy import Anatomy, BoundWriter
from interp.models.ruler import is_steered
from interp.operators import Addition
from interp.sites import Site
from interp.types import Shift, WeightDelta

FILE = "control-vector.gguf"
ARCHITECTURE = "controlvector"
DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]*)")


def _biases(anatomy: Anatomy) -> dict[str, BoundWriter]:
    """Bias name → the last writer of the last component of a block."""
    last = (anatomy.in_block(i)[-1].writers[-1] for i in range(anatomy.n_blocks))
    return {w.bias or f"{w.module}.bias": w for w in last}


def _refusal(delta: WeightDelta, base: Base) -> str | None:
    if (reason := why_not(base.anatomy)) is not None:
        return reason
    biases = _biases(base.anatomy)
    for name, update in delta:
        if not isinstance(update, Shift):
            return f"a control vector is one addition for all inputs, and {name} is a matrix"
        writer = biases.get(name)
        if writer is None or writer.scale is None or writer.fused:
            return f"a shift of {name} is no addition to the output of its block"
        if writer.block == 0:
            return "llama.cpp takes no control vector at block 0"
        if (reason := _passed_over(base.anatomy, writer)) is not None:
            return reason
    return None


def _passed_over(anatomy: Anatomy, writer: BoundWriter) -> str | None:
    if is_steered(anatomy, writer.block or 0):
        return None
    return (
        f"llama.cpp's {anatomy.model_type} passes over a control vector at block {writer.block}, "
        "which is no feed-forward block"
    )


def _write(delta: WeightDelta, base: Base, out: Path, passed: Passed) -> None:
    tensors = {}
    biases = _biases(base.anatomy)
    for name, update in sorted(delta, key=lambda pair: biases[pair[0]].block or 0):
        assert isinstance(update, Shift)
        writer = biases[name]
        value = update.value.double() * (writer.scale or 0.0)
        tensors[f"direction.{writer.block}"] = value.float()
    fields = {
        f"{ARCHITECTURE}.model_hint": architectures(base.anatomy)[0],
        f"{ARCHITECTURE}.layer_count": len(tensors),
    }
    write_gguf(out / FILE, ARCHITECTURE, fields, tensors)


def read_gguf_vector(path: Path | str) -> dict[int, Tensor]:
    """Block → vector ``[d_model]`` that llama.cpp adds to the output of that block.

    path: ``control-vector.gguf``, the directory it lies in, or any file that repeng or llama.cpp's
    ``cvector-generator`` wrote. Raises ExportError for what llama.cpp rejects (block 0, a type other
    than F32, more than one axis, lengths that differ), and for a damaged file.
    """
    folder = Path(path)
    file = open_gguf(folder / FILE if folder.is_dir() else folder)
    if file.text("general.architecture") != ARCHITECTURE:
        kind = file.text("general.architecture") or "nothing known"
        raise ExportError(
            f"{file.path} is no control vector ({kind}); give one made for --control-vector"
        )
    found: dict[int, Tensor] = {}
    for name in file.stored:
        match = DIRECTION.fullmatch(name)
        if match is None:
            raise ExportError(f"{file.path}: {name} is no direction of a block; {AGAIN}")
        if int(match[1]) == 0:
            raise ExportError(
                f"{file.path} has direction.0, which llama.cpp rejects; make the file without it"
            )
        shape = file.stored[name].shape
        if (kind := file.kind(name)) != "F32" or math.prod(shape) != shape[-1]:
            raise ExportError(
                f"{file.path}: {name} is {kind} {shape}, and llama.cpp takes one axis of F32; "
                "make the file again"
            )
        found[int(match[1])] = file.tensor(name).flatten()
    if len({v.shape for v in found.values()}) > 1:
        raise ExportError(f"{file.path} has directions of several lengths; make the file again")
    if not found:
        raise ExportError(f"{file.path} holds no direction; {AGAIN}")
    return dict(sorted(found.items()))


def _attach(path: Path, base: Base | None, options: Mapping[str, Any]) -> Attached:
    assert base is not None
    vectors = read_gguf_vector(path)
    anatomy = base.anatomy
    length = len(next(iter(vectors.values())))
    if length != anatomy.d_model or max(vectors) >= anatomy.n_blocks:
        raise ExportError(
            f"{path} was made for another base: vectors of {length} up to block {max(vectors)}, "
            f"{base.name} has {anatomy.n_blocks} blocks of {anatomy.d_model}; give the base it was "
            "made for"
        )
    for block in vectors:
        writer = anatomy.in_block(block)[-1].writers[-1]
        if (reason := _passed_over(anatomy, writer)) is not None:
            raise ExportError(f"{path}: {reason}; make the file without it")
    sites = {Site.resid_post(block): Addition(vector) for block, vector in vectors.items()}
    return Attached(base.backend, Edit(sites=sites))


def _check(path: Path) -> None:
    read_gguf_vector(path)


EXPORTER = Exporter(
    name="gguf-vector",
    summary="a control vector for llama.cpp (--control-vector): steering at block outputs",
    marks=(FILE,),
    refusal=_refusal,
    write=_write,
    check=_check,
    attach=_attach,
)
