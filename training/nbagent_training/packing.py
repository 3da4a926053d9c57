"""Rows that share a prefix in one sequence: the prefix is computed once, and the branches do not see each other.

A tree row holds several step samples as a token trie, flattened branch by branch (depth first). Each token sees its own
ancestors only and has the position it would have in a row of its own, so log-probs and gradients equal those of the
separate rows (tests/training/test_packing.py). Several roots are several trees side by side: rows that share nothing
lie in one sequence without padding. Shapes: B tree rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nbagent_training.attention import HIDDEN

Sample = tuple[Sequence[int], Sequence[int]]
"""Prompt ids, completion ids."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that the same samples pass through."""

    start: int
    end: int
    parent: int
    """Index of the segment before it; -1 at a root."""


@dataclass(slots=True)
class TreeRow:
    """Step samples flattened into one sequence."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    """In the order of the tokens; the descendants of a segment follow it directly."""
    paths: list[list[int]] = field(default_factory=list)
    """For each sample, in the order given: where its last prompt token and its completion's tokens lie, the one before
    the other. Each predicts the next."""

    def __len__(self) -> int:
        return len(self.ids)

    def lineage(self, segment: int) -> list[int]:
        """A segment's ancestors and itself, the root first."""
        line = []
        while segment >= 0:
            line.append(segment)
            segment = self.segments[segment].parent
        return line[::-1]


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(i for i in range(size) if one[i] != other[i])


def pack(samples: Sequence[Sample], *, completions: bool = False, least: int = 1) -> TreeRow:
    """One tree row.

    Args:
        samples: (prompt ids, completion ids).
        completions: share completions too (a completion may be the beginning of a later prompt). Without it only
            prompts are shared, and never their last token: so each completion follows, in the flattened row too, the
            token that predicts its first one, as a loss over shifted labels demands.
        least: a prefix is shared if that saves at least so many tokens.
    """
    row = TreeRow()
    wholes = [(*prompt, *completion) for prompt, completion in samples]
    keys = [w if completions else tuple(prompt[:-1]) for w, (prompt, _) in zip(wholes, samples, strict=True)]
    ends: dict[int, int] = {}

    def grow(members: list[int], depth: int, parent: int) -> None:
        """The trie of `members`, which share `depth` tokens that lie in the segments up to `parent`."""
        if len(members) == 1:
            ends[members[0]] = _append(row, wholes[members[0]], depth, len(wholes[members[0]]), parent)
            return
        first = keys[members[0]]
        common = min(shared(first, keys[m]) for m in members)
        if (common - depth) * (len(members) - 1) >= least:
            parent, depth = _append(row, first, depth, common, parent), common
        groups: dict[int, list[int]] = {}
        for m in members:
            # A sample that ends here is a branch of its own.
            groups.setdefault(keys[m][common] if len(keys[m]) > common else -1 - m, []).append(m)
        for group in groups.values():
            grow(group, depth, parent)

    if samples:
        grow(list(range(len(samples))), 0, -1)
    for place, (prompt, _) in enumerate(samples):
        spots = [i for s in row.lineage(ends[place]) for i in range(row.segments[s].start, row.segments[s].end)]
        row.paths.append(spots[len(prompt) - 1 :])
    return row


def _append(row: TreeRow, tokens: Sequence[int], start: int, end: int, parent: int) -> int:
    """Add tokens[start:end] behind segment `parent`; the index of their segment."""
    if start == end:
        return parent
    begin = len(row.ids)
    row.ids.extend(tokens[start:end])
    row.positions.extend(range(start, end))
    row.segments.append(Segment(begin, len(row.ids), parent))
    return len(row.segments) - 1


def last_descendants(row: TreeRow) -> torch.Tensor:
    """(T,): for each token the index behind its last descendant. Token q sees token k if k <= q < last[k]."""
    behind = [segment.end for segment in row.segments]
    for place in range(len(row.segments) - 1, -1, -1):
        parent = row.segments[place].parent
        if parent >= 0:
            behind[parent] = max(behind[parent], behind[place])
    lengths = torch.tensor([segment.end - segment.start for segment in row.segments])
    return torch.tensor(behind).repeat_interleave(lengths)


def ancestors(row: TreeRow) -> torch.Tensor:
    """Boolean (T, T): True where the column's token is the row's token itself or one of its ancestors."""
    place = torch.arange(len(row))
    return (place[None] <= place[:, None]) & (place[:, None] < last_descendants(row)[None])


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
        trained = torch.tensor([spot for path in row.paths for spot in path[1:]], dtype=torch.long)
        labels[place, trained] = ids[place, trained]
        mask[place, 0, :size, :size] = ancestors(row)
    added = torch.zeros(mask.shape).masked_fill_(~mask, HIDDEN)
    return {"input_ids": ids, "position_ids": positions, "attention_mask": added, "labels": labels}
