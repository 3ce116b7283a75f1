"""``interp diff``: planted changes come out as numbers, a picture, a record and a delta."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from toolbox import random_direction, random_vector
from torch import nn

from interp.cli import main
from interp.edits import ablation, applied, to_delta
from interp.errors import DeltaError, ExportError
from interp.export import load_delta, save_delta
from interp.export.summary import Named, measured, random_share, read_direction, share, summary
from interp.figures import render
from interp.maths import unit
from interp.models import describe, tiny_model
from interp.models.anatomy import Anatomy
from interp.models.checkpoint import Checkpoint
from interp.models.loading import load
from interp.records import FigureRecord
from interp.types import LowRank, Shift, WeightDelta

READER = "model.layers.1.self_attn.q_proj.weight"
WRITER = "model.layers.2.mlp.down_proj.weight"
GAIN = "model.layers.0.input_layernorm.weight"


def call(*args: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    return int(stop.value.code or 0)


def opened(folder: Path) -> tuple[Any, Anatomy]:
    model, _ = load(str(folder))
    return model, describe(model)


def planted(model: nn.Module, anatomy: Anatomy) -> WeightDelta:
    edit = ablation(model, anatomy, random_direction(anatomy.d_model, 1), blocks=[0, 1])
    return to_delta(model, anatomy, edit)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base; blocks 0 and 1 ablated, a random rank-2 change in block 2, a reader and a gain."""
    folder = tmp_path_factory.mktemp("diff")
    tiny_model("llama").save_pretrained(folder / "base")  # type: ignore[operator]
    model, anatomy = opened(folder / "base")
    delta = planted(model, anatomy)
    save_delta(delta, folder / "direction")
    vectors = {"d": 3.0 * random_direction(anatomy.d_model, 1).vector, "other": torch.ones(32)}
    save_file(vectors | {"matrix": torch.ones(2, 32)}, folder / "vectors.safetensors")
    with applied(model, anatomy, delta), torch.no_grad():
        model.get_parameter(WRITER).add_(
            random_vector(32, 5).outer(random_vector(56, 6)) / 40
            + random_vector(32, 7).outer(random_vector(56, 8)) / 80
        )
        model.get_parameter(READER).add_(random_vector(48, 9).outer(random_vector(32, 10)) / 40)
        model.get_parameter(GAIN).mul_(1.25)
        model.save_pretrained(folder / "other")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.slow
