"""Practice: the groups of rollouts that GRPO learns from."""

from __future__ import annotations

from collections.abc import Sequence

from nbagent.errors import UsageError
from nbagent.models.base import Model
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Group, Rollouts
from nbagent.runfolder import RunFolder
from nbagent.tasks import StepVerifier, Task, no_reward
from nbagent_training.curriculum import Curriculum
from nbagent_training.lineage import Lineage, practice_id


def check_rewards(tasks: Sequence[Task], grouping: str = "") -> None:
    """Refuse what could not be learned from; names the first such task.

    Args:
        tasks: what is to be trained on.
        grouping: the recipe's. `rollout` compares the steps of one attempt, which without rewards of their own all lead
            to nothing but the last: penalties for failed steps do not stand in for them (training/LOG.md: from 41.7 %
            to 11.5 % on tasks without).

    Raises:
        UsageError: a verifier's verdicts may not be training rewards, or it has no step rewards under `rollout`.
    """
    refused = [(task.task_id, why) for task in tasks if (why := no_reward(task))]
    if refused:
        more = f" ({len(refused)} such tasks)" if refused[1:] else ""
        raise UsageError(f"task {refused[0][0]} cannot be trained on{more}: {refused[0][1]}; leave it out")
    without = [task.task_id for task in tasks if not isinstance(task.verifier, StepVerifier)]
    if grouping == "rollout" and without:
        more = f" ({len(without)} such tasks)" if without[1:] else ""
        raise UsageError(
            f"grpo.grouping: rollout compares the rewards of single steps, and the verifier of task {without[0]} gives "
            f'none{more}; take grouping = "trajectory", or give it a method step_reward (nbagent.tasks.StepVerifier)'
        )


class Practice:
    """A RolloutSource over the training tasks, G rollouts of each; a curriculum says which tasks."""

    def __init__(
        self,
        curriculum: Curriculum,
        rollouts: Rollouts,
        model: Model,
        settings: RolloutSettings,
        run: RunFolder,
    ) -> None:
        """Raises UsageError: a task that may not be trained on."""
        check_rewards([task for tasks in curriculum.families.values() for task in tasks])
        self.curriculum = curriculum
        self.rollouts = rollouts
        self.model = model
        self.settings = settings
        self.run = run
        self.lineage = Lineage(run)
        self.group_size = curriculum.group_size

    def next_groups(self, n: int, version: int) -> list[Group]:
        """Roll out n tasks with the current weights. Infrastructure failures are left out of their group."""
        tasks = self.curriculum.tasks_of(n, version)
        members = range(self.group_size)
        jobs = [
            (task, practice_id(version, place, task.task_id, g)) for place, task in enumerate(tasks) for g in members
        ]
        made = self.lineage.play(
            jobs,
            version,
            lambda left: self.rollouts.run(left, self.model, self.settings, self.run, version=version),
        )
        groups = []
        for place, task in enumerate(tasks):
            group = made[place * self.group_size : (place + 1) * self.group_size]
            groups.append(
                Group(task, [t for t in group if t.reward is not None], failed=[t for t in group if t.reward is None])
            )
        self.curriculum.after(version, groups)
        return groups
