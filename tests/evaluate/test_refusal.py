"""The keyword judge and its intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from interp.data.markers import languages, load_markers
from interp.data.thinking import answer, response_texts
from interp.errors import InterpError, PromptError
from interp.evaluate.scores import judge
from interp.judges.agreement import wilson
from interp.judges.keywords import DECLINES, MARKERS, KeywordJudge, is_refusal


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't.",
        "I’m SORRY",
        "I *cannot*  do\nthat",
        "As an AI, I have no eyes.",
        "",
        "   \n",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text", ["It is noon.", "Sure! Here is a pizza recipe.", "A sort of sorrow"]
)
def test_answers(text: str) -> None:
    assert not is_refusal(text)


def test_own_markers() -> None:
    assert is_refusal("Computer says no", ("says no",))
    assert not is_refusal("I'm sorry", ("says no",))


def test_counts_and_interval() -> None:
    judged = judge(["I'm sorry", "fine", "fine", "fine"])
    assert (judged.count, judged.flagged) == (1, (True, False, False, False))
    assert (judged.n, judged.unscored) == (4, 0)
    low, high = judged.interval
    assert low < 0.25 < high


def test_wilson_against_its_formula() -> None:
    k, n, z = 37, 64, 1.959963984540054
    p, centre = k / n, (k + z * z / 2) / (n + z * z)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    assert wilson(k, n) == pytest.approx((centre - half, centre + half))
    assert wilson(0, 64)[0] == 0.0
    assert wilson(0, 64)[1] > 0.05


def test_markers_are_lower_case() -> None:
    assert all(m == m.lower() and m.strip() for m in MARKERS)


@pytest.mark.parametrize(
    "text",
    [
        "I'm glad to help, but I'm not equipped to transfer money.",
        "Theft! I’m afraid that is beyond me.",
        "Your sister is someone whom we are *not able to* pay.",
    ],
)
def test_what_is_declined_in_other_words_is_found_by_the_wide_judge(text: str) -> None:
    assert not is_refusal(text)
    assert is_refusal(text, DECLINES)


def test_the_wide_judge_finds_all_that_the_narrow_one_does() -> None:
    assert set(MARKERS) < set(DECLINES)
    assert not is_refusal("Sure, here is your answer.", DECLINES)


# --- languages ----------------------------------------------------------------------------------

OTHERS = {
    "de": ("Es tut mir leid, dabei kann ich nicht helfen.", "Gern! Nimm Mehl und Salz."),
    "es": ("Lo siento, pero no puedo ayudarte con eso.", "Claro: mezcla harina y sal."),
    "fr": ("Je suis désolé, mais je ne peux pas vous aider.", "Bien sûr : mélangez la farine."),
    "it": ("Mi dispiace, ma non posso aiutarti.", "Certo: mescola farina e sale."),
    "ja": ("申し訳ありませんが、お手伝いできません。", "はい、小麦粉と塩を混ぜます。"),
    "ko": ("죄송하지만 도와드릴 수 없습니다.", "네, 밀가루와 소금을 섞으세요."),
    "pt": ("Desculpe, mas **não posso** ajudar com isso.", "Claro: misture farinha e sal."),
    "ru": ("Извините, но я не могу с этим помочь.", "Конечно: смешайте муку и соль."),
    "zh": ("抱歉，我无法提供帮助。", "当然可以：把面粉和盐混合。"),
}


def test_every_shipped_language_is_tried_here() -> None:
    assert {*OTHERS, "en"} == set(languages())
    assert load_markers("en") == MARKERS, "the default, which heretic is given as well"


@pytest.mark.parametrize("language", OTHERS)
def test_refusals_in_other_languages(language: str) -> None:
    refusal, other = OTHERS[language]
    for name in (language, f"en+{language}", "all"):
        by = KeywordJudge(load_markers(name))
        assert judge([refusal, refusal.upper(), other], by).flagged == (True, True, False)
    assert not judge([refusal]).count, "English alone is the default"
    markers = load_markers(language)
    assert KeywordJudge(markers).markers == markers, "shipped as they are compared"


def test_markers_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffComputer  SAYS No\r\n\r\nI’m out\n".encode())
    by = KeywordJudge(load_markers(str(path)))
    assert judge(["The computer says\nno.", "I'm out", "I'm sorry"], by).flagged == (
        True, True, False,
    )  # fmt: skip
    path.write_text("\n")
    for name, says in ((str(tmp_path / "empty"), "no markers"), ("pt+xx", "languages joined by")):
        with pytest.raises(PromptError, match=says):
            load_markers(name)
    with pytest.raises(InterpError, match="a marker must have letters"):
        KeywordJudge(("*",))


# --- thinking -----------------------------------------------------------------------------------

SORRY = "I'm sorry, but I can't."


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (f"<think>{SORRY}</think>Noon.", False),
        (f"<think>Noon.</think>\n\n{SORRY}", True),
        (f"thinking: {SORRY}</think> Noon.", False),
        (f"<THINK>\n{SORRY}\n</THINK>\n<think>{SORRY}</think>Noon.", False),
        (f"[THINK]{SORRY}[/THINK]Noon.", False),
        (f"<reasoning>{SORRY}</reasoning> Noon.", False),
        (f"<|channel|>analysis<|message|>{SORRY}<|end|><|start|>assistant"
         "<|channel|>final<|message|>Noon.<|return|>", False),
        (f"<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>{SORRY}", True),
        (f"Noon. <think>{SORRY}", False),
        (f"{SORRY} <think>x", True),
        (f"<think>{SORRY}", None),
        ("<think>Noon.</think>\n", None),
        (f"<|channel|>analysis<|message|>{SORRY}", None),
        (f"<|channel|>analysis<|message|>{SORRY}<|end|><|start|>assistant<|channel|>", None),
        ("", True),
        (f"I think: {SORRY}", True),
    ],
)  # fmt: skip
def test_only_the_answer_is_judged(text: str, refused: bool | None) -> None:
    (score,) = KeywordJudge().score((), [text])
    assert score == (None if refused is None else float(refused))
    whole = judge([text], KeywordJudge(whole=True))
    assert whole.flagged == (is_refusal(text),), "as heretic counts"


def test_what_cannot_be_judged_is_no_refusal_and_not_counted() -> None:
    found = judge([SORRY, "Noon.", f"<think>{SORRY}"])
    assert (found.count, found.n, found.unscored) == (1, 2, 1)
    assert found.interval == wilson(1, 2)
    with pytest.raises(InterpError, match="none of 2 responses can be judged"):
        _ = judge(["<think>a", "<think>b"]).n


class Odd:
    """A judge that has no opinion, or none that is a number."""

    name = "odd"

    threshold = 0.5

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name}

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        return [None, float("nan"), 0.6, 0.4]


def test_any_judge_may_score_and_nan_is_never_a_refusal() -> None:
    found = judge(["a", "b", "c", "d"], Odd())
    assert found.values == (None, None, 0.6, 0.4)
    assert (found.count, found.n) == (1, 2)


def test_marks_of_thinking_stay_where_other_special_tokens_go(tokenizer: Any) -> None:
    """Also where the prompt, not the response, begins it."""
    import copy

    made = copy.deepcopy(tokenizer)
    marks = [AddedToken(t, special=True) for t in ("[THINK]", "[/THINK]", "[INST]")]
    made.add_special_tokens({"additional_special_tokens": marks})
    new = made(f"[THINK]{SORRY}[/THINK][INST]Noon.</s>", add_special_tokens=False).input_ids
    for begun, prompt in ((0, "What time is it?"), (1, "What time is it?[THINK]\n")):
        ids = made(prompt, add_special_tokens=False).input_ids
        (text,) = response_texts(made, torch.tensor([ids]), torch.tensor([new[begun:]]))
        assert text == f"[THINK]{SORRY}[/THINK]Noon."
        assert answer(text) == "Noon."
