"""The streamed merge of a synthetic checkpoint, against copying its files and against transformers.

    .venv/bin/python benchmarks/merge.py [--gigabytes 4] [--rounds 3] [--folder DIR]

A llama of random bf16 weights in shards of 1 GB; a rank-1 update of every block's two writers, which
are a third of its bytes. Floor: each byte read and written once, so the time of a copy; the edit adds
2 · rank FLOPs and one rounding for each edited number. Every variant runs in a process of its own,
which says how long its runs took and its peak memory; imports are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from timing import hardware, paired, report

WIDTH, INNER, VOCABULARY = 2048, 8192, 32768
SHARD = 1 << 30
REPEATS = 4
"""Runs of a variant in a process. What a write costs depends on which memory was freed before, so
that even copies, of which one follows the other, take 1.2 to 3 s: a round's mean is compared."""


def make(folder: Path, gigabytes: float) -> None:
    """A checkpoint of about that size: config, shards, index; never more than a shard in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    per_block = 2 * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
    fixed = 4 * VOCABULARY * WIDTH
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=max(1, round((gigabytes * 1e9 - fixed) / per_block)),
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    shard: dict[str, Any] = {}
    weight_map: dict[str, str] = {}
    total = number = 0

    def flush() -> None:
        nonlocal number
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()
        number += 1

    for name, param in model.named_parameters():
        value = torch.randn(param.shape, generator=generator).mul_(0.02).bfloat16()
        shard[name] = value
        total += value.numel() * 2
        if sum(v.numel() * 2 for v in shard.values()) >= SHARD:
            flush()
    if shard:
        flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def random_delta(base: Path) -> Any:
    """A rank-1 update of every writer of the blocks, made for the files in ``base``."""
    import torch

    from interp.export.difference import checkpoint_fingerprint
    from interp.models.checkpoint import Checkpoint
    from interp.models.skeleton import skeleton
    from interp.types import Coverage, LowRank, WeightDelta

    _, anatomy = skeleton(str(base))
    generator = torch.Generator().manual_seed(1)
    updates = {
        w.weight: LowRank(
            torch.randn(w.d_out, 1, generator=generator) / w.d_out**0.5,
            torch.randn(1, w.d_in, generator=generator) * 0.02,
        )
        for w in anatomy.block_writers
    }
    made_for = checkpoint_fingerprint(Checkpoint.open(base), anatomy)
    return WeightDelta(updates, made_for, {"method": "random"}, "W + BA", Coverage((), {}))


def streamed(base: Path, out: Path) -> Any:
    from interp.export.merged import merge

    delta = random_delta(base)
    return lambda: merge(delta, str(base), out, unproven=True)


def through_transformers(base: Path, out: Path) -> Any:
    """Load, edit in place, save; what a merge usually is."""
    from interp.edits import apply_
    from interp.models import describe
    from interp.models.loading import load, without_bars

    delta = random_delta(base)

    def run() -> None:
        model, _ = load(str(base))
        apply_(model, describe(model), delta)
        with without_bars():
            model.save_pretrained(out)  # type: ignore[operator]

    return run


def copied(base: Path, out: Path) -> Any:
    return lambda: shutil.copytree(base, out)


VARIANTS = {
    "copy of the files": copied,
    "streamed merge": streamed,
    "transformers: load, edit, save": through_transformers,
}


def one(variant: str, base: Path, out: Path) -> None:
    """Run a variant ``REPEATS`` times in this process and print its seconds and memory."""
    prepared = VARIANTS[variant](base, out)
    before = peak_mb()
    seconds = []
    for _ in range(REPEATS):
        condition(base, out)
        started = time.perf_counter()
        prepared()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "before_mb": before}))


def condition(base: Path, out: Path) -> None:
    """Give every variant the same page cache: a copy has this instant been written and freed.

    A virtual machine gives memory that has been free for a few seconds back to its host, and files
    are then written at a quarter of the speed (5.5 to 6.9 s for a copy of 1.4 to 1.5 s). So this is done
    here, after the imports, which take that long themselves.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(base, out)
    shutil.rmtree(out)
    os.sync()


def peak_mb() -> int:
    """Most memory that this program has held; getrusage would count its parent's before the exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary one)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one[0], Path(given.one[1]), Path(given.one[2]))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        base, out = Path(scratch) / "base", Path(scratch) / "out"
        make(base, given.gigabytes)
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in VARIANTS}

        def run(name: str) -> float:
            words = [sys.executable, __file__, "--one", name, str(base), str(out)]
            done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            measured[name].append(json.loads(done.stdout.splitlines()[-1]))
            return statistics.mean(measured[name][-1]["seconds"])

        rows = paired(
            {name: (lambda name=name: run(name)) for name in VARIANTS},
            against="copy of the files",
            rounds=given.rounds,
        )
        size = sum(f.stat().st_size for f in base.glob("*.safetensors"))
        largest = 2 * max(VOCABULARY * WIDTH, WIDTH * INNER)
    for name, row in rows.items():
        row["peak_mb"] = max(m["peak_mb"] for m in measured[name])
        row["before_mb"] = max(m["before_mb"] for m in measured[name])
        row["gb_per_second"] = size / 1e9 / row["seconds"]
    report(
        "merge",
        {
            "hardware": hardware(),
            "checkpoint_gb": size / 1e9,
            "largest_tensor_mb": largest / (1 << 20),
            "variants": rows,
        },
    )


if __name__ == "__main__":
    main()
