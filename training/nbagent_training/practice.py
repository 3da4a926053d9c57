"""Practice: the groups of rollouts that GRPO learns from."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from nbagent.errors import UsageError
from nbagent.models.base import Model
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Group, Rollouts
from nbagent.runfolder import RunFolder, rollout_id
from nbagent.tasks import Outcome, Task, no_reward

Curriculum = Literal["uniform", "uncertain"]
MEMORY = 0.5
"""Weight of the newest group in a family's running success rate."""
LEAST = 0.1
"""Smallest weight of a family: one that seems mastered or hopeless is still visited now and then."""


def check_rewards(tasks: Sequence[Task]) -> None:
    """Raises UsageError where a verifier's verdicts may not be training rewards; names the first such task."""
    refused = [(task.task_id, why) for task in tasks if (why := no_reward(task))]
    if refused:
        more = f" ({len(refused)} such tasks)" if refused[1:] else ""
        raise UsageError(f"task {refused[0][0]} cannot be trained on{more}: {refused[0][1]}; leave it out")


class Practice:
    """A RolloutSource over the training tasks, G rollouts of each.

    Curriculum `uniform` takes every family equally often. `uncertain` takes family f in proportion to
    max(sqrt(p_f (1 - p_f)), 0.1), the deviation of its success rate p_f: groups that are all right or all wrong carry
    no gradient. Which tasks an update takes depends on the seed, the update's number and the rates alone; the rates are
    kept in the run folder, so a resumed run takes the same.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        rollouts: Rollouts,
        model: Model,
        settings: RolloutSettings,
        run: RunFolder,
        *,
        group_size: int,
        seed: int,
        curriculum: Curriculum = "uniform",
    ) -> None:
        """Raises UsageError: a task that may not be trained on."""
        check_rewards(tasks)
        self.rollouts = rollouts
        self.model = model
        self.settings = settings
        self.run = run
        self.group_size = group_size
        self.seed = seed
        self.curriculum = curriculum
        self.families: dict[str, list[Task]] = {}
        for task in tasks:
            self.families.setdefault(task.family, []).append(task)
        self._rates = _Rates(run.path / "practice.json", sorted(self.families))

    def tasks_of(self, n: int, version: int) -> list[Task]:
        """The n tasks of an update: families by systematic sampling of their weights, tasks at random in each."""
        rng = random.Random(f"{self.seed} update {version}")
        names = sorted(self.families)
        rng.shuffle(names)
        rates = self._rates.before(version)
        weights = [1.0 if self.curriculum == "uniform" else _uncertainty(rates[name]) for name in names]
        step = sum(weights) / n
        mark, chosen = rng.random() * step, list[Task]()
        reached = 0.0
        for name, weight in zip(names, weights, strict=True):
            reached += weight
            count = 0
            while mark < reached and len(chosen) + count < n:
                count, mark = count + 1, mark + step
            tasks = self.families[name]
            chosen += rng.sample(tasks, count) if count <= len(tasks) else rng.choices(tasks, k=count)
        # Rounding may leave the last mark just behind the end.
        while len(chosen) < n:
            chosen.append(rng.choice(self.families[names[-1]]))
        return chosen

    def next_groups(self, n: int, version: int) -> list[Group]:
        """Roll out n tasks with the current weights. Infrastructure failures are left out of their group."""
        tasks = self.tasks_of(n, version)
        members = range(self.group_size)
        jobs = [
            (task, rollout_id("train", f"{version:05d}", place, task.task_id, g))
            for place, task in enumerate(tasks)
            for g in members
        ]
        made = self.rollouts.run(jobs, self.model, self.settings, self.run, version=version)
        groups = []
        for place, task in enumerate(tasks):
            group = made[place * self.group_size : (place + 1) * self.group_size]
            valid = [t for t in group if t.outcome not in (Outcome.INFRASTRUCTURE, Outcome.UNGRADED, None)]
            groups.append(Group(task, valid))
        self._rates.after(version, groups)
        return groups


def _uncertainty(rate: float) -> float:
    return max(math.sqrt(rate * (1 - rate)), LEAST)


class _Rates:
    """Running success rates of families, one line of history an update, in a file."""

    def __init__(self, path: Path, families: Sequence[str]) -> None:
        self._path = path
        self._first = dict.fromkeys(families, 0.5)
        self._history: list[dict[str, float]] = json.loads(path.read_text()) if path.exists() else []

    def before(self, version: int) -> dict[str, float]:
        """Rates known before an update; those of later ones, which a resumed run makes again, are forgotten."""
        del self._history[version:]
        return self._history[-1] if self._history else self._first

    def after(self, version: int, groups: Sequence[Group]) -> None:
        """Take in an update's groups."""
        rates = dict(self.before(version))
        for group in groups:
            rewards = [t.reward or 0.0 for t in group.trajectories]
            if rewards:
                mean = sum(rewards) / len(rewards)
                rates[group.task.family] += MEMORY * (mean - rates[group.task.family])
        self._history.append(rates)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self._history))
        part.replace(self._path)
