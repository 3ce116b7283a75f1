"""The ``merged`` format: a whole checkpoint with the edit in its weights, in the base's dtype.

A base with safetensors is edited as files (:mod:`interp.export.streaming`), with everything else in
its directory carried along; any other base is saved by transformers from memory.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from interp.edits import applied, check_made_for
from interp.errors import ExportError, ModelNotFound
from interp.export import gate
from interp.export.biases import keep_tokenizer, new_biases, resaved, stored_biases
from interp.export.difference import checkpoint_fingerprint
from interp.export.exporter import Attached, Base, Exporter, check_holds, open_base
from interp.export.gate import Passed
from interp.export.measurement import Measurement
from interp.export.placing import place
from interp.export.staging import RECEIPT, check_not_the_base, check_target, publish, staged
from interp.export.streaming import SUMMED, stream, weight_map
from interp.export.tensors import AGAIN, first_line, plain, read_object, sealed
from interp.files import write_json
from interp.models.checkpoint import INDEX, Checkpoint
from interp.models.loading import resolve, without_bars
from interp.models.skeleton import skeleton
from interp.records import FigureRecord
from interp.types import WeightDelta
from interp.watching import Progress, unheard

CONFIG = "config.json"
REPORT = "merge.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
LEFT = {RECEIPT, REPORT, "manifest.json", "adapter_config.json"}
"""Files of the base's directory that are not of the base: receipts, and an adapter beside it, which
transformers would add to the merged model."""
TEMPLATES = "additional_chat_templates"
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def merge(
    delta: WeightDelta,
    base_name: str,
    out: Path | str,
    *,
    overwrite: bool = False,
    cards: Sequence[FigureRecord] = (),
    measured: Measurement | None = None,
    unproven: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    advance: Progress = unheard,
) -> dict[str, Any]:
    """Merge a delta into a checkpoint without ever loading the model; what was done, as written.

    Memory stays at a few tens of megabytes above the imports, whatever the size. No logits are
    compared: :func:`interp.export.verify_export` does that where the model can be loaded. ``out``
    gets ``merge.json`` instead of a receipt.
    cards, measured, unproven: as in :func:`interp.export.export`.
    Raises ModelNotFound for a base without safetensors on this machine, DeltaError for another
    base, ExportError for what the files cannot hold and for an edit that is not proven; then nothing
    is left at ``out``.
    """
    passed = gate.check(delta, cards, measured, unproven=unproven)
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    model, anatomy = skeleton(base_name, **options)  # type: ignore[arg-type]
    base = Base(model, None, anatomy, base_name, options)
    checkpoint = checkpoint_of(base)
    target = check_target(Path(out), overwrite=overwrite)
    check_not_the_base(target, checkpoint.folder)
    found = checkpoint_fingerprint(checkpoint, anatomy)
    check_made_for(delta, found)
    check_holds(EXPORTER, delta, base)
    with staged(target) as stage:
        done = _stream(checkpoint, delta, base, stage, advance)
        report = {"base": base_name, "fingerprint": found, **done, **passed.as_json()}
        report |= {"recipe": delta.recipe, "exactness": delta.exactness}
        write_json(stage / REPORT, sealed(plain(report, "the report", ExportError)))
        publish(stage, target, overwrite=overwrite)
    return report


def checkpoint_of(base: Base) -> Checkpoint:
    """The base's safetensors on this machine. Raises ModelNotFound where there are none."""
    return _checkpoint(base.name, base.options.get("revision"))


def checkpoint_size(name: str, revision: str | None = None) -> int:
    """Bytes of a base's safetensors files. Raises ModelNotFound where there are none."""
    return sum(file.stat().st_size for file in _checkpoint(name, revision).files)


def _checkpoint(name: str, revision: str | None) -> Checkpoint:
    folder = Path(resolve(name))
    return Checkpoint.open(folder if folder.is_dir() else _downloaded(name, revision))


def _downloaded(name: str, revision: str | None) -> Path:
    """The directory in the hub's cache where a model lies that was opened by its id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise ModelNotFound(
            f"{name} is not on this machine; download it with: hf download {name}"
        ) from None


def _refusal(delta: WeightDelta, base: Base) -> str | None:
    if (reason := _quantised(delta, base)) is not None:
        return reason
    if not (new := new_biases(delta, base)):
        return None  # place() names a weight that there is not
    try:
        resaved(base, new, checkpoint_of(base).folder)
    except ModelNotFound:
        return (
            f"new biases ({len(new)}) are streamed, and the base has no safetensors on this machine"
        )
    except ExportError as error:
        return str(error)
    return None


def _quantised(delta: WeightDelta, base: Base) -> str | None:
    """Why the base's files cannot take the sums: what the delta edits is stored as codes."""
    try:
        checkpoint = checkpoint_of(base)
    except ModelNotFound:
        return None
    for name, _ in delta:
        for key in delta.checkpoint.get(name, (name,)):
            stored = checkpoint.tensors.get(checkpoint.find(key) or "")
            if stored is not None and stored.code not in SUMMED:
                how = checkpoint.quantisation.how if checkpoint.quantisation else stored.code
                return f"the base's files are quantised ({how}; {key})"
    if checkpoint.quantisation is not None and checkpoint.quantisation.opaque:
        return f"the base's files are quantised ({checkpoint.quantisation.how})"
    return None


