"""Inputs that people bring: unusual or broken models, tokenizers, templates, prompts and adapters.

``CASES`` maps a name to a function that makes the case in an empty folder from a good model directory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.models import tiny_model
from interp.models.tiny import byte_tokenizer

WEIGHTS = "model.safetensors"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4096\n"


@dataclass(frozen=True)
class Case:
    """What a user types. model and its good base; prompt options; artefact: a delta, adapter or export."""

    model: Path
    base: Path
    options: tuple[str, ...] = ()
    loading: tuple[str, ...] = ()
    refuse: str | None = None
    artefact: Path | None = None


Builder = Callable[[Path, Path], Case]
CASES: dict[str, Builder] = {}


def case(build: Builder) -> Builder:
    CASES[build.__name__] = build
    return build


def copied(base: Path, folder: Path) -> Path:
    return Path(shutil.copytree(base, folder / "model"))


def spoilt(name: str, file: str, change: Callable[[str], str]) -> None:
    """A case in which one text file of the model directory is changed."""

    def build(folder: Path, base: Path) -> Case:
        path = copied(base, folder) / file
        path.write_text(change(path.read_text() if path.is_file() else ""))
        return Case(path.parent, base)

    CASES[name] = build


def reweighted(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """A case in which the weights are changed."""

    def build(folder: Path, base: Path) -> Case:
        path = copied(base, folder) / WEIGHTS
        save_file(change(load_file(path)), path, metadata={"format": "pt"})
        return Case(path.parent, base)

    CASES[name] = build


def retold(name: str, change: Callable[[Any], None], *options: str) -> None:
    """A case in which the tokenizer is changed; options go to every command that renders prompts."""

    def build(folder: Path, base: Path) -> Case:
        from transformers import AutoTokenizer

        model = copied(base, folder)
        tokenizer = AutoTokenizer.from_pretrained(model)
        change(tokenizer)
        (model / "chat_template.jinja").unlink()
        tokenizer.save_pretrained(model)
        return Case(model, base, options)

    CASES[name] = build


def saved(model: Any, base: Path, folder: Path) -> Case:
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return Case(folder / "model", base)


def config(**entries: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | entries)


def template(text: str) -> Callable[[Any], None]:
    return lambda tokenizer: setattr(tokenizer, "chat_template", text)


# ---- weights

reweighted(
    "missing_weight", lambda w: {n: t for n, t in w.items() if "1.self_attn.q_proj" not in n}
)
reweighted("left_over_weight", lambda w: w | {"model.layers.0.mlp.up_proj.bias": torch.zeros(56)})
reweighted(
    "nan_weight", lambda w: {n: t * float("nan") if "1.mlp.up" in n else t for n, t in w.items()}
)
reweighted("vision_tower_beside", lambda w: w | {"vision_tower.patch.weight": torch.zeros(3)})


@case
def weights_cut(folder: Path, base: Path) -> Case:
    path = copied(base, folder) / WEIGHTS
    path.write_bytes(path.read_bytes()[:5000])
    return Case(path.parent, base)


@case
def weights_not_fetched(folder: Path, base: Path) -> Case:
    path = copied(base, folder) / WEIGHTS
    path.write_text(POINTER)
    return Case(path.parent, base)


@case
def shard_absent(folder: Path, base: Path) -> Case:
    model = copied(base, folder)
    (model / WEIGHTS).rename(model / "a.safetensors")
    index = {"weight_map": {"model.norm.weight": "a.safetensors", "x": "b.safetensors"}}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    return Case(model, base)


@case
def overflow(folder: Path, base: Path) -> Case:
    model = tiny_model("llama", vocab_size=259, max_position_embeddings=512)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(3e4)
    return replace(saved(model.to(torch.bfloat16), base, folder), loading=("--dtype", "float16"))


@case
def gptq(folder: Path, base: Path) -> Case:
    model = copied(base, folder)
    weights = {}
    for name, weight in load_file(model / WEIGHTS).items():
        if "_proj.weight" in name:
            weights[name.replace("weight", "qweight")] = torch.zeros(4, len(weight)).int()
        else:
            weights[name] = weight
    save_file(weights, model / WEIGHTS, metadata={"format": "pt"})
    path = model / "config.json"
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    path.write_text(config(quantization_config=quantised)(path.read_text()))
    return Case(model, base)


@case
def leftover_adapter(folder: Path, base: Path) -> Case:
    """The files of an adapter beside a whole model."""
    found = adapter(folder, base)
    model = copied(base, folder)
    shutil.copytree(folder / "adapter", model, dirs_exist_ok=True)
    return replace(found, model=model, artefact=model)


# ---- configs

spoilt("config_cut", "config.json", lambda text: text[:40])
spoilt("config_of_other_sizes", "config.json", config(hidden_size=48))
spoilt("config_impossible", "config.json", config(num_attention_heads=5))
spoilt("config_unheard_of", "config.json", config(model_type="unheard"))
spoilt("generation_config_cut", "generation_config.json", lambda text: text[:10])

# ---- positions and ids


@case
def beyond_positions(folder: Path, base: Path) -> Case:
    return saved(tiny_model("gpt2", vocab_size=259, n_positions=48), base, folder)


def _add(**tokens: Any) -> Callable[[Any], None]:
    return lambda tokenizer: tokenizer.add_special_tokens(tokens)


retold("pad_out_of_range", _add(pad_token="[PAD]"))
retold("bos_out_of_range", _add(bos_token="[BOS]"))


@case
def token_out_of_range(folder: Path, base: Path) -> Case:
    model = copied(base, folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["bag"])
    tokenizer.save_pretrained(model)
    return Case(model, base)


# ---- tokenizers

spoilt("tokenizer_cut", "tokenizer.json", lambda text: text[: len(text) // 2])
spoilt("tokenizer_not_fetched", "tokenizer.json", lambda _: POINTER)
spoilt("tokenizer_empty", "tokenizer.json", lambda _: "")
spoilt("tokenizer_of_another_shape", "tokenizer.json", lambda _: "{}")
spoilt("tokenizer_config_cut", "tokenizer_config.json", lambda text: text[:30])


@case
def no_tokenizer(folder: Path, base: Path) -> Case:
    model = copied(base, folder)
    for path in [*model.glob("tokenizer*"), model / "chat_template.jinja"]:
        path.unlink()
    return Case(model, base)


def _ends(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )


retold("eos_appended", _ends)

# ---- templates

retold("template_syntax", template("{% if x %}"), "--system", "Be brief.")
retold("template_empty", template(""))
retold("template_drops_system", template("{{ messages[-1]['content'] }}"), "--system", "Be brief.")
retold(
    "strict_turns",
    template(
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Turns have to alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
    ),
    "--system", "Be brief.",
)  # fmt: skip
retold(
    "thinking_by_another_name",
    template("{{ messages[-1]['content'] }}{% if thinking %} Think.{% endif %}"),
    "--thinking",
)
retold("no_thinking_switch", template("{{ messages[-1]['content'] }}"), "--thinking")

# ---- prompts


def asked(name: str, file: str, text: str, column: str = "") -> None:
    """A case with a good model and an unusual file of prompts."""

    def build(folder: Path, base: Path) -> Case:
        path = folder / file
        path.write_text(text)
        return Case(base, base, refuse=f"{path}{column}")

    CASES[name] = build


PROMPT = '{"prompt": "what is in my bag?"}'
asked("prompts_empty", "a.txt", "")
asked("prompts_ndjson", "a.ndjson", "\n".join([PROMPT] * 12), "#prompt")
asked("prompts_with_null", "a.jsonl", f'{PROMPT}\n{{"prompt": null}}\n{PROMPT}')
asked("prompts_binary", "a.jsonl", "\x00\x01")
asked("prompts_few", "a.txt", "only one?")
asked("prompts_of_chats", "a.jsonl", "\n".join(
    json.dumps({"messages": [{"role": "user", "content": f"what is it, {i}?"}]}) for i in range(12)
), "#messages")  # fmt: skip

# ---- adapters


@case
def adapter(folder: Path, base: Path) -> Case:
    """An adapter, also where a model is expected."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    lora = LoraConfig(
        r=2, target_modules=["o_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora).save_pretrained(
        folder / "adapter"
    )
    return Case(folder / "adapter", base, artefact=folder / "adapter")


@case
def adapter_cut(folder: Path, base: Path) -> Case:
    found = adapter(folder, base)
    path = found.model / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    return found


@case
def adapter_config_cut(folder: Path, base: Path) -> Case:
    found = adapter(folder, base)
    path = found.model / "adapter_config.json"
    path.write_text(path.read_text()[:50])
    return found


@case
def adapter_of_another_base(folder: Path, base: Path) -> Case:
    found = adapter(folder, base)
    other = saved(tiny_model("llama", vocab_size=259, hidden_size=64), base, folder)
    return replace(found, base=other.model)