def test_the_whole_command(
    case: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, other = case["base"], case["other"]
    assert call(
        "diff", base, other, "--direction", f"{case['vectors.safetensors']}#d",
        "--direction", case["direction"], "--figure", tmp_path / "f.svg",
        "--out", tmp_path / "delta", "--json", tmp_path / "r.json",
    ) == 0  # fmt: skip
    shown = capsys.readouterr().out
    assert "changed but not held: " + GAIN in shown
    assert "(25.00%)" in shown
    assert "5 of 7 writers changed" in shown
    assert "a random direction holds 0.177" in shown
    assert "holds 1.0000 of that edit's norm" in shown
    result = json.loads((tmp_path / "r.json").read_text())
    lines = {line["name"]: line for line in result["lines"]}
    assert lines[READER]["kind"] == "reader"
    assert lines["model.embed_tokens.weight"]["norm"] == 0.0

    before, after = opened(base)[0], opened(other)[0]
    change = (after.get_parameter(WRITER) - before.get_parameter(WRITER)).double()
    line = lines[WRITER]
    assert line["norm"] == pytest.approx(change.norm().item(), rel=1e-4)
    assert line["relative"] == pytest.approx(
        (change.norm() / before.get_parameter(WRITER).norm()).item(), rel=1e-4
    )
    assert line["rank"] == 2
    assert 1 < line["effective_rank"] < 2
    d = random_direction(32, 1).vector.double()
    expected = ((d @ change).norm() / change.norm()).item()
    assert line["shares"]["d"] == pytest.approx(expected, rel=1e-3)
    assert lines["model.layers.0.mlp.down_proj.weight"]["shares"]["d"] == pytest.approx(1.0)
    assert lines["model.layers.0.mlp.down_proj.weight"]["shares"]["direction"] == pytest.approx(1.0)

    kinds, blocks = result["by_kind"], result["by_block"]
    assert set(blocks) == {"0", "1", "2"}
    total = math.sqrt(sum(x["norm"] ** 2 for x in lines.values() if x["name"] != READER))
    for groups in (kinds, blocks):
        assert math.sqrt(sum(g["norm"] ** 2 for g in groups.values())) == pytest.approx(total)
    weight = math.hypot(
        *(before.get_parameter(w.weight).norm().item() for w in describe(before).block_writers[:2])
    )
    assert blocks["0"]["relative"] == pytest.approx(blocks["0"]["norm"] / weight, rel=1e-4)
    assert blocks["0"]["shares"]["d"] == pytest.approx(1.0)

    assert dict(load_delta(tmp_path / "delta")).keys() == {
        n for n, x in lines.items() if x["norm"] > 0
    }
    record = FigureRecord.load(tmp_path / "f.json")
    assert record.provenance.fingerprint == result["fingerprint"]
    first, second, third = record.series.panels
    cells = dict(zip(record.series.rows.names, first.values, strict=True))
    assert cells["mlp"][2] == pytest.approx(line["relative"])
    assert cells["attention"][2] == 0.0
    assert second.values[1][2] == pytest.approx(expected, rel=1e-3)
    assert second.values[0][2] is None, "nothing changed, so there is no share"
    assert second.reference.at == pytest.approx(random_share(32))
    assert third.label == "share along direction"
    assert record.series.beside["not_in_the_map"] == [READER]
    drawn = (tmp_path / "f.svg").read_bytes()
    assert render(tmp_path / "f.json").read_bytes() == drawn
    assert str(tmp_path) not in (tmp_path / "f.json").read_text()


def test_an_adapter_or_a_delta_is_measured_from_its_factors(
    case: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("diff", case["base"], case["direction"], "--json", tmp_path / "r.json") == 0
    delta = load_delta(case["direction"])
    result = json.loads((tmp_path / "r.json").read_text())
    norms = {line["name"]: line["norm"] for line in result["lines"] if line["norm"]}
    assert norms.keys() == dict(delta).keys()
    for name, update in delta:
        assert norms[name] == pytest.approx(update.dense().norm().item(), rel=1e-5)  # type: ignore[union-attr]
    assert result["norm"] == pytest.approx(math.sqrt(sum(n**2 for n in norms.values())))
    assert "4 of 7 writers changed" in capsys.readouterr().out


def test_rank_cuts_and_the_table_says_how_much(
    case: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        call("diff", case["base"], case["other"], "--rank", 1, "--json", tmp_path / "r.json") == 0
    )
    line = next(
        x for x in json.loads((tmp_path / "r.json").read_text())["lines"] if x["name"] == WRITER
    )
    assert line["rank"] == 1
    assert 0.1 < line["left_out"] < 0.8
    assert f"{line['left_out']:.2%}" in capsys.readouterr().out


def test_all_lists_unchanged_writers(
    case: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model.layers.2.self_attn.o_proj.weight"
    assert call("diff", case["base"], case["other"]) == 0
    assert name not in capsys.readouterr().out
    assert call("diff", case["base"], case["other"], "--all") == 0
    assert name in capsys.readouterr().out


def test_wrong_use_and_failures(case: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    base, other, file = case["base"], case["other"], case["vectors.safetensors"]
    assert call("diff", base, other, "--figure", "x.pdf") == 2
    assert call("diff", base, other, "--rank", 0) == 2
    assert call("diff", base, base) == 1
    assert "does not differ" in capsys.readouterr().err
    assert call("diff", base, other, "--direction", file) == 1
    assert "names no single vector" in capsys.readouterr().err
    assert call("diff", base, other, "--direction", f"{file}#matrix") == 1
    assert call("diff", base, other, "--direction", f"{file}#absent") == 1
    assert call("diff", base, other, "--direction", file.with_name("none.safetensors")) == 1
    capsys.readouterr()


# --- numbers, one by one -----------------------------------------------------------------------


def test_shares_of_random_directions_are_what_is_printed_beside_them() -> None:
    generator = torch.Generator().manual_seed(0)
    update = LowRank(
        torch.randn(200, 6, generator=generator), torch.randn(6, 50, generator=generator)
    )
    shares = [share(update, unit(random_vector(200, seed))) for seed in range(300)]
    mean_square = sum(s**2 for s in shares) / len(shares)
    assert math.sqrt(mean_square) == pytest.approx(random_share(200), rel=0.05)


def test_experts_are_measured_as_one_change_with_the_largest_effective_rank() -> None:
    b, a = torch.randn(3, 8, 2), torch.randn(3, 2, 5)
    a[0, 1] = 0
    update = LowRank(b, a, "expert out in")
    norm, rank, effective = measured(update)
    assert (norm, rank) == (pytest.approx(update.dense().norm().item()), 2)
    assert effective == pytest.approx(max(measured(LowRank(b[e], a[e]))[2] for e in range(3)))
    d = unit(torch.randn(8))
    along = torch.einsum("d,edi->ei", d, update.dense()).norm().item()
    assert share(update, d) == pytest.approx(along / norm, rel=1e-5)


def test_a_direction_is_seen_through_the_post_norm_gain(tmp_path: Path) -> None:
    model: Any = tiny_model("gemma2")
    model.save_pretrained(tmp_path / "base")
    anatomy = describe(model)
    direction = random_direction(anatomy.d_model, 1)
    delta = to_delta(model, anatomy, ablation(model, anatomy, direction))
    named = [Named("d", direction.vector)]
    lines = summary(delta, model, anatomy, Checkpoint.open(tmp_path / "base"), named)
    shares = [line.shares["d"] for line in lines if line.norm]
    assert shares == pytest.approx([1.0] * len(shares), abs=1e-4)
    assert share(delta.updates[lines[1].name], direction.vector) < 0.999
    with pytest.raises(DeltaError, match=r"writes through .*give a base with safetensors"):
        summary(delta, model, anatomy, None, named)


def test_biases_stand_apart_from_matrices(tmp_path: Path) -> None:
    from interp.export.summary import totals

    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    anatomy = describe(model)
    delta = to_delta(model, anatomy, ablation(model, anatomy, random_direction(anatomy.d_model, 1)))
    lines = summary(delta, model, anatomy, Checkpoint.open(tmp_path / "base"))
    biases = [line for line in lines if line.bias]
    assert len(biases) == sum(isinstance(u, Shift) for _, u in delta) == 6
    assert all(line.relative for line in biases)
    (total,) = totals(lines, lambda line: True).values()
    matrices = [line.norm for line in lines if line.norm and not line.bias]
    assert total.norm == pytest.approx(math.sqrt(sum(n**2 for n in matrices)))


def test_the_common_direction_of_two_edits_is_the_stronger(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    anatomy = describe(model)
    strong, weak = (
        to_delta(model, anatomy, ablation(model, anatomy, random_direction(32, seed), strength=s))
        for seed, s in ((1, 1.0), (2, 0.2))
    )
    save_delta(strong.compose(weak), tmp_path / "delta")
    found = read_direction(str(tmp_path / "delta"), anatomy)
    assert abs(found.vector @ random_direction(32, 1).vector) > 0.98
    held = float(found.note.split("holds ")[1].split()[0])
    assert 0.9 < held < 0.9999
    with pytest.raises(ExportError, match="changes no writer of this model"):
        read_direction(str(tmp_path / "delta"), describe(tiny_model("gpt2")))
    save_file({"v": torch.ones(7)}, tmp_path / "v.safetensors")
    with pytest.raises(ExportError, match="has 7 entries, the residual stream has 32"):
        read_direction(str(tmp_path / "v.safetensors"), anatomy)
