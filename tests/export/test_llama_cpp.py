"""llama.cpp itself on our two GGUF formats, with SmolLM2 in fp32, against our own logits.

Needs ``llama-cpp-python`` in this environment or in that of the interpreter that
``INTERP_LLAMA_PYTHON`` names. llama.cpp gets token ids, so no tokenizer is involved. Its library
takes a control vector as one array that begins with block 1; ``common_control_vector_load`` of its
command line puts ``direction.k`` at ``(k - 1) · d_model`` there, and so does this file.

With ``INTERP_LLAMA_SOURCE``, a checkout of llama.cpp, every described family that llama.cpp has is
converted by its own script and compared in the same way (about two minutes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from interp.backends.hooks import HooksBackend
from interp.backends.opening import open_model
from interp.edits import Edit, ablation, steering, to_delta
from interp.errors import ModelNotFound
from interp.export.exporter import Base
from interp.export.gate import Passed
from interp.export.gguf_lora import EXPORTER as LORA
from interp.export.gguf_vector import EXPORTER as VECTOR
from interp.export.gguf_vector import read_gguf_vector
from interp.models import describe, tiny_model
from interp.models.embedded import gguf_file
from interp.operators import Addition, LeastDisturbance
from interp.sites import Site
from interp.types import Direction, TokenBatch

pytestmark = pytest.mark.slow

SOURCE = os.environ.get("INTERP_LLAMA_SOURCE")
PYTHON = os.environ.get("INTERP_LLAMA_PYTHON", sys.executable)
TOLERANCE = 1e-4
"""Relative to the largest logit; at most 2e-5 was measured, and 8e-6 for SmolLM2."""
BLOCK = 14
RUNNER = r"""
import ctypes, json, sys
import numpy as np
import llama_cpp as l

order = json.load(open(sys.argv[1]))
l.llama_backend_init()
model = l.llama_model_load_from_file(order["model"].encode(), l.llama_model_default_params())
assert model, "llama.cpp does not load the model"
ids = order["ids"]
vocab = l.llama_vocab_n_tokens(l.llama_model_get_vocab(model))
found = []
for run in order["runs"]:
    params = l.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 64
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # GGML_TYPE_F32: the cache's own default is half precision
    params.flash_attn_type = 0
    context = l.llama_init_from_model(model, params)
    if run["lora"]:
        adapter = l.llama_adapter_lora_init(model, run["lora"].encode())
        assert adapter, "llama.cpp does not load the adapter"
        adapters = (l.llama_adapter_lora_p_ctypes * 1)(adapter)
        assert l.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)) == 0
    if run["vector"]:
        data = np.ascontiguousarray(np.load(run["vector"]), dtype=np.float32)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        d_model = l.llama_model_n_embd(model)
        last = l.llama_model_n_layer(model)
        assert l.llama_set_adapter_cvec(context, pointer, data.size, d_model, 1, last) == 0
    batch = l.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0], batch.logits[i] = 0, 1
    assert l.llama_decode(context, batch) == 0
    rows = [np.ctypeslib.as_array(l.llama_get_logits_ith(context, i), (vocab,)).copy()
            for i in range(len(ids))]
    found.append(np.stack(rows))
    l.llama_batch_free(batch)
    l.llama_free(context)
np.save(order["out"], np.stack(found))
"""


def _runs(*command: str) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([PYTHON, *command], capture_output=True, text=True, env=own)


@pytest.fixture(scope="session", autouse=True)
def _llama_cpp() -> None:
    try:
        found = _runs("-c", "import llama_cpp")
    except OSError as error:
        pytest.skip(f"INTERP_LLAMA_PYTHON is no interpreter: {error}")
    if found.returncode:
        pytest.skip(f"{PYTHON} has no llama_cpp; set INTERP_LLAMA_PYTHON to one that has")


def llama_logits(
    model: Path, ids: Sequence[int], runs: Sequence[dict[str, str | None]], folder: Path
) -> Tensor:
    """llama.cpp's logits ``[run, position, vocab]``; a run names an adapter and a vector, or None."""
    order = {"model": str(model), "ids": list(ids), "out": str(folder / "out.npy")}
    empty = {"lora": None, "vector": None}
    (folder / "order.json").write_text(json.dumps(order | {"runs": [empty | r for r in runs]}))
    (folder / "runner.py").write_text(RUNNER)
    done = _runs(str(folder / "runner.py"), str(folder / "order.json"))
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.from_numpy(np.load(folder / "out.npy"))


