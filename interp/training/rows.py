"""Rows to train on: token ids with labels, from conversations or from a tensor of windows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp.data.chat import ChatFormat
from interp.data.tokens import followed, needed, prompt_tokens
from interp.errors import PromptError
from interp.training.content import tensor_hash

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Tensor | Sequence[Row]
"""Token ids ``[row, seq]``, or rows of ``input_ids`` and, where wanted, ``labels`` and columns for a loss."""

IGNORED = -100
"""The label of a token that the loss leaves out."""


def conversation_rows(
    tokenizer: Any,
    prompts: Sequence[str],
    responses: Sequence[str],
    chat: ChatFormat | None = ChatFormat(),  # noqa: B008 (frozen)
    *,
    end: bool = True,
) -> list[dict[str, Tensor]]:
    """One row for each prompt with its response; labels on the response alone.

    end: the response is followed by the end-of-text token, which is learned as well. Raises PromptError for
    a tokenizer that has none.
    """
    closing = needed(tokenizer).eos_token_id if end else None
    if end and closing is None:
        raise PromptError("this tokenizer has no end-of-text token; use end=False")
    batch = followed(tokenizer, prompt_tokens(tokenizer, prompts, chat), responses)
    assert batch.response is not None
    rows = []
    for ids, mask, n in zip(batch.ids, batch.mask, batch.response.tolist(), strict=True):
        own = ids[mask.bool()]
        labels = own.clone()
        labels[:-n] = IGNORED
        if closing is not None:
            own, labels = (torch.cat([t, torch.tensor([closing])]) for t in (own, labels))
        rows.append({"input_ids": own, "labels": labels})
    return rows


class Checked(torch.utils.data.Dataset[Row]):
    """Rows that a model with ``vocabulary`` embeddings can be trained on, and their content hash.

    An object with a ``sha256`` of its own is taken by that hash and not read beforehand. Raises PromptError
    for rows without ``input_ids``, ids outside the vocabulary, and data without length or order.
    """

    def __init__(self, rows: Rows, vocabulary: int) -> None:
        if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
            raise PromptError(
                f"training needs rows with a length and an order, not {type(rows).__name__}; make a list"
            )
        if not len(rows):
            raise PromptError("no rows to train on")
        self._rows = rows
        self._vocabulary = vocabulary
        known = getattr(rows, "sha256", None)
        self.sha256 = known if isinstance(known, str) else self._hash()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        row = self._rows[index]
        return {"input_ids": row} if isinstance(row, Tensor) else row

    def _hash(self) -> str:
        if isinstance(self._rows, Tensor):
            self._check(0, self._rows)
            return tensor_hash(self._rows)
        digest = hashlib.sha256()
        for index in range(len(self)):
            row = {name: torch.as_tensor(value) for name, value in self[index].items()}
            self._check(index, row.get("input_ids"))
            digest.update("".join(f"{k}:{tensor_hash(row[k])}\n" for k in sorted(row)).encode())
        return digest.hexdigest()

    def _check(self, index: int, ids: Tensor | None) -> None:
        if ids is None or not ids.numel() or ids.is_floating_point():
            raise PromptError(f"row {index + 1} has no token ids; give input_ids=[...]")
        if int(ids.max()) >= self._vocabulary or int(ids.min()) < 0:
            raise PromptError(
                f"row {index + 1} or a later one has a token id outside the model's vocabulary of "
                f"{self._vocabulary}; use the tokenizer of this model"
            )


def collate(rows: Sequence[Row], pad: int) -> dict[str, Tensor]:
    """A batch, padded on the right: labels with −100, other columns with 0.

    ``labels`` are the ids where the rows have none. ``attention_mask`` is there where something is padded.
    """
    columns = {name: [torch.as_tensor(row[name]) for row in rows] for name in rows[0]}
    fill = {"input_ids": pad, "labels": IGNORED}
    batch = {name: _stacked(values, fill.get(name, 0)) for name, values in columns.items()}
    lengths = torch.tensor([len(ids) for ids in columns["input_ids"]])
    width = batch["input_ids"].shape[1]
    real = torch.arange(width) < lengths.unsqueeze(-1)
    if "labels" not in batch:
        batch["labels"] = batch["input_ids"].where(real, IGNORED)
    if int(lengths.min()) < width:
        batch.setdefault("attention_mask", real.long())
    return batch


def _stacked(values: list[Tensor], fill: int) -> Tensor:
    if len({value.shape for value in values}) == 1:
        return torch.stack(values)
    return pad_sequence(values, batch_first=True, padding_value=fill)
