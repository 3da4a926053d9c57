"""Branched rollouts: alternatives sampled from one live state, each continued to its end.

Before a step a rollout may be branched: its kernel forks itself, its files and its notebook are copied, and every
alternative goes on by itself. All have the same prompt there, id for id, and each its own noise.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from nbagent.errors import StorageError
from nbagent.trajectory import Trajectory
from nbagent_kernels import KernelError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BranchRules:
    """Where and how often one root rollout and its branches are branched."""

    where: Literal["random", "entropy", "every"]
    """Before which steps: each with a probability, with one that rises with the uncertainty of the next tokens, all."""
    alternatives: int
    """Attempts that go on from a branched state, the one that came there among them."""
    attempts: int
    """Most attempts that may come of a root, itself among them."""
    calls: int
    """Most model calls of them together: nothing is branched where all attempts, run to their last step, could make
    more. Memories, and looks under `entropy`, are counted when they are made, not ahead. The first step is looked at
    also where these do not suffice to branch there: later looks are held against it."""
    probability: float = 0.5
    """Of branching before a step."""
    entropy_weight: float = 0.5
    """What a nat a token above the entropy at the first step adds to it, under `entropy`."""
    per_lineage: int = 1
    """Most branchings on the way of one attempt."""


class Branchable(Protocol):
    """A rollout under way, between two steps."""

    rollout_id: str
    branchings: int

    @property
    def step(self) -> int:
        """Number of the step to come."""
        ...

    @property
    def calls_left(self) -> int:
        """Most actions that it may still take; 0 once it has ended."""
        ...

    @property
    def replayed(self) -> bool:
        """Its kernel was made by running the cells again."""
        ...

    def chance(self, what: str) -> float:
        """A number from [0, 1) that is the same in every run."""
        ...

    async def entropy(self) -> float:
        """Entropy of the next tokens, in nats a token, by a look that is thrown away."""
        ...

    async def branch(self, rollout_id: str) -> Branchable:
        """Another rollout that goes on from here. Raises KernelError, OSError."""
        ...

    async def abandon(self) -> None:
        """End what was branched and never begun."""
        ...

    def enter(self) -> None:
        """It is about to run on."""
        ...

    async def run(self) -> Trajectory:
        """Run on to the end."""
        ...


class Branches:
    """All that comes of one root rollout.

    Attributes:
        trajectories: the branches', once they have ended; the root's is not among them.
        counts: model_calls, looks (at the next tokens' entropy), branchings, branches_replayed (kernels made by running
            the cells again), branches_refused (states that could not be branched).
        set_aside: logs of an earlier try at this tree, moved out of the way.
    """

    def __init__(self, rules: BranchRules) -> None:
        self.rules = rules
        self.trajectories: list[Trajectory] = []
        self.counts: Counter[str] = Counter()
        self.set_aside = 0
        self._attempts: list[Branchable] = []
        self._running: list[asyncio.Task[Trajectory]] = []
        self._first_entropy: float | None = None
        # What branchings under way will take, should they succeed.
        self._held_attempts = 0
        self._held_calls = 0

    def begin(self, root: Branchable) -> None:
        """The root begins, or begins anew."""
        self._attempts = [root]

    def called(self) -> None:
        """One of the attempts asks the model."""
        self.counts["model_calls"] += 1

    async def before_step(self, attempt: Branchable) -> None:
        """Branch an attempt, if the rules say so; its alternatives run on from here by themselves.

        Raises:
            StorageError: a branch's log cannot be written.
        """
        rules = self.rules
        new = min(rules.alternatives - 1, rules.attempts - len(self._attempts) - self._held_attempts)
        if new < 1 or attempt.branchings >= rules.per_lineage:
            return
        look = rules.where == "entropy"
        alone = self.counts["model_calls"] + sum(other.calls_left for other in self._attempts) + self._held_calls + look
        more = new * attempt.calls_left
        if alone + more > rules.calls:
            if look and self._first_entropy is None and alone <= rules.calls:
                await self._look(attempt)
            return
        # Before anything is awaited: siblings that come here meanwhile must not take the same places.
        self._held_attempts += new
        self._held_calls += more
        try:
            if rules.where == "every" or attempt.chance("branch") < await self._probability(attempt):
                await self._branch(attempt, new)
        finally:
            self._held_attempts -= new
            self._held_calls -= more

    async def _branch(self, attempt: Branchable, new: int) -> None:
        made: list[Branchable] = []
        try:
            for number in range(new):
                made.append(await attempt.branch(f"{attempt.rollout_id}+{attempt.step}.{number}"))
        except StorageError:
            await _abandon(made)
            raise
        except (KernelError, OSError) as error:
            self.counts["branches_refused"] += 1
            _log.info("%s: not branched before step %d: %s", attempt.rollout_id, attempt.step, error)
            await _abandon(made)
            return
        except BaseException:
            await _abandon(made)
            raise
        self.counts["branchings"] += 1
        attempt.branchings += 1
        for other in made:
            self.counts["branches_replayed"] += other.replayed
            other.branchings = attempt.branchings
            # At once, before anything is awaited: a model in lockstep waits for all who are in.
            other.enter()
        self._attempts += made
        self._running += [asyncio.create_task(other.run()) for other in made]

    async def ended(self) -> None:
        """Wait for all branches. Raises what ended one of them that was no outcome."""
        while len(self.trajectories) < len(self._running):
            self.trajectories.append(await self._running[len(self.trajectories)])

    async def close(self) -> None:
        """Cancel what still runs, and wait until it has ended its kernels."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _probability(self, attempt: Branchable) -> float:
        rules = self.rules
        if rules.where == "random":
            return rules.probability
        entropy = await self._look(attempt)
        assert self._first_entropy is not None
        return rules.probability + rules.entropy_weight * (entropy - self._first_entropy)

    async def _look(self, attempt: Branchable) -> float:
        """The first look is what later ones are held against."""
        self.counts["looks"] += 1
        self.called()
        entropy = await attempt.entropy()
        if self._first_entropy is None:
            self._first_entropy = entropy
        return entropy


async def _abandon(made: Sequence[Branchable]) -> None:
    for other in made:
        await other.abandon()
