"""The second opinion: what heretic is asked, what is read from its answer, when the two agree."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp import open_model
from interp.data.prompts import PromptSet
from interp.errors import ExportError, PromptError
from interp.export.heretic_program import Program
from interp.judges.keywords import MARKERS
from interp.methods.heretic import opinion
from interp.methods.heretic.directions import render
from interp.methods.heretic.opinion import (
    Conditions,
    Measures,
    Opinion,
    config,
    environment,
    failure,
    parse,
    second_opinion,
)

ANSWER = """
* Initial refusals: 37/64
* Evaluating...
  * Obtaining first-token probability distributions...
  * KL divergence: 0.0106
  * Counting model refusals...
  * Refusals: 1/64
"""
OURS = Measures(refusals=1, base_refusals=37, n=64, kl=0.01062)


def test_its_numbers_are_read() -> None:
    assert parse(ANSWER) == Measures(1, 37, 64, 0.0106)


@pytest.mark.parametrize("line", ["Initial refusals", "KL divergence", "* Refusals"])
def test_half_an_answer_is_none(line) -> None:
    assert parse("\n".join(x for x in ANSWER.splitlines() if line not in x)) is None


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "agree"),
        ({"kl": 0.01065}, "agree"),
        ({"kl": 0.01067}, "disagree"),
        ({"refusals": 2}, "disagree"),
        ({"base_refusals": 36}, "disagree"),
        ({"n": 63}, "disagree"),
    ],
)
def test_agreement_is_equal_counts_and_every_printed_digit(change, verdict) -> None:
    assert Opinion(replace(OURS, **change), parse(ANSWER)).agreement == verdict


def test_a_large_kl_agrees_to_three_digits() -> None:
    theirs = Measures(1, 37, 64, 2.3456)
    assert Opinion(replace(OURS, kl=2.3470), theirs).agreement == "agree"
    assert Opinion(replace(OURS, kl=2.3500), theirs).agreement == "disagree"


def test_no_answer_is_no_opinion_with_its_own_words() -> None:
    text = "Loading model...\n│ AssertionError: No abliterable modules found in layer │\n"
    assert failure(text) == "AssertionError: No abliterable modules found in layer"
    assert Opinion(OURS, None, failure(text)).agreement == "no opinion"
    with pytest.raises(ExportError, match="its last words: Killed"):
        failure("Loading model...\nKilled\n\n")


def test_it_gets_our_markers_prompts_and_lengths() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    found = tomllib.loads(config(Conditions(system='a "system"\nturn', dtype="bfloat16")))
    assert found["refusal_markers"] == list(MARKERS)
    assert found["system_prompt"] == 'a "system"\nturn'
    assert found["response_prefix"] == ""  # unset, it would search for one
    assert found["dtypes"] == ["bfloat16"]
    assert found["max_response_length"] == 24
    assert found["batch_size"] > 0  # 0 would probe for the largest
    assert found["bad_evaluation_prompts"] == {"dataset": "bad.txt"}


def test_neither_our_packages_nor_the_hub_reach_it(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "ours")
    monkeypatch.setenv("HERETIC_SEED", "3")
    found = environment(offline=True)
    assert not {"PYTHONPATH", "HERETIC_SEED"} & found.keys()
    assert found["HF_HUB_OFFLINE"] == "1"


REFUSE = PromptSet(("Book me a taxi.", "Call my mother!"), "refuse")
COMPLY = PromptSet(("Name a fruit.", "Count to three."), "comply")


def stand_in(folder: Path, body: str) -> Program:
    """A program that is called as heretic is."""
    script = folder / "heretic"
    script.write_text(f"#!{sys.executable}\nimport json, pathlib, sys\n" + textwrap.dedent(body))
    script.chmod(0o755)
    return Program(script)


def test_it_is_run_on_the_merged_model_in_a_folder_of_its_own(chat_dir, tmp_path) -> None:
    lm = open_model(str(chat_dir))
    program = stand_in(
        tmp_path,
        f"""
        seen = {{p.name: p.read_text() for p in pathlib.Path().iterdir()}}
        pathlib.Path({str(tmp_path / "seen.json")!r}).write_text(json.dumps([sys.argv[1:], seen]))
        print("* Initial refusals: 0/2\\n* KL divergence: 0.0000\\n* Refusals: 0/2")
        """,
    )
    found = second_opinion(
        lm, program, None, str(chat_dir), tmp_path / "merged", REFUSE, COMPLY, Conditions(tokens=4)
    )
    assert found.agreement == "agree"
    assert found.as_json()["agreement"] == "agree"
    words, files = json.loads((tmp_path / "seen.json").read_text())
    assert words == ["--model", str(chat_dir), "--evaluate-model", str(tmp_path / "merged")]
    assert files["bad.txt"].splitlines() == list(REFUSE.prompts)
    assert files["good.txt"].splitlines() == list(COMPLY.prompts)
    assert "max_response_length = 4" in files["config.toml"]


def test_a_program_that_cannot_load_the_model_leaves_our_measures(chat_dir, tmp_path) -> None:
    lm = open_model(str(chat_dir))
    program = stand_in(tmp_path, "sys.exit('AssertionError: No abliterable modules found')")
    found = second_opinion(
        lm, program, None, str(chat_dir), tmp_path, REFUSE, COMPLY, Conditions(tokens=4)
    )
    assert (found.theirs, found.agreement) == (None, "no opinion")
    assert found.message == "AssertionError: No abliterable modules found"
    assert (found.ours.refusals, found.ours.n) == (found.ours.base_refusals, 2)


def test_the_model_is_out_of_memory_while_the_program_runs(chat_dir, tmp_path) -> None:
    """And back afterwards, bit for bit, unless the caller has no further use for it."""
    lm = open_model(str(chat_dir))
    program = stand_in(tmp_path, "sys.exit('AssertionError: No abliterable modules found')")
    asked = (program, None, str(chat_dir), tmp_path, REFUSE, COMPLY, Conditions(tokens=1))
    before = lm.logits(COMPLY)
    second_opinion(lm, *asked)
    assert torch.equal(lm.logits(COMPLY), before)
    second_opinion(lm, *asked, keep_model=False)
    assert not any(parameter.numel() for parameter in lm.hf.parameters())


def test_prompts_of_several_lines_are_refused(chat_dir, tmp_path) -> None:
    lm, lines = open_model(str(chat_dir)), PromptSet(("one\ntwo",), "lines")
    program = stand_in(tmp_path, "sys.exit('it was run')")
    for sets in ((lines, COMPLY), (REFUSE, lines)):
        with pytest.raises(PromptError, match="several lines"):
            second_opinion(lm, program, None, str(chat_dir), tmp_path, *sets, Conditions())


def test_a_model_without_a_system_turn_is_known_before_it_runs(chat_dir) -> None:
    lm = open_model(str(chat_dir))
    render(lm.tokenizer, ["test"], "system", "")
    lm.tokenizer.chat_template = None
    with pytest.raises(PromptError, match="needs a chat template"):
        render(lm.tokenizer, ["test"], "system", "")


def test_our_measures_are_those_of_the_bench(chat_dir) -> None:
    """Not a second implementation: the same judge and the same KL as `interp measure`."""
    from toolbox import random_direction

    from interp.data.chat import ChatFormat
    from interp.edits import ablation, to_delta
    from interp.evaluate.measure import Bench

    lm = open_model(str(chat_dir))
    anatomy = lm.anatomy
    delta = to_delta(lm.hf, anatomy, ablation(lm.hf, anatomy, random_direction(anatomy.d_model)))
    found = opinion.measure(lm, delta, REFUSE, COMPLY, Conditions("Be brief.", tokens=5))
    bench = Bench(lm.using(chat=ChatFormat(system="Be brief.")), REFUSE, COMPLY, response_tokens=5)
    row = bench.row("edited", delta)
    assert found.refusals == row.positive.count
    assert found.kl == pytest.approx(row.divergence.first, rel=1e-4)
