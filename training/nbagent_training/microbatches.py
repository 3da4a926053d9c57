"""The rows of an update in micro-batches: one tree row each, of at most so many tokens, without padding.

Rows that begin alike lie next to each other, so that what they share is computed once where that saves enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from nbagent_training.attention import Forest, forest_of
from nbagent_training.groups import TrainingRow
from nbagent_training.loss_settings import Kernel
from nbagent_training.losses import Tokens
from nbagent_training.packing import pack, shared

LEAST = 48
"""A prefix is shared if that saves so many tokens: each more segment costs attention calls in every layer."""


def divide(rows: Sequence[TrainingRow], budget: int, n_processes: int = 1) -> list[list[TrainingRow]]:
    """Chunks whose tree rows have at most `budget` tokens, a longer row alone; at least one chunk for each process."""
    if not rows:
        return []
    wholes = [(*row.prompt_ids, *row.completion_ids) for row in rows]
    order = sorted(range(len(rows)), key=wholes.__getitem__)
    # What a row adds, at most, to a chunk that holds the row before it: up to LEAST tokens may not be worth sharing.
    added = [len(wholes[order[0]])]
    for before, place in pairwise(order):
        same = shared(wholes[before], wholes[place])
        added.append(len(wholes[place]) - max(0, same - LEAST))
    if n_processes > 1:
        budget = min(budget, -(-sum(added) // n_processes))
    chunks: list[list[TrainingRow]] = []
    room = 0
    for place, more in zip(order, added, strict=True):
        if not chunks or more > room:
            chunks.append([])
            room, more = budget, len(wholes[place])
        chunks[-1].append(rows[place])
        room -= more
    return chunks


@dataclass(slots=True)
class MicroBatch:
    """Tensors of some rows as one tree row of T tokens; K completion tokens."""

    ids: torch.Tensor
    """(1, T)."""
    positions: torch.Tensor
    """(1, T)."""
    forest: Forest
    where: torch.Tensor
    """(K,): the places that predict the completion tokens."""
    targets: torch.Tensor
    """(K,): the completion tokens."""
    sampler: torch.Tensor
    """(K,) log-probs."""
    advantage: torch.Tensor
    """(K,)."""
    weight: torch.Tensor
    """(K,)."""
    row: torch.Tensor
    """(K,): index of the row."""
    n_rows: int
    n_unpacked: int
    """Tokens of the rows as they are."""
    old: torch.Tensor | None = None
    """(K,) log-probs of the first pass."""
    reference: torch.Tensor | None = None
    """(K,) log-probs of the reference model."""

    def tokens(self, scores: torch.Tensor) -> Tokens:
        """What the loss sees, given (K, 2) log-probs and entropies; those of the first pass become `old`."""
        if self.old is None:
            self.old = scores[:, 0].detach()
        return Tokens(
            logp=scores[:, 0],
            entropy=scores[:, 1],
            sampler=self.sampler,
            old=self.old,
            advantage=self.advantage,
            weight=self.weight,
            row=self.row,
            n_rows=self.n_rows,
            reference=self.reference,
        )


def micro_batch(rows: Sequence[TrainingRow], device: torch.device, kernel: Kernel = "sdpa") -> MicroBatch:
    """The tensors of one chunk."""
    tree = pack([(row.prompt_ids, row.completion_ids) for row in rows], completions=True, least=LEAST)
    lengths = torch.tensor([len(row.completion_ids) for row in rows])

    def each(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(lengths).to(device)

    def flat(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return MicroBatch(
        ids=flat(tree.ids)[None],
        positions=flat(tree.positions)[None],
        forest=forest_of(tree, device, kernel),
        where=flat([place for path in tree.paths for place in path[:-1]]),
        targets=flat([token for row in rows for token in row.completion_ids]),
        sampler=torch.tensor([logp for row in rows for logp in row.logprobs], dtype=torch.float32, device=device),
        advantage=torch.tensor(
            [a for row in rows for a in row.token_advantages or (row.advantage,) * len(row.completion_ids)],
            dtype=torch.float32,
            device=device,
        ),
        weight=each([row.weight for row in rows]),
        row=torch.arange(len(rows)).repeat_interleave(lengths).to(device),
        n_rows=len(rows),
        n_unpacked=sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows),
    )
