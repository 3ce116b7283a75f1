"""Receipts, refusals, and exports that are whole or absent."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toolbox import card
from torch import nn

from interp import files
from interp.errors import DeltaError, ExportError, InterpError
from interp.export import Receipt, exchange, export, reload, verify_export
from interp.export import peft as peft_format
from interp.export.tensors import sealed

FORMATS = ("delta", "merged", "peft")


@pytest.fixture(scope="module")
def exports(saved, tmp_path_factory) -> dict[str, Path]:
    """One export of each format, made in this process."""
    patch = pytest.MonkeyPatch()
    from interp.export import reload

    patch.setattr(exchange, "ask", reload.answer)
    base, out = saved("llama", tokenizer=True), tmp_path_factory.mktemp("exports")
    for to in FORMATS:
        export(base.ablated(), to=to, **base.base, out=out / to, cards=[card()])
    patch.undo()
    return {to: out / to for to in FORMATS}


@pytest.fixture(params=FORMATS)
def copy(request, exports, tmp_path) -> Path:
    return Path(shutil.copytree(exports[request.param], tmp_path / request.param))


def weights(folder: Path) -> Path:
    (found,) = folder.glob("*.safetensors")
    return found


# --- receipts


def test_the_receipt_says_what_was_compared(exports, saved) -> None:
    base = saved("llama", tokenizer=True)
    for to, folder in exports.items():
        receipt = Receipt.load(folder)
        stored = json.loads((folder / "receipt.json").read_text())
        assert stored["verdict"] == receipt.verdict == "verified"
        assert (receipt.format, receipt.base, receipt.dtype) == (to, str(base.path), "float32")
        assert receipt.fingerprint == base.ablated().base
        assert receipt.coverage == {"edited": 6, "skipped": 1, "total": 7}
        assert receipt.recipe["method"] == "ablation"
        assert [c["key"] for c in receipt.cards] == ["paper/figure"]
        assert [m.partition(":")[0] for m in receipt.missing] == [
            "the edit was not measured on held-out prompts"
        ]
        assert receipt.difference <= receipt.tolerance * receipt.scale < receipt.effect
        assert receipt.versions.keys() >= {"interp", "torch", "transformers", "peft"}
        assert receipt.seconds > 0
        present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert receipt.files.keys() == present - {"receipt.json"}
        # Nothing beside a config but the weights themselves.
        assert len(list(folder.glob("*.safetensors"))) == 1


def test_the_probe_is_small_and_has_prompts(exports) -> None:
    probe = load_file(exports["delta"] / "verification" / "probe.safetensors")
    assert probe["ids"].shape == probe["mask"].shape
    assert len(probe["ids"]) == 8
    assert probe["logits"].shape == (8, 97)
    assert probe["logits"].dtype == probe["logsumexp"].dtype == torch.float32
    assert probe["mask"][-1].sum() < probe["mask"][0].sum()


def test_a_verdict_is_computed_from_the_numbers() -> None:
    good = Receipt("delta", "b", "f", "float32", 1e-5, 1.0, 2.0, 1e-4)
    assert (good.verdict, good.why) == ("verified", "")
    for change, says in (
        ({"difference": 3e-4}, "differ by 0.0003"),
        ({"difference": float("inf")}, "differ by inf"),
        ({"effect": 0.0, "difference": 0.0}, "changes nothing"),
        ({"effect": 1.5e-5}, "rounding in float32 hides"),
        ({"difference": 1.0, "dtype": "bfloat16"}, "load the base in float32"),
    ):
        bad = replace(good, **change)
        assert bad.verdict == "failed"
        assert says in bad.why


def test_whoever_may_read_the_directory_may_read_the_files(exports) -> None:
    for folder in exports.values():
        modes = {p.stat().st_mode & 0o777 for p in folder.rglob("*") if p.is_file()}
        assert modes == {folder.stat().st_mode & 0o666}


@pytest.mark.usefixtures("in_process")
def test_verifying_recomputes_the_receipt(copy, saved) -> None:
    base = saved("llama", tokenizer=True)
    stored, found = Receipt.load(copy), verify_export(copy, str(base.path))
    assert found.verdict == "verified"
    assert found.probe == "stored"
    assert found.difference < 1e-5 * found.scale
    assert found.effect == pytest.approx(stored.effect, rel=1e-4)
    assert found.fingerprint == stored.fingerprint


# --- corruptions


def truncate(folder: Path) -> None:
    weights(folder).write_bytes(weights(folder).read_bytes()[:-9])


def flip(folder: Path) -> None:
    data = bytearray(weights(folder).read_bytes())
    data[-2] ^= 16
    weights(folder).write_bytes(bytes(data))


def edit_receipt(folder: Path) -> None:
    path = folder / "receipt.json"
    path.write_text(path.read_text().replace('"effect": ', '"effect": 1'))


def forge_receipt(folder: Path, **changes) -> None:
    path = folder / "receipt.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | changes)))


def forge_hashes(folder: Path) -> None:
    """Weights that were changed, and a receipt that was made to fit them."""
    tensors = load_file(weights(folder))
    save_file({k: v * 1.5 for k, v in tensors.items()}, weights(folder), {"format": "pt"})
    if (manifest := folder / "manifest.json").is_file():
        changed = json.loads(manifest.read_text()) | {"sha256": files.sha256_file(weights(folder))}
        manifest.write_text(json.dumps(sealed(changed)))
    found = json.loads((folder / "receipt.json").read_text())["files"]
    forge_receipt(folder, files={name: files.sha256_file(folder / name) for name in found})


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "is not the file that was verified"),
        (flip, "is not the file that was verified"),
        (lambda f: weights(f).unlink(), "is missing"),
        (lambda f: shutil.rmtree(f / "verification"), r"probe\.safetensors is missing"),
        (edit_receipt, "changed after it was written"),
        (lambda f: (f / "receipt.json").write_text("{"), "not readable JSON"),
        (lambda f: forge_receipt(f, receipt=2), "has version 2"),
        (lambda f: forge_receipt(f, verdict="failed"), "claims 'failed'"),
        (lambda f: forge_receipt(f, effect=None), "is no receipt"),
        (lambda f: forge_receipt(f, format="tarball"), "no export format 'tarball'"),
        (lambda f: forge_receipt(f, files={"../../etc/passwd": "0"}), "names .* outside it"),
        (lambda f: forge_receipt(f, files={"/etc/passwd": "0"}), "names .* outside it"),
        (forge_hashes, "its logits differ by"),
    ],
)
def test_every_corruption_is_one_clear_error(copy, damage, says, saved) -> None:
    damage(copy)
    with pytest.raises(ExportError, match=says) as caught:
        verify_export(copy, str(saved("llama", tokenizer=True).path))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("in_process")
def test_another_base_is_an_error(copy, saved) -> None:
    for other in (saved("llama", seed=3), saved("llama", hidden_size=48), saved("qwen2")):
        with pytest.raises(ExportError, match="was made for another base"):
            verify_export(copy, str(other.path))


@pytest.mark.usefixtures("in_process")
def test_without_its_receipt_an_export_is_judged_as_a_foreign_one(copy, saved) -> None:
    (copy / "receipt.json").unlink()
    found = verify_export(copy, str(saved("llama", tokenizer=True).path))
    assert (found.verdict, found.probe) == ("verified", "no stored probe")
    with pytest.raises(InterpError):
        verify_export(copy, str(saved("llama", hidden_size=48).path))


def test_what_is_no_export_is_an_error(saved, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    for path, says in (
        (tmp_path / "empty", "holds no export that this version knows"),
        (tmp_path / "nowhere", "does not exist"),
        (saved("llama").path / "config.json", "is a file; give the directory"),
    ):
        with pytest.raises(ExportError, match=says):
            verify_export(path, str(saved("llama").path))


@pytest.mark.usefixtures("in_process")
def test_a_probe_without_its_parts_is_an_error(copy, saved) -> None:
    path = copy / "verification" / "probe.safetensors"
    save_file({"ids": torch.ones(1, 2)}, path)
    known = Receipt.load(copy).files
    forge_receipt(copy, files=known | {"verification/probe.safetensors": files.sha256_file(path)})
    with pytest.raises(ExportError, match="is no probe"):
        verify_export(copy, str(saved("llama", tokenizer=True).path))


# --- exports that do not verify


def nothing_is_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("to", FORMATS)
def test_an_edit_without_effect_is_refused(to, saved, tmp_path) -> None:
    base = saved("llama")
    with pytest.raises(ExportError, match="did not verify: it loads but changes nothing"):
        export(base.ablated().scale(0.0), to=to, **base.base, out=tmp_path / "out")
    assert nothing_is_left(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_logits_that_overflow_are_refused(saved, tmp_path) -> None:
    base = saved("llama", dtype="float16")
    with pytest.raises(
        ExportError, match=r"the edited model overflows: .*; or make the edit weaker"
    ):
        export(base.ablated().scale(1e6), to="delta", **base.base, out=tmp_path / "out")
    assert nothing_is_left(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_an_effect_that_rounding_hides_is_refused(saved, tmp_path) -> None:
    base = saved("llama", dtype="bfloat16")
    with pytest.raises(ExportError, match=r"changes nothing|rounding in bfloat16 hides"):
        export(base.ablated().scale(1e-3), to="peft", **base.base, out=tmp_path / "out")
    assert nothing_is_left(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_a_writer_that_writes_something_else_is_caught(saved, tmp_path, monkeypatch) -> None:
    """An exporter that gives every expert the factors of another."""
    base = saved("mixtral")

    def wrong(delta, opened, out, passed):
        peft_format._write(delta, opened, out, passed)
        tensors = load_file(out / peft_format.TENSORS)
        for key, value in tensors.items():
            if "experts.lora_A" in key:
                tensors[key] = value.flip(0).contiguous()
        save_file(tensors, out / peft_format.TENSORS)

    from interp.export import EXPORTERS

    monkeypatch.setitem(EXPORTERS, "peft", replace(EXPORTERS["peft"], write=wrong))
    with pytest.raises(ExportError, match="did not verify: its logits differ by"):
        export(base.disturbed(), to="peft", **base.base, out=tmp_path / "out")
    assert nothing_is_left(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_a_delta_for_another_base_is_refused(saved, tmp_path) -> None:
    base, other = saved("llama"), saved("llama", seed=3)
    with pytest.raises(DeltaError, match="another base"):
        export(other.ablated(), to="delta", **base.base, out=tmp_path / "out")
    # The name leads a fresh process to other weights than those that are open here.
    with pytest.raises(InterpError, match="another base"):
        export(
            base.ablated(),
            to="peft",
            base=base.base["base"],
            base_name=str(other.path),
            unproven=True,
            out=tmp_path / "out",
        )
    assert nothing_is_left(tmp_path)


@pytest.mark.usefixtures("in_process")
def test_load_options_must_be_plain(saved, tmp_path) -> None:
    base = saved("llama")
    request = exchange.Request("delta", "p", "b", options={"dtype": torch.float32})
    with pytest.raises(ExportError, match="load option is not plain JSON"):
        request.save(tmp_path)
    assert nothing_is_left(tmp_path)
    receipt = export(
        base.ablated(), to="delta", **base.base, out=tmp_path / "out", trust_remote_code=False
    )
    assert receipt.verdict == "verified"


# --- memory


def bytes_in_memory(model: nn.Module) -> int:
    return sum(value.untyped_storage().nbytes() for value in model.state_dict().values())


@pytest.mark.parametrize("keep", [True, False])
def test_two_models_are_never_in_memory(keep, saved, tmp_path, monkeypatch) -> None:
    """The fresh process loads a model when the open one has given its memory back, also for the source."""
    base, held = saved("llama", tokenizer=True), []
    delta, model = base.ablated(weights=True), deepcopy(base.model)

    def answer(request):
        held.append(bytes_in_memory(model))
        return reload.answer(request)

    monkeypatch.setattr(exchange, "ask", answer)
    opened = {**base.base, "base": (model, base.tokenizer, base.anatomy)}
    source = tmp_path / "source"
    export(delta, to="peft", **opened, out=source)
    export(delta, to="delta", **opened, out=tmp_path / "out", source=source, keep_model=keep)
    assert held == [0, 0, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]
    assert bool(bytes_in_memory(model)) == keep


@pytest.mark.usefixtures("in_process")
def test_the_weights_come_back_bit_for_bit(saved, tmp_path) -> None:
    """Also tied, and after an export that does not verify."""
    base = saved("llama")
    model, anatomy = deepcopy(base.model), base.anatomy
    opened = {**base.base, "base": (model, None, anatomy)}
    with pytest.raises(ExportError, match="changes nothing"):
        export(base.ablated().scale(0.0), to="delta", **opened, out=tmp_path / "out")
    before, after = base.model.state_dict(), model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    embedding, unembedding = (model.get_submodule(name).weight for name in
                              (anatomy.embeddings[0].module, anatomy.unembed))  # fmt: skip
    assert embedding.data_ptr() == unembedding.data_ptr()
    assert nothing_is_left(tmp_path)
