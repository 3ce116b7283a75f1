"""Judges that are models of ours: numbers token by token, expected scores, likelihood ratios."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.backends.opening import wrap
from interp.data import ChatFormat
from interp.errors import JudgeError
from interp.judges import (
    COHERENCE,
    ChatJudge,
    Judge,
    LikelihoodRatio,
    Rubric,
    TraitJudge,
    named,
    spelled,
)
from interp.judges.numbers import number_paths, number_probabilities
from interp.lm import LM
from interp.models import tiny_model
from interp.models.tiny import byte_tokenizer

PROMPTS = ["What is the tide?", "Hm", "Name a river."]
RESPONSES = ["It rises twice a day.", "Yes!", "The Ob is one."]
VOCABULARY = 400
EVERY, TO_99, NONE = tuple(range(101)), tuple(range(100)), ()


def made(model_type: str = "llama", single: Sequence[int] = NONE, **options: Any) -> LM:
    """A tiny model whose tokenizer has one token for each of some numbers; bytes for everything else."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([str(number) for number in single])
    model = tiny_model(model_type, vocab_size=VOCABULARY, max_position_embeddings=512)
    return LM(wrap(model, tokenizer), batch_size=2, **options)


@pytest.fixture(scope="module")
def lm() -> LM:
    return made()


def followed_through(lm: LM, prompt: str, opening: str = "") -> Tensor:
    """Probabilities from log-probabilities of whole numbers: a number less those that go on from it."""
    texts = [f"{opening}{k}" for k in range(101)]
    paths = [tuple(lm.tokenizer(t, add_special_tokens=False).input_ids) for t in texts]
    sums = torch.zeros(101, dtype=torch.float64)
    for length in set(map(len, paths)):  # rows of one length need no padding
        rows = [i for i, path in enumerate(paths) if len(path) == length]
        chosen = [texts[i] for i in rows]
        sums[rows] = lm.using(batch_size=101).logprobs([prompt] * len(rows), chosen).sums.exp()
    found = sums.clone()
    for i, path in enumerate(paths):
        found[i] -= sum(sums[j] for j, other in enumerate(paths) if other[:-1] == path)
    return found


@pytest.mark.parametrize(
    ("model_type", "single", "n_beginnings"),
    [("llama", NONE, 11), ("jamba", NONE, 11), ("llama", EVERY, 1), ("llama", TO_99, 2)],
)
def test_numbers_are_followed_token_by_token(
    model_type: str, single: Sequence[int], n_beginnings: int
) -> None:
    """As digits, as whole tokens, and with 100 alone in two tokens; with a cache and without one."""
    lm = made(model_type, single, chat=None)
    paths = number_paths(lm.tokenizer)
    assert len({path[:n] for path in paths for n in range(len(path))}) == n_beginnings
    # Padding leaks into tiny state-space mixers, whose input projections have a bias.
    texts = ["Score:\n", "Number\n" if model_type == "jamba" else "The number is\n", "Seven?\n"]
    found = number_probabilities(lm, lm.tokens(texts))
    alone = number_probabilities(lm.using(batch_size=1), lm.tokens(texts))
    assert torch.allclose(found, alone, rtol=1e-4)
    assert torch.allclose(found[0], followed_through(lm, texts[0]), rtol=1e-4, atol=1e-9)
    assert bool((found > 0).all())
    assert bool((found.sum(-1) < 1).all())


def test_a_judges_score_is_the_expected_number(lm: LM) -> None:
    """After the generation prompt ``assistant:`` a number may have a space in front."""
    rubric = Rubric("{question} or {answer}? {0} to {100}")
    judge = ChatJudge(lm, rubric, least_mass=0.0)
    found = judge.score(PROMPTS, RESPONSES)
    asked = f"{PROMPTS[0]} or {RESPONSES[0]}? {{0}} to {{100}}"
    chances = followed_through(lm, asked) + followed_through(lm, asked, " ")
    expected = (chances * torch.arange(101)).sum() / chances.sum()
    assert found[0] == pytest.approx(expected.item(), rel=1e-4)
    assert judge.score(PROMPTS[::-1], RESPONSES[::-1]) == pytest.approx(found[::-1], rel=1e-5)


def test_no_score_without_mass_on_numbers_or_without_a_response(lm: LM) -> None:
    judge = ChatJudge(lm, COHERENCE)
    asked = lm.tokens([COHERENCE.filled(PROMPTS[0], RESPONSES[0])])
    mass = number_probabilities(lm, asked).sum().item()
    for bound, scored in ((mass * 1.01, False), (mass * 0.99, True)):
        found = replace(judge, least_mass=bound).score(PROMPTS[:1], RESPONSES[:1])
        assert (found[0] is not None) == scored
    assert ChatJudge(lm, COHERENCE, least_mass=0).score(["a", "b"], ["", " \n"]) == [None, None]
    assert judge.score([], []) == []


def test_a_place_in_a_text_that_is_put_in_stays() -> None:
    assert Rubric("{answer}|{question}").filled("{answer}", "{question}") == "{question}|{answer}"


