"""Reward profiles: what a model's attempts at each task say of the task as a training task.

A task teaches where some attempts are right and some are wrong: a group of rollouts whose rewards are all equal has
advantages of 0. A task is binary where every reward is 0 or 1, as the rewards of all our verifiers are; then its
attempts are Bernoulli draws, and pass@k and Wilson's interval are defined. Of other rewards only the mean, the spread
and the chance of a mixed group are given.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import stdev
from typing import Any

from pydantic import TypeAdapter

from nbagent.runfolder import write_whole
from nbagent.score import Attempt, Score
from nbagent.stats import Estimate, mean_of_tasks, pass_at_k, wilson

PROFILE_FILE, TABLE_FILE = "profile.json", "profile.csv"


def mixed_probability(right: float, n: float, group_size: int, prior: float = 0.5) -> float:
    """Chance that G attempts at a binary task are neither all right nor all wrong, of which `right` among n were right.

    With p ~ Beta(a, b), a = right + prior, b = n − right + 1 − prior, it is the expectation of 1 − p^G − (1 − p)^G,
    where E[p^G] = Π_{i<G} (a + i) / (a + b + i). Prior 0.5 is Jeffreys' (Brown, Cai and DasGupta, Stat. Sci. 16 (2001)
    101–133, section 4): so a task that failed in all of 8 attempts is not taken for impossible. The plug-in estimate
    1 − (c/n)^G − (1 − c/n)^G would be 0 there, and too low everywhere.

    Args:
        right: right attempts; discounted counts may be fractions.
        n: attempts.
        group_size: G.
        prior: success rate assumed before any attempt, worth one attempt; between 0 and 1, ends excluded.
    """
    a, b = right + prior, n - right + 1 - prior
    all_right = all_wrong = 1.0
    for i in range(group_size):
        all_right *= (a + i) / (a + b + i)
        all_wrong *= (b + i) / (a + b + i)
    return 1 - all_right - all_wrong


def mixed_share(rewards: Sequence[float], group_size: int) -> float:
    """Chance that G draws from these rewards, with replacement, are not all equal: 1 − Σ_v (share of v)^G.

    For rewards that are not binary. Too low for few rewards: values that were not seen count for nothing.
    """
    return 1 - sum((count / len(rewards)) ** group_size for count in Counter(rewards).values())


@dataclass(frozen=True, slots=True)
class TaskProfile:
    """What the attempts at one task amount to; None where no attempt was graded."""

    task_id: str
    family: str
    question: str
    """Digest of the question: ids of two sets may be the same, their questions are not."""
    n: int
    """Graded attempts."""
    excluded: int
    """Attempts without a reward: ungraded or infrastructure."""
    binary: bool
    """Every reward is 0 or 1."""
    mean: float | None
    """Mean reward."""
    spread: float | None
    """Sample deviation of the rewards (n − 1); None for fewer than two."""
    rate: Estimate | None
    """Share of right attempts with Wilson's interval; None where the task is not binary."""
    pass_at: dict[int, float]
    """pass@k without bias, k = 1, 2, 4, … n (Chen et al. 2021, arXiv 2107.03374, eq. 1); empty if not binary."""
    mixed: float | None
    """Chance that a group of the profile's size is mixed."""
    steps: float
    """Mean model calls an attempt."""
    tokens: float
    """Mean sampled tokens an attempt."""
    seconds: float
    """Mean seconds an attempt."""
    cost: float
    """Mean cost of an attempt, in the unit of the prices given."""

    @property
    def right(self) -> float:
        """Sum of the rewards; of a binary task the number of right attempts."""
        return (self.mean or 0.0) * self.n


@dataclass(frozen=True, slots=True)
class Profile:
    """The profiles of a set's tasks under one model."""

    tasks: tuple[TaskProfile, ...]
    """Sorted by id."""
    group_size: int
    """G of the chance of a mixed group."""
    model: str = ""
    set: dict[str, Any] = field(default_factory=dict)
    """The task set's fingerprint."""

    def write(self, folder: Path) -> None:
        """Write profile.json and profile.csv, each whole or not at all. Raises StorageError."""
        write_whole(folder / PROFILE_FILE, _PROFILE.dump_json(self, indent=1))
        write_whole(folder / TABLE_FILE, self.to_csv())

    def to_csv(self) -> str:
        """One line a task; pass@k in columns of their own, ends of Wilson's interval as `rate_low`, `rate_high`."""
        ks = sorted({k for task in self.tasks for k in task.pass_at})
        names = [f.name for f in TaskProfile.__dataclass_fields__.values() if f.name not in ("rate", "pass_at")]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*names, "rate_low", "rate_high", *(f"pass@{k}" for k in ks)])
        for task in self.tasks:
            values, rate = asdict(task), task.rate
            ends = (rate.low, rate.high) if rate else ("", "")
            writer.writerow([*(values[name] for name in names), *ends, *(task.pass_at.get(k, "") for k in ks)])
        return out.getvalue()


