"""The ``heretic`` format: the adapter that heretic itself would write, and the file it reproduces from.

For edits of heretic's family (``interp heretic``) PEFT saves the adapter as it does for heretic:
seeded as heretic is, with every module that heretic targets, in ``adapter_model.safetensors`` of the
same SHA-256. ``reproduce.json`` (its version 2) holds settings, parameters, environment and that hash;
``cd EXPORT && heretic --reproduce reproduce.json`` computes the directions again from ``prompts/``,
saves, and says whether the hash matches. Same machine and versions are needed for equal bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from interp.data.prompts import PromptSet, load_class
from interp.errors import ExportError
from interp.export import adapters, heretic_program, peft
from interp.export.exporter import Base, Exporter
from interp.export.gate import Passed
from interp.export.tensors import AGAIN, read_object
from interp.files import sha256_file, write_json, write_text
from interp.models.loading import resolve
from interp.types import LowRank, WeightDelta

REPRODUCE = "reproduce.json"
PROMPTS = "prompts"
METHOD = "heretic"
FORMAT = "2"
ROLES = ("good_prompts", "bad_prompts", "good_evaluation_prompts", "bad_evaluation_prompts")
NEEDED = ("target_modules", "kernels", "direction_index", "settings", "prompts", "metrics")
UNKNOWN = "heretic is not installed here, so that it will ask before it reproduces"


def _refusal(delta: WeightDelta, base: Base) -> str | None:
    if delta.recipe.get("method") != METHOD:
        made = delta.recipe.get("method", "something else")
        return f"it is not of heretic's family ({made}; make one with `interp heretic`)"
    if missing := [key for key in NEEDED if key not in delta.recipe]:
        return f"its recipe lacks {missing[0]} (make it with `interp heretic`)"
    return None


def _write(delta: WeightDelta, base: Base, out: Path, passed: Passed) -> dict[str, Any]:
    recipe = delta.recipe
    files = _write_prompts(recipe["prompts"], out / PROMPTS)
    _write_adapter(delta, base, out)
    program = heretic_program.find()
    packages = {} if program is None else program.packages()
    written = {
        "version": FORMAT,
        "timestamp": datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None).isoformat(),
        "environment": _environment(packages),
        "settings": _settings(recipe, base, files),
        "parameters": {
            "direction_index": recipe["direction_index"],
            "abliteration_parameters": recipe["kernels"],
        },
        "metrics": recipe["metrics"],
        "hashes": {peft.TENSORS: sha256_file(out / peft.TENSORS)},
    }
    write_json(out / REPRODUCE, written)
    return {
        "sha256": written["hashes"][peft.TENSORS],
        "environment": "known" if packages else UNKNOWN,
    }


def _write_adapter(delta: WeightDelta, base: Base, out: Path) -> None:
    """PEFT's own initialisation under heretic's seed, the edited modules filled in, PEFT's own save.

    Modules outside the kernel keep their random A beside a zero B, as they do in heretic.
    """
    from peft import LoraConfig, get_peft_model

    rank = delta.recipe["rank"]
    targets = list(delta.recipe["target_modules"])
    # The model's name is what the adapter's config calls its base.
    config: Any = base.model.config
    named, config._name_or_path = config._name_or_path, resolve(base.name)
    trained = [(p, p.requires_grad) for p in base.model.parameters()]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(delta.recipe["seed"])
        wrapped: Any = get_peft_model(
            base.model,  # type: ignore[arg-type]
            LoraConfig(
                r=rank,
                target_modules=targets,
                lora_alpha=rank,
                lora_dropout=0,
                bias="none",
                task_type="CAUSAL_LM",
            ),
        )
        try:
            for name, update in delta:
                assert isinstance(update, LowRank)
                layer = wrapped.base_model.model.get_submodule(name.removesuffix(".weight"))
                for factor, value in ((layer.lora_A, update.a), (layer.lora_B, update.b)):
                    weight = factor["default"].weight
                    weight.data = value.to(weight)
            wrapped.save_pretrained(out)
        finally:
            wrapped.unload()
            config._name_or_path = named
            for param, wanted in trained:  # PEFT froze them
                param.requires_grad_(wanted)


def _write_prompts(named: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """One text file a role, one prompt a line; role → its path as heretic finds it from the export."""
    folder.mkdir()
    for role in ROLES:
        entry = named[role]
        found = _prompts(entry)
        if any(len(p.splitlines()) > 1 for p in found.prompts):
            raise ExportError(
                f"{found.source} has prompts of several lines, which heretic's text files cannot "
                "hold; leave them out and make the edit again"
            )
        write_text(folder / f"{role}.txt", "\n".join(found.prompts) + "\n")
    return {role: f"{PROMPTS}/{role}.txt" for role in ROLES}


def _prompts(entry: Mapping[str, Any]) -> PromptSet:
    """A prompt set as the recipe names it. Raises ExportError when it is no longer the same."""
    found = load_class(entry["name"], entry["side"], split=entry["split"], limit=entry.get("limit"))
    if entry.get("rows") is not None:
        if outside := [i for i in entry["rows"] if not 0 <= i < len(found)]:
            raise ExportError(
                f"the edit was made from prompt {outside[0]} of {entry['name']}, which has "
                f"{len(found)} (from 0 on); put its prompts back, or make the edit again"
            )
        found = PromptSet(tuple(found.prompts[i] for i in entry["rows"]), found.source)
    if found.sha256 != entry["sha256"]:
        raise ExportError(
            f"{entry['name']} is not what the edit was made from any more; make the edit again"
        )
    return found


def _environment(packages: Mapping[str, str]) -> dict[str, Any]:
    return {
        "heretic": {
            "version": packages.get(heretic_program.PACKAGE, heretic_program.VERSION),
            "is_standard_pypi": True,
            "metadata": {"type": "pypi"},
        },
        "pytorch_version": packages.get("torch", torch.__version__),
        "requirements": {name: version.split("+")[0] for name, version in sorted(packages.items())},
    }


def _settings(recipe: Mapping[str, Any], base: Base, files: Mapping[str, str]) -> dict[str, Any]:
    given = dict(recipe["settings"])
    device = next(base.model.parameters()).device.type
    return {
        "model": resolve(base.name),
        "model_commit": base.options.get("revision"),
        "dtypes": [base.dtype],
        "device_map": device,
        "seed": recipe["seed"],
        "row_normalization": recipe["row_normalization"],
        "full_normalization_lora_rank": recipe["rank"]
        if recipe["row_normalization"] == "full"
        else 3,
        "export_strategy": "adapter",
        **given,
        **{role: {"dataset": path} for role, path in files.items()},
    }


def _check(path: Path) -> None:
    """Raise ExportError for damaged files, or an adapter that is not the one in ``reproduce.json``."""
    found = read_object(path / REPRODUCE, ExportError)
    if found.get("version") != FORMAT or not isinstance(found.get("hashes"), dict):
        raise ExportError(f"{path / REPRODUCE} is no reproduce.json of version {FORMAT}; {AGAIN}")
    adapters.check(path)
    for name, expected in found["hashes"].items():
        if name != peft.TENSORS or sha256_file(path / name) != expected:
            raise ExportError(f"{path / name} is not the file in {REPRODUCE}; {AGAIN}")


EXPORTER = Exporter(
    name="heretic",
    summary="heretic's own adapter with its reproduce.json; for edits of heretic's family",
    marks=(REPRODUCE,),
    refusal=_refusal,
    write=_write,
    check=_check,
    attach=peft.EXPORTER.attach,
    direct=peft.EXPORTER.direct,
    library="PEFT",
    priority=15,
)
