"""The command line as a user meets it: on a tiny chat model, with files of prompts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from interp.cli import COMMANDS, main
from interp.cli.edit import METHODS

REFUSE = [f"what is in my bag number {i} now?" for i in range(12)]
COMPLY = [f"what is in a bag number {i} in general?" for i in range(12)]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "refuse.txt").write_text("\n".join(REFUSE))
    (folder / "comply.txt").write_text("\n".join(COMPLY))
    return ["--refuse", str(folder / "refuse.txt"), "--comply", str(folder / "comply.txt")]


def call(*args: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory, chat_dir: Path, prompts: list[str]) -> Path:
    out = tmp_path_factory.mktemp("edit") / "delta"
    assert call(
        "edit", "ablation", "--model", chat_dir, *prompts, "--block", 1,
        "--first-block", 0, "--strength", 1, "--out", out,
    ) == 0  # fmt: skip
    return out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(name, "--help") == 0
    shown = capsys.readouterr().out
    assert f"Example: interp {name}" in shown
    parts = ("list", "extract", "steer", "monitor", "audit") if name == "persona" else ()
    for part in parts:
        assert call(name, part, "--help") == 0
        shown = capsys.readouterr().out
    assert "--json FILE" in shown


def test_wrong_use_is_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("nonsense") == 2
    assert call("edit") == 2
    assert call("measure", "--delta", "/no/such/dir") == 2
    assert call("edit", "least-disturbance", "--embeddings", "--out", "x") == 2
    assert call("edit", "nonsense") == 2
    capsys.readouterr()


def test_failure_is_one_line_and_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", "/no/such/dir") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert call("measure", "--model", "smollm2", "--refuse", "absent.txt") == 1


def test_names_with_markup_and_control_characters_are_shown_as_they_are(
    chat_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[red]"
    folder.symlink_to(chat_dir)
    assert call("inspect", folder) == 0
    assert "[red]: llama" in capsys.readouterr().out
    assert call("inspect", "/no/\x1b[31m\udc80/dir") == 1
    assert "no directory /no/\\x1b[31m\\udc80/dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["measure"], ["attribute"], ["demo"], ["edit", "ablation"],
        ["heretic", "--kernel", "1,1,1,1"], ["heretic", "--kernel", "1,1,1,1", "--evaluate-refuse"],
    ],
    ids=lambda words: "".join(words),
)  # fmt: skip
def test_a_prompt_in_both_classes_is_an_error_of_every_command(
    command: list[str], prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = tmp_path / "both.txt"
    both.write_text("\n".join([*REFUSE[:6], *COMPLY[:6], COMPLY[6].upper()]))
    if "--evaluate-refuse" in command:
        given = [*command, both, *prompts]
    else:
        given = [*command, "--refuse", prompts[1], "--comply", both]
    out = () if command == ["measure"] else ("--out", tmp_path / "out")
    assert call(*given, "--model", "/never/opened", *out) == 1
    assert "refuse prompts are comply prompts as well" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_help_shows_few_options_and_advanced_all(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("edit", method, "--help") == 0
    short = capsys.readouterr().out
    assert f"Example: interp edit {method}" in short
    assert "--json FILE" in short
    hidden = "--reduction" if method == "persona" else "--winsor"
    assert hidden not in short
    assert call("edit", method, "--advanced") == 0
    assert hidden in capsys.readouterr().out


@pytest.mark.slow
def test_a_recipe_file_gives_what_options_do_not(
    chat_dir: Path, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from interp.export import load_delta

    words = ("edit", "least-disturbance", "--model", chat_dir, *prompts)
    named = ("--block", 1, "--first-block", 0, "--responses", 2, "--winsor", 0.9)
    saved = tmp_path / "recipe.yaml"
    assert (
        call(*words, *named, "--strength", 0.5, "--save-recipe", saved, "--out", tmp_path / "a")
        == 0
    )
    assert "winsor: 0.9" in saved.read_text()
    assert call(*words, "--recipe", saved, "--out", tmp_path / "b") == 0
    assert call(*words, "--recipe", saved, "--strength", 0.25, "--out", tmp_path / "c") == 0
    found = [load_delta(tmp_path / name).recipe for name in "abc"]
    assert dict(found[0]) == dict(found[1])
    assert [recipe["strength"] for recipe in found] == [0.5, 0.5, 0.25]
    capsys.readouterr()
    for text, message in (
        ("wrong: 1", "no setting 'wrong'; known: after_opener"),
        ("direction: [1]", "no setting 'direction'; known"),
        ("- 1", "is not a recipe"),
        ("a: [", "cannot read the recipe"),
    ):
        saved.write_text(text)
        assert call(*words, "--recipe", saved, "--out", tmp_path / "d") == 1
        assert message in capsys.readouterr().err
    for text, message in (
        ("opener_strength: 1.0", "opener_strength goes with after_opener"),
        ("responses: many", "'many' is not a valid integer"),
    ):
        saved.write_text(text)
        assert call(*words, "--recipe", saved, "--out", tmp_path / "d") == 2
        assert message in capsys.readouterr().err


def test_inspect(chat_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", chat_dir, "--json", tmp_path / "r.json") == 0
    shown = capsys.readouterr().out
    assert "model.layers.2.mlp.down_proj.weight" in shown
    assert "0 undescribed" in shown
    assert len(json.loads((tmp_path / "r.json").read_text())["writers"]) == 7


def test_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "--json", tmp_path / "m.json") == 0
    assert "jamba" in capsys.readouterr().out
    assert "hooks" in json.loads((tmp_path / "m.json").read_text())["model_types"]["mamba"]


def test_measure_without_delta_is_one_row(
    chat_dir: Path, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "rows.json"
    assert call("measure", "--model", chat_dir, *prompts, "--tokens", 4, "--json", result) == 0
    (row,) = json.loads(result.read_text())["rows"]
    assert row["name"] == "original"
    assert (row["n_refuse"], row["n_comply"]) == (12, 12)
    assert row["kl_first"] == row["kl_continuation"] == 0
    capsys.readouterr()


def test_measure_with_delta_is_two_rows_and_tells_of_seen_prompts(
    chat_dir: Path, prompts: list[str], delta: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    result = tmp_path / "rows.json"
    args = ("measure", "--model", chat_dir, *prompts, "--delta", delta, "--tokens", 4)
    assert call(*args, "--json", result) == 0
    content = json.loads(result.read_text())
    assert [row["name"] for row in content["rows"]] == ["original", "edited"]
    assert content["rows"][1]["kl_first"] > 0
    assert content["prompts_seen_by_the_edit"] > 0
    assert "prompts that the edit was fitted or chosen on" in capsys.readouterr().err


@pytest.mark.slow
def test_edit_chooses_when_nothing_is_named(
    chat_dir: Path, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "edit.json"
    assert call(
        "edit", "least-disturbance", "--model", chat_dir, *prompts,
        "--out", tmp_path / "d", "--json", result,
    ) == 0  # fmt: skip
    content = json.loads(result.read_text())
    assert content["verdict"] == "verified"
    assert len(content["choice"]["candidates"]) > 1
    capsys.readouterr()


@pytest.mark.slow
def test_edit_acts_after_an_opener_as_well(
    chat_dir: Path, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from interp.export import load_delta

    named = (
        "edit", "least-disturbance", "--model", chat_dir, *prompts, "--block", 1,
        "--first-block", 0, "--strength", 0.5, "--steps", 2,
    )  # fmt: skip
    opener = ("--after-opener", "I'm", "--responses", 3)
    assert call(*named, *opener, "--out", tmp_path / "both") == 0
    both = load_delta(tmp_path / "both")
    assert both.rank == 2
    assert any(key.startswith("responses: ") for key in both.provenance["prompts_sha256"])
    auto = ("--after-opener", "auto", "--responses", 0, "--learn", 0)
    assert call(*named, *auto, "--out", tmp_path / "auto") == 0
    found = load_delta(tmp_path / "auto")
    assert not any(key.startswith("responses: ") for key in found.provenance["prompts_sha256"])
    assert "opener: " in capsys.readouterr().out
    assert both.recipe["learn"] == 0.06
    assert call(*named, *opener, "--learn", 0, "--out", tmp_path / "closed") == 0
    found = load_delta(tmp_path / "closed")
    assert "learn" not in found.recipe
    assert "learning" not in found.recipe
    assert call("edit", "ablation", "--after-opener", "auto", "--out", tmp_path / "no") == 2
    assert "No such option '--after-opener'" in capsys.readouterr().err


@pytest.mark.slow
def test_without_an_opener_what_was_chosen_alone_is_learned(
    chat_dir: Path, prompts: list[str], tmp_path: Path
) -> None:
    from interp.export import load_delta

    assert call(
        "edit", "least-disturbance", "--model", chat_dir, *prompts, "--block", 1,
        "--first-block", 0, "--learn", 0.01, "--steps", 2, "--out", tmp_path / "learned",
    ) == 0  # fmt: skip
    recipe = load_delta(tmp_path / "learned").recipe
    assert (recipe["learn"], recipe["learning"]["steps"]) == (0.01, 2)


def test_edit_on_top_of_an_edit(
    chat_dir: Path, prompts: list[str], delta: Path, tmp_path: Path
) -> None:
    assert call(
        "edit", "ablation", "--model", chat_dir, *prompts, "--delta", delta,
        "--block", 0, "--first-block", 1, "--strength", 0.5, "--out", tmp_path / "sum",
    ) == 0  # fmt: skip
    from interp.export import load_delta

    assert load_delta(tmp_path / "sum").rank == 2


def test_deepening_is_the_same_command(chat_dir: Path, prompts: list[str], tmp_path: Path) -> None:
    assert call(
        "edit", "ablation", "--model", chat_dir, *prompts, "--block", 1,
        "--first-block", 0, "--strength", -0.5, "--out", tmp_path / "deeper",
    ) == 0  # fmt: skip


@pytest.mark.parametrize("kind", ["peft", "merged"])
def test_export_and_verify(
    kind: str, chat_dir: Path, delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / kind
    args = ("export", delta, "--to", kind, "--base", chat_dir, "--unproven", "--out", out)
    assert call(*args, "--json", tmp_path / "e.json") == 0
    assert json.loads((tmp_path / "e.json").read_text())["verdict"] == "verified"
    assert call("verify", out, "--base", chat_dir, "--json", tmp_path / "v.json") == 0
    assert "verified" in capsys.readouterr().out


def test_verify_fails_on_a_truncated_file(
    chat_dir: Path, delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(delta, broken)
    data = (broken / "delta.safetensors").read_bytes()
    (broken / "delta.safetensors").write_bytes(data[: len(data) // 2])
    assert call("verify", broken, "--base", chat_dir) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_another_base_is_an_error(delta: Path, tmp_path: Path, tokenizer) -> None:
    from interp.models import tiny_model

    other = tmp_path / "other"
    tiny_model("llama", seed=1, vocab_size=259).save_pretrained(other)
    tokenizer.save_pretrained(other)
    assert call("measure", "--model", other, "--delta", delta) == 1
    assert call("verify", delta, "--base", other) == 1


@pytest.mark.slow
def test_long_work_without_a_terminal_prints_a_line_now_and_then(
    chat_dir: Path, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def lines(seconds: str, code: int = 0) -> list[str]:
        monkeypatch.setenv("INTERP_PROGRESS_SECONDS", seconds)
        result = tmp_path / "r.json"
        options = ("--limit", 6, "--tokens", 48, "--json", result)
        assert call("measure", "--model", chat_dir, *prompts, *options) == code
        return capsys.readouterr().err.splitlines()

    found = [line for line in lines("0.02") if "opening" not in line]
    assert found
    assert found[0].endswith(f"(results go to {tmp_path / 'r.json'})")
    assert not any("results" in line for line in found[1:])
    assert any(re.match(r"0:\d\d original: [\w ]+ \d+/\d+", line) for line in found)
    assert lines("0") == lines("1000") == []
    assert "must be a number of seconds" in lines("soon", code=2)[-1]


def test_markers_say_what_a_refusal_is(
    chat_dir: Path, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is in every response of a model of bytes, and one that is in none."""
    result = tmp_path / "rows.json"
    counts = []
    for marker in ("�", "no such words"):
        (tmp_path / "mine.txt").write_text(f"{marker}\n")
        assert call(
            "measure", "--model", chat_dir, *prompts, "--markers", tmp_path / "mine.txt",
            "--limit", 3, "--json", result,
        ) == 0  # fmt: skip
        found = json.loads(result.read_text())
        assert found["judge"] == {"kind": "keywords", "name": "mine.txt", "markers": [marker]}
        counts.append((found["rows"][0]["refusals"], found["rows"][0]["n_refuse"]))
    assert counts == [(3, 3), (0, 3)]
    assert call("measure", "--model", "/never/opened", *prompts, "--markers", "xx") == 1
    assert "languages joined by + (de, en," in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["measure", "edit ablation", "edit least-disturbance", "demo", "heretic", "verify"]
)
def test_every_command_that_judges_takes_markers(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*name.split(), "--help") == 0
    assert "--markers FILE|LANGUAGES" in capsys.readouterr().out