def flat(vectors: dict[int, Tensor], n_blocks: int, path: Path) -> str:
    """The array that llama.cpp's command line makes of a control vector file."""
    size = len(next(iter(vectors.values())))
    data = np.zeros((n_blocks - 1, size), dtype=np.float32)
    for block, vector in vectors.items():
        data[block - 1] = vector.numpy()
    np.save(path, data)
    return str(path)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference of any logit, in units of the largest logit."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def in_float32(source: Path, target: Path) -> Path:
    """The same model with every tensor dequantised."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(key, field.contents(), field.types[0], inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@dataclass(frozen=True)
class Both:
    """One model, open here and as a file of llama.cpp."""

    backend: Any
    file: Path
    ids: list[int]

    @property
    def base(self) -> Base:
        backend = self.backend
        return Base(backend.model, backend.tokenizer, backend.anatomy, backend.name)

    def logits(self, edit: Any = None) -> Tensor:
        ids = torch.tensor([self.ids])
        return self.backend.logits(TokenBatch(ids, torch.ones_like(ids)), edit, None)[0].float()


@pytest.fixture(scope="session")
def smollm2(_llama_cpp: None, tmp_path_factory: pytest.TempPathFactory) -> Both:
    try:
        source = gguf_file()
    except ModelNotFound as error:
        pytest.skip(str(error))
    file = in_float32(source, tmp_path_factory.mktemp("llama") / "f32.gguf")
    backend = open_model("smollm2", dtype="float32")
    ids = backend.tokenizer("The capital of France is Paris, and the capital of").input_ids
    return Both(backend, file, ids)


def direction(both: Both) -> Tensor:
    """Something of the size of the stream, in which steering and ablation change the logits."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(both.backend.anatomy.d_model, generator=generator)


def test_a_lora_changes_the_logits_as_its_delta_does(smollm2, tmp_path) -> None:
    backend = smollm2.backend
    unit = direction(smollm2)
    removed = ablation(backend.model, backend.anatomy, Direction(unit / unit.norm(), 0, "random"))
    generator, operators = torch.Generator().manual_seed(7), {}
    for writer in backend.anatomy.block_writers[::3]:
        probe = torch.randn(writer.d_in, generator=generator)
        operators[writer.weight] = LeastDisturbance(unit / unit.norm(), probe, 3.0)
    parts = (removed, Edit(operators, recipe={"method": "test"}))
    one, other = (to_delta(backend.model, backend.anatomy, edit) for edit in parts)
    delta = one.compose(other)
    assert {update.rank for _, update in delta} == {1, 2}  # padded to 2, with alpha 2
    LORA.write(delta, smollm2.base, tmp_path, Passed())
    runs = [{}, {"lora": str(tmp_path / "adapter.gguf")}]
    plain, adapted = llama_logits(smollm2.file, smollm2.ids, runs, tmp_path)
    ours, edited = smollm2.logits(), smollm2.logits(delta)
    differences = relative(plain, ours), relative(adapted, edited)
    effect = relative(edited, ours)
    print(f"plain {differences[0]:.2e}, LoRA {differences[1]:.2e}, effect {effect:.2e}")
    assert max(differences) < TOLERANCE
    assert effect > 50 * TOLERANCE
    assert torch.equal(adapted.argmax(-1), edited.argmax(-1))


