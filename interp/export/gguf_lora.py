"""The ``gguf-lora`` format: one file that llama.cpp's ``--lora`` adds to a GGUF of the base.

``adapter.gguf`` holds, for a tensor ``T`` of the base, ``T.lora_a [*expert, k, d_in]`` and
``T.lora_b [*expert, d_model, k]`` in fp32; for the token embedding ``lora_a`` is ``[vocab, k]``.
llama.cpp adds ``alpha / k · B A x`` with ``k`` of the tensor and one alpha of the file, so that all
ranks are padded to one ``k`` and alpha is ``k``: the scale is 1. It tests neither the base's
weights nor its vocabulary, hence the receipt. On a quantised GGUF the same ``B A`` is added, which
was made from the weights before quantisation: an ablation leaves what quantisation put there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from interp.errors import ExportError
from interp.export.exporter import Attached, Base, Exporter
from interp.export.gate import Passed
from interp.export.gguf_files import Gguf, open_gguf, write_gguf
from interp.export.gguf_names import ARCHITECTURES, Place, architectures, places, why_not
from interp.export.tensors import AGAIN
from interp.models.anatomy import Anatomy
from interp.types import Coverage, LowRank, Shift, WeightDelta

FILE = "adapter.gguf"
ARCHITECTURE = "general.architecture"
TYPE = "general.type"
KIND = "adapter.type"
ALPHA = "adapter.lora.alpha"
INVOCATION = "adapter.alora.invocation_tokens"
FACTOR = re.compile(r"(.+\.weight)\.lora_([ab])")
SHARES_SILENTLY = {"mamba", "falcon_mamba"}
"""Model types of which the conversion drops an unembedding that equals the embedding."""


def _refusal(delta: WeightDelta, base: Base) -> str | None:
    if shifts := [name for name, update in delta if isinstance(update, Shift)]:
        return f"LoRA has no bias updates ({len(shifts)} here, first {shifts[0]})"
    if delta.untied:
        return "it edits a tied embedding, which llama.cpp would use to unembed too"
    if (reason := why_not(base.anatomy)) is not None:
        return reason
    known = places(base.anatomy)
    for name, _ in delta:
        if name not in known:
            return f"llama.cpp takes no adapter on {name} of {base.anatomy.model_type}"
        if known[name].factor == 0.0:
            return f"the model multiplies {name} by 0, which no update of it can outlive"
        if known[name].embedding and _shared(base):
            return "the unembedding equals the embedding, and the conversion to GGUF keeps one"
    return None


def _shared(base: Base) -> bool:
    if base.anatomy.model_type not in SHARES_SILENTLY:
        return False
    modules = (base.anatomy.embeddings[0].module, base.anatomy.unembed)
    embedding, unembedding = (_weight(base.model, module) for module in modules)
    return torch.equal(embedding, unembedding)


def _weight(model: nn.Module, module: str) -> Tensor:
    return model.get_parameter(f"{module}.weight")


def _write(delta: WeightDelta, base: Base, out: Path, passed: Passed) -> None:
    known, rank = places(base.anatomy), delta.rank
    tensors: dict[str, Tensor] = {}
    for name, update in delta:
        assert isinstance(update, LowRank)
        place = known[name]
        # The conversion multiplies the matrix by the factor, and so must its update be.
        b = update.b.float() if place.factor == 1.0 else _times(update.b, place.factor)
        b = pad(b, (0, rank - update.rank))
        a = pad(update.a.float(), (0, 0, 0, rank - update.rank))
        tensors[f"{place.tensor}.lora_a"] = a.mT if place.embedding else a
        tensors[f"{place.tensor}.lora_b"] = b
    fields = {TYPE: "adapter", KIND: "lora", ALPHA: float(rank)}
    write_gguf(out / FILE, architectures(base.anatomy)[0], fields, tensors)


def _times(b: Tensor, factor: float) -> Tensor:
    """``factor · b``, rounded to fp32 once."""
    return (b.double() * factor).float()


# --- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Adapter:
    """An adapter file whose tensors pair up. alpha: 0 means that llama.cpp does not scale."""

    file: Gguf
    architecture: str
    alpha: float
    tensors: tuple[str, ...]

    def factors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Tensor of the base, its A (times nothing) and its B (times the scale of the file)."""
        for name in self.tensors:
            a, b = (self.file.tensor(f"{name}.lora_{x}") for x in "ab")
            if a.ndim != b.ndim or a.ndim not in (2, 3):
                shapes = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
                raise ExportError(
                    f"{self.file.path}: {name} has no two factors ({shapes}); {AGAIN}"
                )
            scale = self.alpha / b.shape[-1] if self.alpha else 1.0
            yield name, a, b if scale == 1.0 else _times(b, scale)