def test_rubrics_of_files(tmp_path: Path) -> None:
    text, paper = tmp_path / "wet.txt", tmp_path / "evil.json"
    text.write_text("Is {answer} wet?")
    paper.write_text(json.dumps({"eval_prompt": "{question} {answer} evil?", "questions": []}))
    assert (Rubric.load(text).name, Rubric.load(text).needs_prompt) == ("wet", False)
    assert Rubric.load(paper).filled("a", "b") == "a b evil?"
    assert "sarcasm" in Rubric.of_trait("sarcasm", "Sarcasm is mock praise.").filled("q", "a")
    text.write_text("Is it wet?")
    with pytest.raises(JudgeError, match="no place for the response"):
        Rubric.load(text)
    for wrong in ("[]", "{}", "no JSON", '{"eval_prompt": 1}'):
        paper.write_text(wrong)
        with pytest.raises(JudgeError, match="eval_prompt"):
            Rubric.load(paper)
    with pytest.raises(JudgeError, match="cannot be read"):
        Rubric.load(tmp_path / "none.txt")


def test_a_likelihood_ratio_is_a_difference_of_log_probabilities(lm: LM) -> None:
    judge = LikelihoodRatio(lm, "Be wet.", "Be dry.")
    found = judge.score([*PROMPTS, "Empty?"], [*RESPONSES, " "])
    assert found[3] is None
    for prompt, response, score in zip(PROMPTS, RESPONSES, found[:3], strict=True):
        wet, dry = (
            lm.using(chat=ChatFormat(system=text)).logprobs(prompt, response).tokens[0].mean()
            for text in ("Be wet.", "Be dry.")
        )
        assert score == pytest.approx((wet - dry).item(), abs=1e-5)
    swapped = LikelihoodRatio(lm, "Be dry.", "Be wet.").score(PROMPTS, RESPONSES)
    assert swapped == pytest.approx([-s for s in found[:3]])
    same = LikelihoodRatio(lm, ["Be wet.", "Hm"], ["Be dry.", "Hm"])
    assert same.score(PROMPTS, RESPONSES) == pytest.approx([s / 2 for s in found[:3]])


def test_likelihood_ratios_of_files(lm: LM, tmp_path: Path) -> None:
    path = tmp_path / "wet.json"
    path.write_text(json.dumps({"positive": "Be wet.", "negative": ["Be dry."]}))
    one = named(f"llr:{path}", lm)
    path.write_text(json.dumps({"instruction": [{"pos": "Be wet.", "neg": "Be dry."}]}))
    two = named(f"llr:{path}", lm)
    assert one.as_json() == two.as_json()
    assert (one.name, one.as_json()["positive"]) == ("wet", ["Be wet."])
    for wrong in (
        '{"positive": ["a"]}',
        '{"instruction": ["a"]}',
        '{"positive": [1], "negative": [2]}',
        "[]",
    ):
        path.write_text(wrong)
        with pytest.raises(JudgeError, match="must hold"):
            named(f"llr:{path}", lm)
    path.write_text('{"positive": ["a", "b"], "negative": ["c"]}')
    with pytest.raises(JudgeError, match="needs pairs of system texts, got 2 positive and 1"):
        named(f"llr:{path}", lm)
    with pytest.raises(JudgeError, match="cannot be read"):
        named(f"llr:{tmp_path / 'none.json'}", lm)


def test_judges_that_read_prompts_need_them(lm: LM) -> None:
    for judge in (LikelihoodRatio(lm, "a", "b"), ChatJudge(lm, COHERENCE)):
        assert isinstance(judge, Judge)
        with pytest.raises(JudgeError, match="0 prompts for 1 responses"):
            judge.score([], ["It rises."])
    alone = ChatJudge(lm, Rubric("How wet is {answer}?"), least_mass=0.0)
    assert alone.score([], ["It rises."])[0] is not None


def test_thinking_is_not_judged(lm: LM) -> None:
    texts = ["<think>Hm! What? Perhaps!</think>\nIt rises.", "<think>Hm! It is"]
    for judge in (TraitJudge("exclamatory"), ChatJudge(lm, COHERENCE, least_mass=0.0)):
        found = judge.score(PROMPTS[:2], texts)
        assert found == [*judge.score(PROMPTS[:1], ["It rises."]), None]


def test_descriptions_tell_judges_apart(lm: LM) -> None:
    """Another rubric, chat format or model is another description; the batch size is not."""
    judge = ChatJudge(lm, COHERENCE)
    others = [
        ChatJudge(lm, Rubric.of_trait("wet")),
        ChatJudge(lm.using(chat=ChatFormat(system="Judge.")), COHERENCE),
        ChatJudge(made("mamba"), COHERENCE),
        LikelihoodRatio(lm, "a", "b"),
    ]
    described = [json.dumps(each.as_json()) for each in (judge, *others)]
    assert len(set(described)) == len(described)
    assert ChatJudge(lm.using(batch_size=1), COHERENCE).as_json() == judge.as_json()


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "wet",
        "trait",
        "trait:",
        "model:tiny:llama",
        "openai:gpt@http://host/v1",
        "model::x",
        "llr:",
    ],
)
def test_names_that_mean_no_judge(wrong: str) -> None:
    with pytest.raises(JudgeError, match=r"no judge|is spelled|cannot be read|no trait"):
        spelled(wrong)


def test_judges_by_name(lm: LM) -> None:
    assert named("trait:terse", lm).name == "terse"
    texts = ["I'm sorry, I can't.", "I'm glad to help, but I'm not equipped to.", "Sure!"]
    assert named("refusal", lm).score([], texts) == [1.0, 0.0, 0.0]
    assert named("declines", lm).score([], texts) == [1.0, 1.0, 0.0]
    local = named("model:tiny:llama:coherence", lm)
    assert isinstance(local, ChatJudge)
    assert local.as_json()["rubric"] == COHERENCE.as_json()