def test_a_control_vector_acts_after_the_block_that_it_names(smollm2, tmp_path) -> None:
    backend = smollm2.backend
    vector = 4.0 * direction(smollm2)
    steered = {k: steering(Site.resid_post(k), vector) for k in (BLOCK - 1, BLOCK, BLOCK + 1)}
    delta = to_delta(backend.model, backend.anatomy, steered[BLOCK])
    VECTOR.write(delta, smollm2.base, tmp_path, Passed())
    vectors = read_gguf_vector(tmp_path)
    assert list(vectors) == [BLOCK]
    array = flat(vectors, backend.anatomy.n_blocks, tmp_path / "flat.npy")
    (found,) = llama_logits(smollm2.file, smollm2.ids, [{"vector": array}], tmp_path)
    ours = smollm2.logits()
    near = {k: relative(found, smollm2.logits(edit)) for k, edit in steered.items()}
    effect = relative(smollm2.logits(steered[BLOCK]), ours)
    print({k: f"{v:.2e}" for k, v in near.items()}, f"effect {effect:.2e}")
    assert near[BLOCK] < TOLERANCE
    assert min(near[BLOCK - 1], near[BLOCK + 1]) > 10 * TOLERANCE
    assert effect > 50 * TOLERANCE


def test_several_blocks_and_the_last_one(smollm2, tmp_path) -> None:
    backend = smollm2.backend
    last = backend.anatomy.n_blocks - 1
    strengths = {1: 1.0, 7: -2.0, last: 9.0}
    edit = Edit(
        sites={Site.resid_post(k): Addition(direction(smollm2), c) for k, c in strengths.items()}
    )
    VECTOR.write(to_delta(backend.model, backend.anatomy, edit), smollm2.base, tmp_path, Passed())
    array = flat(read_gguf_vector(tmp_path), backend.anatomy.n_blocks, tmp_path / "flat.npy")
    (found,) = llama_logits(smollm2.file, smollm2.ids, [{"vector": array}], tmp_path)
    assert relative(found, smollm2.logits(edit)) < TOLERANCE
    assert relative(smollm2.logits(edit), smollm2.logits()) > 50 * TOLERANCE


# --- every family, converted by llama.cpp's own script -------------------------------------------

SQUARE = {"head_dim": 8}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
UNBIASED = {"use_bias": False}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bamba": (
        SQUARE
        | {"mamba_proj_bias": False, "mlp_bias": False}
        | {"rope_parameters": PLAIN | {"partial_rotary_factor": 1.0}},
        {"attn_rotary_emb": 8},
    ),
    "cohere": (SQUARE, {}),
    "deepseek_v3": ({}, {"scoring_func": "sigmoid"}),
    "falcon_h1": (
        SQUARE | {"projectors_bias": False, "mlp_bias": False, "mamba_rms_norm": False},
        {},
    ),
    "falcon_mamba": (UNBIASED, {}),
    "gemma": ({}, {}),
    "gemma2": ({}, {}),
    "gemma3_text": ({}, {}),
    "gpt2": ({"n_inner": 128}, {"n_ctx": 128}),
    "gpt_neox": ({}, {"rotary_pct": 0.25}),
    "gpt_oss": ({"rope_parameters": PLAIN, "sliding_window": 128}, {}),
    "granite": (SQUARE | {"attention_bias": False, "mlp_bias": False}, {}),
    "granitemoe": (SQUARE, {}),
    "granitemoehybrid": (
        SQUARE | {"mamba_proj_bias": False},
        {"layer_types": ["mamba", "attention", "mamba"]},
    ),
    "jamba": (SQUARE | {"mamba_proj_bias": False}, {}),
    "llama": ({}, {}),
    "mamba": (UNBIASED, {}),
    "mamba2": (UNBIASED, {}),
    "mistral": (SQUARE | {"sliding_window": None}, {}),
    "mixtral": (SQUARE, {}),
    "nemotron_h": (
        UNBIASED | {"hybrid_override_pattern": "M-*", "mlp_bias": False},
        {"hybrid_override_pattern": "M-*"}
        | dict.fromkeys(("num_experts_per_tok", "n_routed_experts", "n_shared_experts", "n_group")),
    ),
    "olmo": (SQUARE, {}),
    "olmo2": (SQUARE, {}),
    "olmo3": (SQUARE, {}),
    "olmoe": (SQUARE | {"num_key_value_heads": 4}, {}),
    "phi": (SQUARE | {"num_key_value_heads": 4, "intermediate_size": 128}, {}),
    "phi3": (SQUARE, {}),
    "qwen2": (SQUARE, {}),
    "qwen2_moe": (SQUARE | {"mlp_only_layers": None}, {}),
    "qwen3": ({}, {}),
    "qwen3_moe": ({"mlp_only_layers": None}, {}),
    "smollm3": (SQUARE, {}),
    "stablelm": ({"qk_layernorm": False}, {}),
    "starcoder2": (SQUARE | {"sliding_window": None}, {}),
}
"""Sizes without what llama.cpp lacks (biases of Mamba, other head sizes), and what its script wants
in a config that transformers no longer saves; None takes a key out."""
TABLED = {"gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi", "starcoder2"}
"""Families with GELU, which llama.cpp takes from a table in half precision: 6e-4 without any edit."""
CONVERTER = r"""
import json, sys
from pathlib import Path

source, folder, out, extra = sys.argv[1:]
sys.path.insert(0, source)
import torch
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
import gguf

hparams, extra = ModelBase.load_hparams(Path(folder), False), json.loads(extra)
own = get_model_class(get_model_architecture(hparams, ModelType.TEXT), mmproj=False)

def set_vocab(self):
    self.gguf_writer.add_tokenizer_model("no_vocab")
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

own.set_vocab = set_vocab
hparams = {k: v for k, v in (hparams | extra).items() if k not in extra or v is not None}
given = {"hparams": hparams} if extra else {}
with torch.inference_mode():
    own(Path(folder), gguf.LlamaFileType.ALL_F32, Path(out), eager=True, **given).write()
"""


