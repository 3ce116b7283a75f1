"""The ``merged`` format: a whole checkpoint with the edit in its weights, in the base's dtype."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.edits import applied
from interp.errors import ExportError
from interp.export.exporter import Attached, Base, Exporter, open_base
from interp.export.tensors import AGAIN, check_tensors, first_line, read_object
from interp.files import write_json
from interp.models.loading import without_bars
from interp.types import WeightDelta

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


def _refusal(delta: WeightDelta, base: Base) -> str | None:
    params = {name for name, _ in base.model.named_parameters(remove_duplicate=False)}
    if new := [name for name, _ in delta if name not in params]:
        return (
            f"{base.anatomy.model_type} with this config has no {new[0]} ({len(new)} such), so "
            "that a reload would drop it"
        )
    return None


def _write(delta: WeightDelta, base: Base, out: Path, cards: Sequence[str]) -> None:
    with applied(base.model, base.anatomy, delta) as model, without_bars():
        try:
            model.save_pretrained(out)  # type: ignore[operator]
        except ValueError as cause:
            raise ExportError(
                f"transformers does not save this model: {first_line(cause)}"
            ) from cause
        alone = _only_the_unembedding_is_tied(base)
    if base.tokenizer is not None:
        base.tokenizer.save_pretrained(out)  # with its chat template
    if delta.untied and alone:
        config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        write_json(out / CONFIG, config | {"tie_word_embeddings": False})


def _only_the_unembedding_is_tied(base: Base) -> bool:
    """Whether the config's flag ties nothing else.

    Zamba2 shares whole blocks under the same flag. There it must stay set; transformers leaves two
    saved tensors that differ untied even so.
    """
    tied = base.model.get_expanded_tied_weights_keys(all_submodels=True)  # type: ignore[operator]
    return set(tied) <= {f"{base.anatomy.unembed}.weight"}


def _check(path: Path) -> None:
    """Raise ExportError for missing or truncated shards."""
    read_object(path / CONFIG, ExportError)
    shards = set(path.glob("*.safetensors"))
    if (path / INDEX).is_file():
        named = read_object(path / INDEX, ExportError).get("weight_map", {}).values()
        shards |= {path / Path(name).name for name in named}
    if not shards:
        raise ExportError(f"{path} has a config but no *.safetensors; {AGAIN}")
    for shard in sorted(shards):
        check_tensors(shard, ExportError)


def _attach(path: Path, base: Base | None, options: Mapping[str, Any]) -> Attached:
    kept = {k: v for k, v in options.items() if k in ("device_map", "trust_remote_code")}
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
)
