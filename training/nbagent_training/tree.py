"""The attempts at one task as a tree: attempts that were branched share the calls made before they parted.

A leaf is an attempt. Leaves share a call that was made in the same rollout at the same place, whatever its prompt looks
like. A node is where leaves part; its alternatives lead away from it, each a segment of calls up to the next node or
to an end. The task itself is the first node: attempts that were never branched are its alternatives, so plain groups of
rollouts are the simplest trees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from nbagent.samples import StepSample

Key = tuple[str, int]
"""A call: the rollout that made it and its number in there."""


@dataclass(slots=True)
class Leaf:
    """One attempt."""

    rollout_id: str
    reward: float
    """R: its return."""
    truncated: bool
    calls: dict[Key, list[StepSample]]
    """Its calls in order, from the first of the task; more than one row where a call was split."""
    spread: int = 1
    """Product of the numbers of alternatives at the nodes on its way."""

    @property
    def steps(self) -> list[list[Key]]:
        """The calls step by step: an action, and before it the memories written at its step."""
        steps: list[list[Key]] = [[]]
        for key, rows in self.calls.items():
            steps[-1].append(key)
            if rows[0].kind == "action":
                steps.append([])
        return [step for step in steps if step]


@dataclass(frozen=True, slots=True)
class Segment:
    """The calls of one alternative at a node."""

    calls: tuple[Key, ...]
    leaves: tuple[Leaf, ...]
    """Attempts that go through it."""
    value: float
    """Mean return of its subtree: at each node below, the mean over the alternatives' values."""
    siblings: tuple[float, ...]
    """Values of all alternatives of its node, its own among them."""


class Tree:
    """The attempts at one task.

    Leaf l with spread B_l = Π_nodes K_node counts n/B_l in the task's statistics, n being the number of leaves: those
    of one branching count together as much as the attempt that they come from would have counted alone, and attempts
    that were not branched count 1 each.

    Attributes:
        leaves: the attempts.
        segments: their calls, each of them in one segment.
        branchings: nodes, the task itself aside.
        mean: μ = Σ_l R_l / B_l, the value of the first node.
        deviation: σ, the deviation of a weighted sample; for unbranched attempts the usual one with n − 1:
            σ² = Σ_l s_l (R_l − μ)² / (n − Σ_l s_l² / n), s_l = n / B_l. 0 where all returns are equal.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = list(leaves)
        self.segments: list[Segment] = []
        self.branchings = -1
        self.mean = self._grow(self.leaves, [list(leaf.calls) for leaf in self.leaves], 0, 1)
        self.deviation = self._deviation()

    def share(self, leaf: Leaf) -> float:
        """s_l = n / B_l."""
        return len(self.leaves) / leaf.spread

    def _deviation(self) -> float:
        rewards = [leaf.reward for leaf in self.leaves]
        if min(rewards) == max(rewards):
            return 0.0
        shares = [self.share(leaf) for leaf in self.leaves]
        squares = sum(s * (r - self.mean) ** 2 for s, r in zip(shares, rewards, strict=True))
        return math.sqrt(squares / (len(rewards) - sum(s * s for s in shares) / len(rewards)))

    def _grow(self, leaves: Sequence[Leaf], paths: Sequence[list[Key]], depth: int, spread: int) -> float:
        """Add the segments below a node, which lies before call `depth` of all these leaves; returns its value."""
        self.branchings += 1
        alternatives: dict[Key, list[int]] = {}
        for place, path in enumerate(paths):
            # One that ended here, while others went on, is an alternative of its own.
            alternatives.setdefault(path[depth] if depth < len(path) else ("", place), []).append(place)
        parts = []
        for places in alternatives.values():
            own, ways = [leaves[place] for place in places], [paths[place] for place in places]
            end = len(ways[0])
            if len(own) > 1:
                together = takewhile(
                    lambda calls: len(set(calls)) == 1, zip(*(way[depth:] for way in ways), strict=False)
                )
                end = depth + sum(1 for _ in together)
                value = self._grow(own, ways, end, spread * len(alternatives))
            else:
                own[0].spread = spread * len(alternatives)
                value = own[0].reward
            parts.append((tuple(ways[0][depth:end]), tuple(own), value))
        values = tuple(value for _, _, value in parts)
        self.segments += [Segment(calls, own, value, values) for calls, own, value in parts if calls]
        return sum(values) / len(values)


def leaf_of(rollout_id: str, reward: float, truncated: bool, rows: Sequence[StepSample]) -> Leaf:
    """An attempt from its rows; the same row twice counts once."""
    calls: dict[Key, list[StepSample]] = {}
    for row in sorted(dict.fromkeys(rows), key=lambda row: row.step):
        calls.setdefault((row.origin or rollout_id, row.step), []).append(row)
    return Leaf(rollout_id, reward, truncated, calls)
