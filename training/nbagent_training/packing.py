"""Rows that share a prompt prefix in one sequence: the prefix is computed once, a mask keeps the branches apart.

A tree row holds several step samples, flattened. Each token sees its own ancestors only and has the position it would
have in a row of its own, so log-probs and gradients equal those of the separate rows (tests/training/test_packing.py).
Shapes: B tree rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nbagent_training.attention import HIDDEN


@dataclass(slots=True)
class TreeRow:
    """Step samples flattened into one sequence."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Index of the token seen just before this one; -1 at the root."""
    trained: list[bool] = field(default_factory=list)
    """True for completion tokens."""
    leaves: list[tuple[int, int]] = field(default_factory=list)
    """Start and end of each sample's completion in `ids`, in the order the samples were given."""

    def __len__(self) -> int:
        return len(self.ids)


def pack(samples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TreeRow:
    """One tree row of (prompt ids, completion ids) pairs.

    Only prompts are shared, and never their last token: so each completion follows, in the flattened row too, the
    token that predicts its first one.
    """
    row = TreeRow()
    children: dict[tuple[int, int], int] = {}
    for prompt, completion in samples:
        node = -1
        for place, token in enumerate(prompt[:-1]):
            found = children.get((node, token))
            if found is None:
                found = _add(row, token, place, node, False)
                children[(node, token)] = found
            node = found
        node = _add(row, prompt[-1], len(prompt) - 1, node, False)
        start = len(row)
        for place, token in enumerate(completion):
            node = _add(row, token, len(prompt) + place, node, True)
        row.leaves.append((start, len(row)))
    return row


def _add(row: TreeRow, token: int, position: int, parent: int, trained: bool) -> int:
    row.ids.append(token)
    row.positions.append(position)
    row.parents.append(parent)
    row.trained.append(trained)
    return len(row.ids) - 1


def ancestors(row: TreeRow) -> torch.Tensor:
    """Boolean (T, T): True where the column's token is the row's token itself or one of its ancestors."""
    size = len(row)
    mask = torch.zeros((size, size), dtype=torch.bool)
    starts = [i for i, parent in enumerate(row.parents) if parent != i - 1 or i == 0]
    for start, end in zip(starts, [*starts[1:], size], strict=True):
        parent = row.parents[start]
        if parent >= 0:
            mask[start:end] = mask[parent]
        mask[start:end, start:end] |= torch.ones(end - start, end - start, dtype=torch.bool).tril()
    return mask


def collate(rows: Sequence[TreeRow], pad_id: int, n_rows: int, length: int) -> dict[str, torch.Tensor]:
    """Tensors of `n_rows` rows of `length` tokens; rows that are missing and tokens behind the end are padding.

    Returns:
        input_ids (B, T), position_ids (B, T), attention_mask (B, 1, T, T) to be added to the scores (0 where a token
        is seen), labels (B, T) with -100 wherever there is no loss.
    """
    ids = torch.full((n_rows, length), pad_id, dtype=torch.long)
    positions = torch.zeros((n_rows, length), dtype=torch.long)
    labels = torch.full((n_rows, length), -100, dtype=torch.long)
    mask = torch.eye(length, dtype=torch.bool).expand(n_rows, 1, length, length).clone()
    for place, row in enumerate(rows):
        size = len(row)
        ids[place, :size] = torch.tensor(row.ids)
        positions[place, :size] = torch.tensor(row.positions)
        trained = torch.tensor(row.trained)
        labels[place, :size][trained] = ids[place, :size][trained]
        mask[place, 0, :size, :size] = ancestors(row)
    added = torch.zeros(mask.shape).masked_fill_(~mask, HIDDEN)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": added, "labels": labels}