def _write(delta: WeightDelta, base: Base, out: Path, passed: Passed) -> dict[str, Any]:
    try:
        checkpoint = checkpoint_of(base)
    except ModelNotFound:  # a base in another file format, which only transformers reads
        return _save(delta, base, out)
    return _stream(checkpoint, delta, base, out)


def _stream(
    checkpoint: Checkpoint,
    delta: WeightDelta,
    base: Base,
    out: Path,
    advance: Progress = unheard,
) -> dict[str, Any]:
    new = new_biases(delta, base)
    placed = place(checkpoint, base.anatomy, delta, new)
    made = resaved(base, new, checkpoint.folder) if new else None
    with TemporaryDirectory() as scratch:
        if made is not None:
            placed.copies.update(stored_biases(made, delta, base, checkpoint, Path(scratch)))
        done = stream(checkpoint, out, placed.patches, placed.copies, advance)
    _carry(checkpoint.folder, out)
    if made is not None:
        write_json(out / CONFIG, made.config)
        if made.architecture:
            keep_tokenizer(base, checkpoint.folder, out)
    if (checkpoint.folder / INDEX).is_file():
        index = read_object(checkpoint.folder / INDEX, ExportError)
        write_json(out / INDEX, weight_map(checkpoint, placed.copies, index))
    _untie(delta, base, out)
    found: dict[str, Any] = {} if made is None else {"resaved": made.as_json()}
    if leaks := done.leaks:
        at = max(leaks, key=leaks.__getitem__)
        found["leak"] = {"largest": leaks[at], "at": at}
    return {
        "written": "streamed",
        "dtype": stored_dtype(checkpoint),
        "bytes": done.size,
        "tensors": {"edited": len(placed.patches), "added": sorted(placed.copies)},
        **found,
    }


def _carry(folder: Path, out: Path) -> None:
    """Config, tokenizer, chat templates, generation config, licence, remote code: all but weights."""
    for path in sorted(folder.iterdir()):
        if path.name == TEMPLATES and path.is_dir():
            shutil.copytree(path, out / TEMPLATES)
        elif path.is_file() and path.name not in LEFT and not _is_weights(path.name):
            shutil.copyfile(path, out / path.name)


def _is_weights(name: str) -> bool:
    return name.startswith(".") or name.removesuffix(".index.json").endswith(WEIGHTS)


def _save(delta: WeightDelta, base: Base, out: Path) -> dict[str, Any]:
    with applied(base.model, base.anatomy, delta) as model, without_bars():
        try:
            model.save_pretrained(out)  # type: ignore[operator]
        except ValueError as cause:
            raise ExportError(
                f"transformers does not save this model: {first_line(cause)}"
            ) from cause
    if base.tokenizer is not None:
        base.tokenizer.save_pretrained(out)  # with its chat template
    _untie(delta, base, out)
    return {"written": "saved from memory", "dtype": base.dtype}


def _untie(delta: WeightDelta, base: Base, out: Path) -> None:
    if delta.untied and _only_the_unembedding_is_tied(base):
        config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        write_json(out / CONFIG, config | {"tie_word_embeddings": False})


def _only_the_unembedding_is_tied(base: Base) -> bool:
    """Whether the config's flag ties nothing else.

    Zamba2 shares whole blocks under the same flag. There it must stay set; transformers leaves two
    saved tensors that differ untied even so.
    """
    tied = base.model.get_expanded_tied_weights_keys(all_submodels=True)  # type: ignore[operator]
    return set(tied) <= {f"{base.anatomy.unembed}.weight"}


def stored_dtype(checkpoint: Checkpoint) -> str:
    """The dtype of the values that most of the checkpoint's bytes stand for."""
    sizes: Counter[str] = Counter()
    for name, stored in checkpoint.tensors.items():
        scaled = str(checkpoint.dtype).removeprefix("torch.") if name in checkpoint.scales else ""
        sizes[scaled or NAMES.get(stored.code, stored.code)] += stored.size
    return sizes.most_common(1)[0][0]


def _check(path: Path) -> None:
    """Raise ExportError for missing or truncated shards."""
    read_object(path / CONFIG, ExportError)
    try:
        Checkpoint.open(path)
    except ModelNotFound as error:
        what = str(error).rpartition(";")[0] or str(
            error
        )  # its mend is for a base: to download it again
        raise ExportError(f"{what}; {AGAIN}") from None


def _dtype(path: Path) -> str:
    return stored_dtype(Checkpoint.open(path))


def _attach(path: Path, base: Base | None, options: Mapping[str, Any]) -> Attached:
    kept = {k: v for k, v in options.items() if k in ("dtype", "device_map", "trust_remote_code")}
    return Attached(open_base(str(path), kept).backend)


EXPORTER = Exporter(
    name="merged",
    summary="a whole checkpoint in the base's dtype, with tokenizer and chat template",
    marks=(CONFIG,),
    refusal=_refusal,
    write=_write,
    check=_check,
    attach=_attach,
    standalone=True,
    library="transformers",
    dtype=_dtype,
)
