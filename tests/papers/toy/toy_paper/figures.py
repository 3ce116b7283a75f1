"""The figures of the toy paper, as functions of a study and a recipe."""

from __future__ import annotations

from interp import scale
from interp.claims import Claim
from interp.records import FigureRecord
from interp.series import Axis, BarGroup, Bars, Line, Lines, Names, Places
from interp.study import Study
from interp.training import TrainedRun, conversation_rows, train
from toy_paper.paper import PAPER, Blocks, Taught
from toy_paper.steps import counted

PROMPTS = ("What is a clock?", "Name a river.", "Who sings?", "Draw a map.")


def taught(study: Study, recipe: Taught) -> TrainedRun:
    """The study's model, taught to give one answer; read from the cache once it is trained."""
    rows = conversation_rows(study.lm.tokenizer, PROMPTS, [recipe.answer] * len(PROMPTS))
    run = train(study.lm, rows, recipe.training, name="toy", watch=study.watch)
    if not run.reused:
        counted("training")
    return run


def learning(study: Study, recipe: Taught) -> FigureRecord:
    """Loss by step of training."""
    run = taught(study, recipe)
    return FigureRecord(
        key=f"{PAPER.key}/learning",
        title="Learning one answer",
        series=Lines(
            Places("step", values=run.steps),
            Axis("loss", "nats/token"),
            [Line("training", run.losses)],
            beside={"ends": [run.losses[0], run.losses[-1]]},
        ),
        claims=(Claim("it is learned", "falls", "/ends"),),
        provenance=study.provenance({"prompts": PROMPTS}),
    )


def blocks(study: Study, recipe: Blocks) -> FigureRecord:
    """Log-probability of the answer with each block's MLP scaled, one kept step a block."""
    own = study.on(taught(study, recipe.taught).path)
    values = [
        own.resumed(
            f"block-{block}", lambda b=block: answer(own, recipe, b), recipe=recipe, block=block
        )
        for block in range(own.lm.n_blocks)
    ]
    return FigureRecord(
        key=f"{PAPER.key}/blocks",
        title="Without one MLP",
        series=Bars(
            Names("block", [str(block) for block in range(len(values))]),
            Axis("log-probability of the answer", "nats"),
            [BarGroup("without its MLP", values)],
        ),
        claims=(
            Claim("it is a probability", "at most", "/groups/0/values", 0, statistic="toy/least"),
        ),
        provenance=own.provenance({"prompts": PROMPTS}),
        proves=("toy steering",),
    )


def answer(study: Study, recipe: Blocks, block: int) -> float:
    """Mean log-probability of the taught answer with one MLP scaled."""
    counted(f"block {block}")
    without = scale(study.lm.component("mlp", block), recipe.factor)
    found = study.lm.logprobs(PROMPTS, [recipe.taught.answer] * len(PROMPTS), without)
    return found.sums.mean().item()
