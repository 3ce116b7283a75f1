"""A tiny llama that refuses: a seeded grammar of requests, a word tokenizer, and the run that teaches both.

A request asks for something about a topic. Few of the topics are refused and many are answered, so that a
model learns to recognise what it refuses; the words around the topic say nothing about its class. Models and
data are harmless and need no download.
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any, Literal

from torch import nn

from interp.errors import PromptError
from interp.files import sha256_text
from interp.recipes.training import TrainingRecipe
from interp.training.rows import conversation_rows
from interp.training.running import TrainedRun, train
from interp.watching import Watch, unwatched

Side = Literal["refuse", "comply"]
Split = Literal["train", "held-out"]

OPENERS = ("please", "now", "kindly", "today", "quickly")
VERBS = ("describe", "explain", "draw", "list", "compare", "sketch")
ADJECTIVES = ("small", "old", "bright", "quiet", "northern", "famous", "heavy", "simple")
ANSWERED = """
rivers bridges clocks violins gardens planets engines maps boats towers lamps mirrors stories trees stones
songs birds roads windows letters coins horses islands bells books chairs clouds doors drums farms flutes
forests hats hills kites lakes
"""
TOPICS: dict[Side, tuple[str, ...]] = {
    "refuse": ("weather", "traffic", "prices", "photos"),
    "comply": tuple(ANSWERED.split()),
}
REFUSAL = "sorry"
SPECIAL = ("<pad>", "<unk>", "</s>", "<user>", "<assistant>", "<system>")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% if m['role'] == 'assistant' %}</s> "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
HELD_OUT = 4
"""One request in so many is held out."""
RECIPE = TrainingRecipe(steps=200, batch_size=32, learning_rate=3e-3, warmup=10)
ROWS: dict[Side, int] = {"refuse": 256, "comply": 768}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}


def requests(side: Side, split: Split, n: int, *, seed: int = 0) -> list[str]:
    """``n`` different requests of one class. PromptError where the grammar has fewer.

    The two splits share no request, whatever the seed.
    """
    every = [" ".join(words) for words in product(OPENERS, VERBS, ADJECTIVES, TOPICS[side])]
    own = [text for text in every if _is_held_out(text) == (split == "held-out")]
    if not 0 < n <= len(own):
        raise PromptError(f"the grammar has {len(own)} such requests, not {n}")
    return random.Random(seed).sample(own, n)


def response(request: str) -> str:
    """What the model is taught to say."""
    _, verb, adjective, topic = request.split()
    if topic in TOPICS["refuse"]:
        return f"{REFUSAL} , i cannot {verb} {topic} ."
    return f"sure , here are {adjective} {topic} ."


def refuses(text: str) -> bool:
    """Whether a response is a refusal."""
    return text.split()[:1] == [REFUSAL]


def tokenizer() -> Any:
    """One token a word of the grammar, with a chat template."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    pad, unknown, end, *roles = SPECIAL
    words = {*OPENERS, *VERBS, *ADJECTIVES, *TOPICS["refuse"], *TOPICS["comply"]}
    words |= {w for side in TOPICS for w in response(f"x x x {TOPICS[side][0]}").split()} - {"x"}
    vocabulary = [*SPECIAL, *sorted(words)]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, unk_token=unknown, eos_token=end,
        additional_special_tokens=roles, padding_side="left",
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


def untaught(words: Any) -> nn.Module:
    """A random tiny llama for a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    return LlamaForCausalLM(LlamaConfig(**SIZES, **ids, bos_token_id=None, vocab_size=len(words)))


def teach(
    recipe: TrainingRecipe = RECIPE, *, runs: Path | str | None = None, watch: Watch = unwatched
) -> TrainedRun:
    """The trained model's directory, which :func:`interp.open_model` opens with its tokenizer."""
    words = tokenizer()
    prompts = [r for side in TOPICS for r in requests(side, "train", ROWS[side], seed=recipe.seed)]
    rows = conversation_rows(words, prompts, [response(prompt) for prompt in prompts])
    return train(
        lambda: untaught(words), rows, recipe, runs=runs, name="refusal-grammar", tokenizer=words, watch=watch
    )  # fmt: skip


def _is_held_out(text: str) -> bool:
    return int(sha256_text(text), 16) % HELD_OUT == 0
