"""Practice: the groups of rollouts that GRPO learns from."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from nbagent.models.base import Model
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Group, Rollouts
from nbagent.runfolder import RunFolder, rollout_id
from nbagent.tasks import Outcome, Task


class Practice:
    """A RolloutSource that goes through the training tasks in a seeded order, G rollouts of each.

    Which tasks an update takes depends on the seed and the update's number alone, so a resumed run takes the same.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        rollouts: Rollouts,
        model: Model,
        settings: RolloutSettings,
        run: RunFolder | None,
        *,
        group_size: int,
        seed: int,
        progress: Callable[[], None] | None = None,
    ) -> None:
        self.tasks = tasks
        self.rollouts = rollouts
        self.model = model
        self.settings = settings
        self.run = run
        self.group_size = group_size
        self.seed = seed
        self.progress = progress

    def tasks_of(self, n: int, version: int) -> list[Task]:
        """The n tasks of an update; families come in turn where tasks are ordered so."""
        chosen: list[Task] = []
        place = version * n
        while len(chosen) < n:
            epoch, offset = divmod(place + len(chosen), len(self.tasks))
            order = self._order(epoch)
            chosen.append(self.tasks[order[offset]])
        return chosen

    def _order(self, epoch: int) -> list[int]:
        """Families in turn within an epoch, each family's tasks shuffled."""
        rng = random.Random(f"{self.seed} epoch {epoch}")
        families: dict[str, list[int]] = {}
        for index, task in enumerate(self.tasks):
            families.setdefault(task.family, []).append(index)
        queues = list(families.values())
        for queue in queues:
            rng.shuffle(queue)
        order: list[int] = []
        while queues:
            order += [queue.pop() for queue in queues]
            queues = [queue for queue in queues if queue]
        return order

    def next_groups(self, n: int, version: int) -> list[Group]:
        """Roll out n tasks with the current weights. Infrastructure failures are left out of their group."""
        tasks = self.tasks_of(n, version)
        members = range(self.group_size)
        jobs = [(task, rollout_id("train", f"{version:05d}", task.task_id, g)) for task in tasks for g in members]
        made = self.rollouts.run(jobs, self.model, self.settings, self.run, version=version, progress=self.progress)
        groups = []
        for place, task in enumerate(tasks):
            group = made[place * self.group_size : (place + 1) * self.group_size]
            valid = [t for t in group if t.outcome not in (Outcome.INFRASTRUCTURE, Outcome.UNGRADED, None)]
            groups.append(Group(task, valid))
        return groups
