"""The curriculum: which tasks an update practises, from how practice has gone so far. No torch.

Groups that are all right or all wrong carry no gradient, so tasks whose outcome is uncertain are worth more rollouts.
`uniform` takes every family equally often. `uncertain` takes family f in proportion to max(sqrt(p_f (1 - p_f)), 0.1),
the deviation of its running success rate p_f. `mixed` looks at every task by itself: it is taken in proportion to the
chance that its group is mixed, from its own discounted counts with its family's rate as the prior. What a profile
counted (`nbagent profile`) is where the counts begin.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from nbagent.errors import RunFolderError
from nbagent.reward_profile import mixed_probability
from nbagent.rollouts import Group
from nbagent.runfolder import write_whole
from nbagent.tasks import Task

Rule = Literal["uniform", "uncertain", "mixed"]
MEMORY = 0.5
"""Weight of the newest group in a family's running success rate; what a task's older counts keep at its next visit."""
LEAST = 0.1
"""Smallest weight: what seems mastered or hopeless is still visited now and then."""
_BROUGHT = TypeAdapter(list[tuple[int, list[tuple[str, str, float, int]]]])


class Curriculum:
    """Chooses the tasks of updates.

    Which ones depends on the seed, the update's number and what earlier updates brought alone; that is kept in a file,
    so a resumed run takes the same.
    """

    def __init__(
        self,
        path: Path,
        tasks: Sequence[Task],
        *,
        seed: int,
        rule: Rule = "uniform",
        group_size: int = 8,
        start: Mapping[str, tuple[float, int]] | None = None,
    ) -> None:
        """Go on from `path`, where it is there.

        Args:
            path: the file that keeps what updates brought.
            tasks: what is practised.
            seed: of the choice.
            rule: how tasks are weighed.
            group_size: rollouts of a task.
            start: (sum of rewards, attempts) by task id, from a profile.

        Raises:
            RunFolderError: the file is damaged.
        """
        self.seed, self.rule, self.group_size = seed, rule, group_size
        self.families: dict[str, list[Task]] = {}
        for task in tasks:
            self.families.setdefault(task.family, []).append(task)
        self._path = path
        self._start = dict(start or {})
        self._brought: dict[int, list[tuple[str, str, float, int]]] = {}
        if path.exists():
            try:
                self._brought = dict(_BROUGHT.validate_json(path.read_bytes()))
            except ValidationError as error:
                why = error.errors(include_url=False)[0]["msg"]
                raise RunFolderError(
                    f"{path}: is damaged ({why}); put a whole one there, or remove it, and the curriculum counts anew"
                ) from None

    def tasks_of(self, n: int, version: int) -> list[Task]:
        """The n tasks of an update."""
        rng = random.Random(f"{self.seed} update {version}")
        return self._by_task(n, version, rng) if self.rule == "mixed" else self._by_family(n, version, rng)

    def _by_task(self, n: int, version: int, rng: random.Random) -> list[Task]:
        """Weighted sampling without replacement: Efraimidis and Spirakis, Inf. Process. Lett. 97 (2006) 181–185."""
        tasks = [task for name in sorted(self.families) for task in self.families[name]]
        chances = self.mixed_chances(version)
        chosen: list[Task] = []
        while len(chosen) < n:
            keys = {id(task): rng.random() ** (1 / max(chances[task.task_id], LEAST)) for task in tasks}
            chosen += sorted(tasks, key=lambda task: -keys[id(task)])[: n - len(chosen)]
        return chosen

    def _by_family(self, n: int, version: int, rng: random.Random) -> list[Task]:
        """Families by systematic sampling of their weights, tasks at random in each."""
        names = sorted(self.families)
        rng.shuffle(names)
        rates = self.family_rates(version)
        weights = [1.0 if self.rule == "uniform" else max(sqrt(rates[f] * (1 - rates[f])), LEAST) for f in names]
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

    def family_rates(self, version: int) -> dict[str, float]:
        """Running success rates of families before an update; 0.5, or the profile's, before any."""
        rates = {}
        for name, tasks in self.families.items():
            counts = [self._start[task.task_id] for task in tasks if task.task_id in self._start]
            n = sum(tried for _, tried in counts)
            rates[name] = sum(right for right, _ in counts) / n if n else 0.5
        for _, family, right, n in self._before(version):
            if family in rates:
                rates[family] += MEMORY * (right / n - rates[family])
        return rates

    def mixed_chances(self, version: int) -> dict[str, float]:
        """Chance that a task's group would be mixed, by task id, before an update."""
        counts: dict[str, tuple[float, float]] = {name: (right, n) for name, (right, n) in self._start.items()}
        for task_id, _, right, n in self._before(version):
            old_right, old_n = counts.get(task_id, (0.0, 0.0))
            counts[task_id] = MEMORY * old_right + right, MEMORY * old_n + n
        rates = self.family_rates(version)
        return {
            task.task_id: mixed_probability(
                *counts.get(task.task_id, (0.0, 0.0)), self.group_size, min(max(rates[family], 0.05), 0.95)
            )
            for family, tasks in self.families.items()
            for task in tasks
        }

    def _before(self, version: int) -> list[tuple[str, str, float, int]]:
        """What updates before this one brought; those of later ones, which a resumed run makes again, are left out."""
        return [group for known in sorted(self._brought) if known < version for group in self._brought[known]]

    def after(self, version: int, groups: Sequence[Group]) -> None:
        """Take in an update's groups, as (task id, family, sum of rewards, graded rollouts). Raises StorageError."""
        self._brought[version] = [
            (group.task.task_id, group.task.family, sum(t.reward or 0.0 for t in group.trajectories), n)
            for group in groups
            if (n := len(group.trajectories))
        ]
        write_whole(self._path, json.dumps(sorted(self._brought.items())))