def _open(path: Path) -> _Adapter:
    """An adapter by its directory or its file. Raises ExportError for anything else than LoRA."""
    file = open_gguf(path / FILE if path.is_dir() else path)
    if file.text(TYPE) != "adapter" or file.text(KIND) != "lora":
        kind = file.text(KIND) or file.text(TYPE) or file.text(ARCHITECTURE) or "nothing known"
        raise ExportError(f"{file.path} is no LoRA adapter ({kind}); give one made for --lora")
    if INVOCATION in file.fields:
        raise ExportError(
            f"{file.path} acts only after its invocation tokens (aLoRA), which no weights do; give "
            "a plain LoRA adapter"
        )
    pairs: dict[str, set[str]] = {}
    for name in file.stored:
        if (match := FACTOR.fullmatch(name)) is None:
            norm = " (llama.cpp skips norms in silence)" if name.endswith("_norm.weight") else ""
            raise ExportError(
                f"{file.path}: {name} is no LoRA factor of a weight{norm}; make the adapter "
                "without it"
            )
        pairs.setdefault(match[1], set()).add(match[2])
    if not pairs:
        raise ExportError(f"{file.path} holds no factors; {AGAIN}")
    if alone := [name for name, found in pairs.items() if len(found) < 2]:
        raise ExportError(f"{file.path}: {alone[0]} has only one of its two factors; {AGAIN}")
    return _Adapter(file, file.text(ARCHITECTURE), file.number(ALPHA), tuple(pairs))


def read_gguf_lora(path: Path | str, anatomy: Anatomy) -> dict[str, LowRank]:
    """Runtime weight name → update of a LoRA GGUF, scale included, unused zero ranks dropped.

    path: ``adapter.gguf``, the directory it lies in, or a file of llama.cpp's
    ``convert_lora_to_gguf.py`` in any type that ``gguf`` dequantises. Raises ExportError for a
    damaged file, one of another architecture, and a tensor that transformers does not have in the
    same form.
    """
    adapter = _open(Path(path))
    where = adapter.file.path
    known = architectures(anatomy)
    if adapter.architecture not in known:
        raise ExportError(
            f"{where} is for {adapter.architecture or 'no architecture'}, but llama.cpp calls "
            f"{anatomy.model_type} {' or '.join(known)}; give the base it was made for"
        )
    by_tensor = {place.tensor: (name, place) for name, place in places(anatomy).items()}
    found = {}
    for tensor, a, b in adapter.factors():
        if tensor not in by_tensor:
            raise ExportError(
                f"{where} adapts {tensor}, which {anatomy.model_type} in transformers does not "
                "have in the same form (llama.cpp permutes, splits or transposes some); adapt the "
                "PEFT adapter that it was made from"
            )
        name, place = by_tensor[tensor]
        found[name] = _update(where, tensor, place, a, b, anatomy)
    return found


def on_base(
    path: Path | str, model: nn.Module, anatomy: Anatomy, base_name: str
) -> dict[str, LowRank]:
    """The updates of a LoRA GGUF for a model, of which a skeleton will do. Raises ExportError for
    another base."""
    params = dict(model.named_parameters(remove_duplicate=False))
    updates = read_gguf_lora(path, anatomy)
    for name, update in updates.items():
        if name not in params or tuple(params[name].shape) != update.stored_shape:
            raise ExportError(
                f"{path} does not fit {base_name}: it adapts {name} as {update.stored_shape}; "
                "give the base it was made for"
            )
    return updates


def _update(
    where: Path, tensor: str, place: Place, a: Tensor, b: Tensor, anatomy: Anatomy
) -> LowRank:
    if place.embedding and anatomy.tied:
        raise ExportError(
            f"{where} adapts {tensor}, which this model shares with its unembedding; llama.cpp "
            "cannot run that. Adapt other tensors"
        )
    a = a.mT if place.embedding else a
    fused = place.axes.startswith("expert")
    if a.shape[-2] != b.shape[-1] or a.shape[:-2] != b.shape[:-2] or fused != (b.ndim == 3):
        shapes = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
        raise ExportError(f"{where}: the factors of {tensor} do not fit ({shapes}); {AGAIN}")
    if place.factor == 0.0:
        raise ExportError(
            f"{where} adapts {tensor}, which this model multiplies by 0; leave it out"
        )
    b = b if place.factor == 1.0 else _times(b, 1.0 / place.factor)
    update = LowRank(b.contiguous(), a.contiguous(), place.axes)
    if place.shape is not None and update.stored_shape != place.shape:
        raise ExportError(
            f"{where} was made for another base: it adapts {tensor} as {update.stored_shape}, "
            f"this model has {place.shape}; give the base it was made for"
        )
    return update.trimmed()


def _attach(path: Path, base: Base | None, options: Mapping[str, Any]) -> Attached:
    assert base is not None
    updates = on_base(path, base.model, base.anatomy, base.name)
    delta = WeightDelta(
        updates=updates,
        base="unverified",
        recipe={"adapter": str(path)},
        exactness="W + BA",
        coverage=Coverage(tuple(updates), {}),
    )
    return Attached(base.backend, delta)


def _check(path: Path) -> None:
    adapter = _open(path)
    if adapter.architecture not in ARCHITECTURES.values():
        raise ExportError(
            f"{adapter.file.path} is for {adapter.architecture or 'no architecture'}, which no "
            "model described here has; give another adapter"
        )
    for _ in adapter.factors():
        pass  # reading each is the check


EXPORTER = Exporter(
    name="gguf-lora",
    summary="a LoRA adapter for llama.cpp (--lora), fused experts and SSM writers included",
    marks=(FILE,),
    refusal=_refusal,
    write=_write,
    check=_check,
    attach=_attach,
)
