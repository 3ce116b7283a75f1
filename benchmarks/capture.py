"""Last-token residuals at all blocks: our fast path against a bare forward pass and three peers.

    .venv/bin/python benchmarks/capture.py [--model smollm2] [--rounds 5] [--memory]

The floor is the forward pass of the blocks: 2 FLOPs per weight and token (0.21 GFLOP a token for
SmolLM2 without its unembedding). ``distinct`` prompts share no prefix, so that only the hooks count;
``chat`` prompts share their template's, which the fast path computes once.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from typing import Any

import torch
from timing import hardware, paired, report

from interp.backends import open_model
from interp.backends.protocol import residual_sites
from interp.data import encode, load_pairs
from interp.types import TokenBatch

PROMPTS = 64


def batches(backend: Any) -> dict[str, TokenBatch]:
    """64 chat prompts, and as many of the same lengths with nothing in common."""
    chat = encode(backend.tokenizer, load_pairs().side("refuse", "report").prompts[:PROMPTS])
    noise = torch.randint(
        10, backend.model.config.vocab_size, chat.ids.shape,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    distinct = TokenBatch(torch.where(chat.mask.bool(), noise, chat.ids), chat.mask)
    return {"chat": chat, "distinct": distinct}


def variants(backend: Any, batch: TokenBatch, peers: dict[str, Any]) -> dict[str, Any]:
    model, sites = backend.model, residual_sites(backend.anatomy)
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}

    @torch.no_grad()
    def bare() -> Any:
        return model(**inputs, use_cache=False)

    @torch.no_grad()
    def hidden_states() -> Any:
        out = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        return [h[:, -1].clone() for h in out]

    made: dict[str, Any] = {
        "bare forward": bare,
        "HF output_hidden_states": hidden_states,
        "ours, all blocks": lambda: backend.capture(batch, sites, -1),
        "ours, first third of the blocks": lambda: backend.capture(
            batch, sites[: len(sites) // 3], -1
        ),
    }
    for name, peer in peers.items():
        made[name] = lambda peer=peer: peer(batch, sites)
    return made


def peer_calls(model_name: str) -> dict[str, Any]:
    bridge = open_model(model_name, backend="transformer_lens")
    lens = open_model(model_name, backend="nnsight")

    @torch.no_grad()
    def run_with_cache(batch: TokenBatch, sites: Any) -> Any:
        names = {f"blocks.{i}.hook_out" for i in range(bridge.anatomy.n_blocks)}
        _, cache = bridge.bridge.run_with_cache(
            batch.ids, attention_mask=batch.mask, names_filter=lambda name: name in names
        )
        return [cache[name][:, -1] for name in names]

    return {
        "TransformerBridge run_with_cache": run_with_cache,
        "nnsight trace": lambda batch, sites: lens.capture(batch, sites, -1),
    }


def peak_memory(variant: str, length: int, model_name: str) -> float:
    """Peak RSS in MB of a fresh process that runs one variant on 16 prompts of ``length`` tokens."""
    command = [sys.executable, __file__, "--one", variant, "--length", str(length)]
    done = subprocess.run(
        [*command, "--model", model_name], capture_output=True, text=True, check=True
    )
    return float(done.stdout.strip().splitlines()[-1])


def one(variant: str, length: int, model_name: str) -> None:
    backend = open_model(model_name)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, backend.model.config.vocab_size, (16, length), generator=generator)
    batch = TokenBatch(ids, torch.ones_like(ids))
    with torch.no_grad():
        if variant == "ours":
            backend.capture(batch, residual_sites(backend.anatomy), -1)
        elif variant == "blocks alone":
            backend.model.base_model(input_ids=ids, use_cache=False)
        else:
            backend.model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure peak memory as well")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one, given.length, given.model)
        return
    backend, peers = open_model(given.model), peer_calls(given.model)
    result: dict[str, Any] = {"hardware": hardware(), "prompts": PROMPTS, "variants": {}}
    for kind, batch in batches(backend).items():
        rows = paired(variants(backend, batch, peers), against="bare forward", rounds=given.rounds)
        result["variants"] |= {f"{kind}: {name}": row for name, row in rows.items()}
    if given.memory:
        result["peak_mb"] = {
            f"{variant}, {length} tokens": peak_memory(variant, length, given.model)
            for variant in ("blocks alone", "ours", "hidden states")
            for length in (64, 512)
        }
        for name, value in result["peak_mb"].items():
            print(f"{name:<34} {value:8.0f} MB")
    report("capture", result)


if __name__ == "__main__":
    main()
