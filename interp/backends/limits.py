"""What a model can be given: ids that its embedding has, and no more tokens than it has positions.

``max_position_embeddings`` of a rotary or state-space model says what it was trained on; such a model
runs on longer prompts, and no limit is enforced. A table of positions (GPT-2, GPT-J) ends.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from interp.errors import PromptError
from interp.models.anatomy import Anatomy
from interp.types import TokenBatch

SHOWN = 60
POSITION_TABLE = "embed_positions"


def vocabulary(anatomy: Anatomy) -> int:
    """Rows of the token embedding: ids below are valid."""
    return anatomy.embeddings[0].shape[0]


def position_limit(model: nn.Module, anatomy: Anatomy) -> int | None:
    """Tokens that a table of positions has room for; None for a model without such a table."""
    rows = [table.shape[0] for table in anatomy.embeddings[1:]]
    rows += [len(b) for path, b in model.named_buffers() if path.endswith(POSITION_TABLE)]
    return min(rows, default=None)


def admitted(
    model: nn.Module, tokenizer: Any, anatomy: Anatomy, batch: TokenBatch, more: int = 0
) -> TokenBatch:
    """The batch with padding that the embedding has.

    more: tokens that will be generated; the last of them is not run. Raises PromptError for an id
    without a row in the embedding and for a prompt that does not fit, naming it.
    """
    rows = vocabulary(anatomy)
    outside = (batch.ids >= rows) | (batch.ids < 0)
    if bool(outside.any()):
        wrong = outside & batch.mask.bool()
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise _no_row(tokenizer, batch, row, int(batch.ids[row, column]), rows)
        batch = replace(batch, ids=batch.ids.masked_fill(outside, 0))
    _check_no_image(tokenizer, anatomy, batch)
    limit = position_limit(model, anatomy)
    if limit is not None and (longest := int(batch.lengths.max())) + max(more - 1, 0) > limit:
        follow = f" and is to be followed by {more} more" if more else ""
        raise PromptError(
            f"{_shown(tokenizer, batch, int(batch.lengths.argmax()))} has {longest} tokens{follow}; "
            f"this {anatomy.model_type} has {limit} positions: shorten the prompt or the response"
        )
    return batch


def _check_no_image(tokenizer: Any, anatomy: Anatomy, batch: TokenBatch) -> None:
    """Raise PromptError for a token that stands for an image, which a text prompt does not bring."""
    for token in anatomy.image_tokens:
        found = ((batch.ids == token) & batch.mask.bool()).nonzero()
        if len(found):
            raise PromptError(
                f"{_shown(tokenizer, batch, int(found[0, 0]))} has the token of an image (id {token}); "
                f"of this {anatomy.model_type} the text stack alone is run, so give prompts without images"
            )


def _no_row(tokenizer: Any, batch: TokenBatch, row: int, token: int, rows: int) -> PromptError:
    known = (
        f"{tokenizer.convert_ids_to_tokens(token)!r} (id {token})"
        if tokenizer is not None
        else f"id {token}"
    )
    return PromptError(
        f"{_shown(tokenizer, batch, row)} has the token {known}, but the model's embedding has "
        f"{rows} rows; use the tokenizer that belongs to the model, or resize its embedding"
    )


def _shown(tokenizer: Any, batch: TokenBatch, row: int) -> str:
    """``the prompt 'its first words'…``, or its number in the batch without a tokenizer."""
    ids = batch.ids[row][batch.mask[row].bool()]
    if tokenizer is None:
        return f"prompt {row + 1} of its batch"
    text = " ".join(tokenizer.decode(ids[: 4 * SHOWN], skip_special_tokens=True).split())
    return f"the prompt {text[:SHOWN]!r}" + ("…" if len(text) > SHOWN else "")
