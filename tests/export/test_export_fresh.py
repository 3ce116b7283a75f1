"""The real thing: a second Python process that knows only files and the base's name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from interp.errors import DeltaError, ExportError, InterpError, ModelNotFound
from interp.export import exchange, export, reload, verify_export

CASES = (
    ("llama", "delta", {"embeddings": True}),
    ("gpt2", "merged", {"embeddings": True}),
    ("qwen3_moe", "peft", {"embeddings": True}),
    ("mamba", "delta", {}),
    ("jamba", "peft", {"weights": True}),
)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "to", "options"), CASES)
def test_an_export_is_verified_in_a_fresh_process(model_type, to, options, saved, tmp_path) -> None:
    base = saved(model_type, tokenizer=model_type == "llama")
    out = tmp_path / "out"
    receipt = export(base.ablated(**options), to=to, **base.base, out=out)
    assert receipt.verdict == json.loads((out / "receipt.json").read_text())["verdict"]
    assert receipt.difference <= 2e-5 * receipt.scale < receipt.effect
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_verifying_runs_in_a_fresh_process(saved, tmp_path) -> None:
    base = saved("llama")
    out = tmp_path / "out"
    export(base.ablated(), to="merged", **base.base, out=out)
    assert verify_export(out, str(base.path)).verdict == "verified"


@pytest.mark.slow
def test_an_error_over_there_is_one_line_here(saved, tmp_path, monkeypatch) -> None:
    base = saved("llama")
    request = exchange.Request("delta", str(tmp_path), str(base.path))
    with pytest.raises(DeltaError, match=r"manifest\.json is missing") as caught:
        exchange.ask(request)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(ExportError, match="killed by signal 9"):
        exchange.ask(request)


def test_an_error_keeps_its_class(tmp_path) -> None:
    for name, wanted in (
        ("ModelNotFound", ModelNotFound),
        ("Any", ExportError),
        ("x", ExportError),
    ):
        (tmp_path / exchange.REPLY).write_text(json.dumps({"error": name, "message": "why"}))
        with pytest.raises(wanted, match="why"):
            exchange.Reply.load(tmp_path)


@pytest.mark.slow
def test_importing_is_light() -> None:
    code = (
        "import sys, interp.export; "
        "print([m for m in ('peft', 'transformers', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("hidden_size", 48, "do not fit its config"),
        ("model_type", "perceiver", "no anatomy for model_type 'perceiver'"),
    ],
)
def test_whatever_a_library_raises_is_one_line(field, value, says, saved, tmp_path) -> None:
    base, broken = saved("llama"), tmp_path / "broken"
    shutil.copytree(base.path, broken)
    config = json.loads((broken / "config.json").read_text()) | {field: value}
    (broken / "config.json").write_text(json.dumps(config))
    exchange.Request("merged", str(broken), str(base.path)).save(tmp_path)
    assert reload.main(tmp_path) == 0
    with pytest.raises(InterpError, match=says) as caught:
        exchange.Reply.load(tmp_path)
    assert "\n" not in str(caught.value)