def converted(model_type: str, folder: Path) -> Both:
    """A tiny model as llama.cpp's own script converts it, without a vocabulary."""
    overrides, extra = FAMILIES[model_type]
    model = tiny_model(model_type, **overrides)
    saved, file = folder / "model", folder / "model.gguf"
    model.save_pretrained(saved)  # type: ignore[operator]
    vocabulary = {str(i): i for i in range(97)}  # Gemma 3's conversion counts it
    tokenizer = json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []})
    (saved / "tokenizer.json").write_text(tokenizer)
    (folder / "convert.py").write_text(CONVERTER)
    arguments = (str(SOURCE), str(saved), str(file), json.dumps(extra))
    done = subprocess.run(
        [sys.executable, str(folder / "convert.py"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ids = torch.randint(3, 97, (11,), generator=torch.Generator().manual_seed(0)).tolist()
    return Both(HooksBackend(model, None, describe(model), model_type), file, ids)


@pytest.mark.skipif(SOURCE is None, reason="INTERP_LLAMA_SOURCE names no checkout of llama.cpp")
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_every_family_agrees_with_llama_cpp(kind, tmp_path) -> None:
    both = converted(kind, tmp_path)
    backend, anatomy = both.backend, both.backend.anatomy
    generator = torch.Generator().manual_seed(2)
    operators = {}
    for writer in (*anatomy.block_writers, *(() if anatomy.tied else anatomy.embeddings)):
        unit = torch.randn(writer.d_out, generator=generator)
        shape = (writer.shape[0], writer.d_in) if writer.fused else (writer.d_in,)
        probe = torch.randn(shape, generator=generator) / writer.d_in**0.5
        operators[writer.weight] = LeastDisturbance(unit / unit.norm(), probe, 0.7)
    delta = to_delta(backend.model, anatomy, Edit(operators, recipe={"method": "probe"}))
    assert LORA.refusal(delta, both.base) is None
    LORA.write(delta, both.base, tmp_path, Passed())
    edit = steering(Site.resid_post(1), torch.randn(anatomy.d_model, generator=generator))
    (vector,) = (operator.vector for operator in edit.sites.values())
    array = flat({1: vector}, anatomy.n_blocks, tmp_path / "flat.npy")
    runs = [{}, {"lora": str(tmp_path / "adapter.gguf")}, {"vector": array}]
    found = llama_logits(both.file, both.ids, runs, tmp_path)[..., :97]
    ours = [both.logits(e) for e in (None, delta, edit)]
    differences = [relative(*pair) for pair in zip(found, ours, strict=True)]
    effects = [relative(edited, ours[0]) for edited in ours[1:]]
    print(kind, *(f"{d:.1e}" for d in differences), "effects", *(f"{e:.1e}" for e in effects))
    assert max(differences) < (10 if kind in TABLED else 1) * TOLERANCE
    assert min(effects) > 100 * max(differences)