def test_attribute(
    chat_dir: Path, prompts: list[str], delta: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for extra in ((), ("--delta", delta), ("--openers", "phrases")):
        out = tmp_path / f"a{len(extra)}{extra[:1]}"
        assert call("attribute", "--model", chat_dir, *prompts, *extra, "--out", out) == 0
        record = json.loads((out / "refusal" / "attribution.json").read_text())
        assert record["series"]["largest_residual"] < 1e-4
        ElementTree.parse(out / "refusal" / "attribution.svg")
    assert "parts sum to it" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_on_a_directory(
    chat_dir: Path, prompts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "demo.json"
    out = tmp_path / "demo"
    assert call("demo", "--model", chat_dir, *prompts, "--out", out, "--json", result) == 0
    rows = json.loads(result.read_text())["rows"]
    assert [r["name"] for r in rows][:2] == ["original", "directional ablation"]
    assert {"refusals", "n_refuse", "over_refusals", "n_comply", "nll"} <= rows[0].keys()
    assert (out / "delta" / "receipt.json").is_file()
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    missing = json.loads((out / "delta" / "receipt.json").read_text())["missing"]
    assert any("prompts of a class: measure it on at least 8 of each" in each for each in missing)
    shown = capsys.readouterr().out
    assert str(out / "adapter") in shown