_PROFILE = TypeAdapter(Profile)


@dataclass(frozen=True, slots=True)
class Part:
    """What some tasks amount to together."""

    n_tasks: int
    always: int
    """Tasks whose graded attempts were all right."""
    sometimes: int
    """Tasks with different rewards."""
    never: int
    """Tasks whose graded attempts were all wrong."""
    ungraded: int
    """Tasks without a graded attempt."""
    mean: float
    """Mean over graded tasks of their mean reward; 0 where none is graded."""
    pass_1: Estimate | None
    """Over binary tasks, with its interval over tasks."""
    pass_n: float | None
    """Mean of pass@n over the binary tasks that have n attempts, n the most of any: what tries again would gain."""
    mixed: float
    """Mean chance of a mixed group: the share of groups that would carry a gradient."""
    steps: float
    cost: float
    """Mean cost of an attempt."""


def question_digest(question: str) -> str:
    """What tells two questions apart in a profile: 16 hex digits of SHA-256."""
    return hashlib.sha256(question.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def profile_of(score: Score, group_size: int) -> Profile:
    """The profile that a score's attempts amount to."""
    by_task = defaultdict[str, list[Attempt]](list)
    for attempt in score.attempts:
        by_task[attempt.task_id].append(attempt)
    tasks = tuple(_task_profile(by_task[task_id], group_size) for task_id in sorted(by_task))
    return Profile(tasks, group_size, score.model, score.tasks)


def _task_profile(attempts: Sequence[Attempt], group_size: int) -> TaskProfile:
    first, total = attempts[0], len(attempts)
    rewards = [a.reward for a in attempts if a.reward is not None]
    n, binary = len(rewards), all(reward in (0.0, 1.0) for reward in rewards)
    right = int(sum(rewards)) if binary else 0
    mixed = mixed_probability(right, n, group_size) if binary else mixed_share(rewards, group_size)
    return TaskProfile(
        task_id=first.task_id,
        family=first.family,
        question=question_digest(first.question),
        n=n,
        excluded=total - n,
        binary=binary,
        mean=sum(rewards) / n if n else None,
        spread=stdev(rewards) if n > 1 else None,
        rate=wilson(right, n) if n and binary else None,
        pass_at={k: pass_at_k(n, right, k) for k in _ks(n)} if binary else {},
        mixed=mixed if n else None,
        steps=sum(a.n_steps for a in attempts) / total,
        tokens=sum(a.completion_tokens for a in attempts) / total,
        seconds=sum(a.seconds for a in attempts) / total,
        cost=sum(a.cost for a in attempts) / total,
    )


def _ks(n: int) -> list[int]:
    return sorted({2**i for i in range(n.bit_length())} | {n}) if n else []


def part_of(tasks: Sequence[TaskProfile]) -> Part:
    """What these tasks amount to together; there must be one."""
    graded = [task for task in tasks if task.mean is not None]
    counts = [(task.n, int(task.right)) for task in graded if task.binary]
    most = max((n for n, _ in counts), default=0)
    of_most = [pass_at_k(n, right, most) for n, right in counts if n == most]
    always, never = (sum(t.mean == end and not t.spread for t in graded) for end in (1.0, 0.0))
    return Part(
        n_tasks=len(tasks),
        always=always,
        sometimes=len(graded) - always - never,
        never=never,
        ungraded=len(tasks) - len(graded),
        mean=sum(task.mean or 0.0 for task in graded) / max(1, len(graded)),
        pass_1=mean_of_tasks(counts) if counts else None,
        pass_n=sum(of_most) / len(of_most) if of_most else None,
        mixed=sum(task.mixed or 0.0 for task in graded) / max(1, len(graded)),
        steps=sum(task.steps for task in tasks) / len(tasks),
        cost=sum(task.cost for task in tasks) / len(tasks),
    )


def parts_by_family(tasks: Sequence[TaskProfile]) -> Mapping[str, Part]:
    """By family, sorted; tasks without one are left out."""
    families = defaultdict[str, list[TaskProfile]](list)
    for task in tasks:
        if task.family:
            families[task.family].append(task)
    return {family: part_of(families[family]) for family in sorted(families)}
