"""Practice with branched rollouts: the groups of grouping `branch`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nbagent.branches import Branches, BranchRules
from nbagent.models.base import Model
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Group, Rollouts
from nbagent.runfolder import RunFolder
from nbagent.tasks import Task
from nbagent.trajectory import Trajectory
from nbagent_training.branch_settings import Branch
from nbagent_training.curriculum import Curriculum
from nbagent_training.groups import TrainingRow
from nbagent_training.lineage import Job, Lineage, practice_id
from nbagent_training.practice import Practice


class TreeLineage(Lineage):
    """Which weights made which rollouts, where a root has ended only with all that was branched from it.

    Of a tree that was cut off the shorter attempts had ended; it is made anew as a whole.

    Attributes:
        torn: by version, rollouts that were set aside since their tree was cut off.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run)
        self.torn: Counter[int] = Counter()

    def ended(self, name: str) -> Trajectory | None:
        """A root of a tree that an earlier life of the run finished; None where any of it was cut off."""
        if any(self.run.ended(branch) is None for branch in self.branches(name)):
            return None
        return super().ended(name)

    def branches(self, root: str) -> list[str]:
        """Ids of what was branched from a root."""
        return sorted(path.stem for path in self.run.rollouts.glob(f"{root}+*.jsonl"))

    def made(self, version: int, rows: Sequence[TrainingRow]) -> int:
        """Name the weights that this update's rows lead to; how many rollouts were set aside. Raises StorageError."""
        return super().made(version, rows) + self.torn.pop(version, 0)


class BranchPractice(Practice):
    """A RolloutSource over the training tasks: a few root rollouts of each, and what is branched from them."""

    def __init__(
        self,
        curriculum: Curriculum,
        rollouts: Rollouts,
        model: Model,
        settings: RolloutSettings,
        run: RunFolder,
        branch: Branch,
    ) -> None:
        """Raises UsageError: a task that may not be trained on."""
        super().__init__(curriculum, rollouts, model, settings, run)
        self.trees = TreeLineage(run)
        self.lineage = self.trees
        self.roots = branch.roots_of(self.group_size)
        calls = branch.calls_of(self.group_size, settings.limits.max_steps)
        # Each root has its share, not what others leave: else what becomes of one would hang on how fast others are.
        self.rules = BranchRules(
            branch.where,
            branch.alternatives,
            attempts=self.group_size // self.roots,
            calls=calls // self.roots,
            probability=branch.probability,
            entropy_weight=branch.entropy_weight,
            per_lineage=branch.per_lineage,
        )

    def next_groups(self, n: int, version: int) -> list[Group]:
        """Roll out n tasks with the current weights; a group's `counts` are those of Branches."""
        tasks = self.curriculum.tasks_of(n, version)
        names = [
            [practice_id(version, place, task.task_id, root) for root in range(self.roots)]
            for place, task in enumerate(tasks)
        ]
        trees = {name: Branches(self.rules) for own in names for name in own}

        def make(left: Sequence[Job]) -> Sequence[Trajectory]:
            return self.rollouts.run(left, self.model, self.settings, self.run, version=version, branches=trees)

        jobs = [(task, name) for task, own in zip(tasks, names, strict=True) for name in own]
        made = dict(zip(trees, self.lineage.play(jobs, version, make), strict=True))
        self.trees.torn[version] += sum(tree.set_aside for tree in trees.values())
        groups = [self._group(task, own, made, trees) for task, own in zip(tasks, names, strict=True)]
        self.curriculum.after(version, groups)
        return groups

    def _group(
        self, task: Task, names: Sequence[str], made: dict[str, Trajectory], trees: dict[str, Branches]
    ) -> Group:
        """Roots, each followed by its branches; those of a tree that was read back are read back too."""
        attempts: list[Trajectory] = []
        counts: Counter[str] = Counter()
        for name in names:
            attempts.append(made[name])
            known = {branch.rollout_id: branch for branch in trees[name].trajectories}
            attempts += [known.get(branch) or self.run.load(branch) for branch in self.trees.branches(name)]
            counts.update(trees[name].counts)
        return Group(
            task,
            [t for t in attempts if t.reward is not None],
            failed=[t for t in attempts if t.reward is None],
            counts={name: float(count) for name, count in counts.items()},
        )
