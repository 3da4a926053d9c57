"""Filters of tasks: which ones a profile says to train on, in a file that a training recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nbagent.errors import UsageError
from nbagent.reward_profile import Profile, TaskProfile, question_digest
from nbagent.runfolder import write_whole
from nbagent.tasks import Task

FILTER_FILE = "filter.json"


@dataclass(frozen=True, slots=True)
class Keep:
    """Which tasks are worth training on.

    Example:
        >>> str(Keep(rate=(0.0, 0.875)))
        '0 < rate <= 0.875'
    """

    mixed: float = 0.5
    """Keep tasks whose chance of a mixed group is at least this: half of their groups carry a gradient."""
    rate: tuple[float, float] | None = None
    """Keep tasks with low < mean reward <= high instead: (0, 0.875) of eight attempts drops what never and what always
    succeeds (Sun et al. 2025, arXiv 2510.11967)."""

    def takes(self, task: TaskProfile) -> bool:
        """True for a task that is kept; one that was never graded is not."""
        if task.mean is None or task.mixed is None:
            return False
        if self.rate is not None:
            return self.rate[0] < task.mean <= self.rate[1]
        return task.mixed >= self.mixed

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate[0]:g} < rate <= {self.rate[1]:g}"
        return f"mixed >= {self.mixed:g}"


@dataclass(frozen=True, slots=True)
class Profiled:
    """One task of a filter: which question it is, and how attempts at it went."""

    question: str
    """Digest of the question."""
    right: float
    """Sum of the rewards."""
    n: int
    """Graded attempts."""


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """The tasks to train on and those left out, with the counts that a curriculum starts from."""

    rule: str
    """e.g. `mixed >= 0.5`."""
    group_size: int
    """G that the rule's chance is about."""
    model: str
    """Whose attempts they were."""
    kept: dict[str, Profiled]
    left_out: dict[str, Profiled]
    set: dict[str, Any] = field(default_factory=dict)
    """Fingerprint of the set that was profiled."""

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises StorageError."""
        write_whole(path, _FILTER.dump_json(self, indent=1))

    def select(self, tasks: Sequence[Task], where: str = "the filter") -> list[Task]:
        """The tasks of a set that are kept, in the set's order; tasks that were not profiled are left out.

        Raises:
            UsageError: it keeps a task that the set does not have, or another question of that name; or it keeps none.
        """
        known = {task.task_id: question_digest(task.question) for task in tasks}
        unknown = [name for name in self.kept if name not in known]
        other = [name for name, it in self.kept.items() if name in known and known[name] != it.question]
        if unknown or other:
            raise UsageError(
                f"{where}: of the {len(self.kept)} tasks it keeps, {len(unknown)} are not among the {len(known)} of "
                f"this set and {len(other)} ask another question there (e.g. {(unknown + other)[0]}); profile this "
                "set, or name the set that was profiled"
            )
        chosen = [task for task in tasks if task.task_id in self.kept]
        if not chosen:
            raise UsageError(f"{where}: keeps no task ({self.rule}, {len(self.left_out)} left out); loosen the rule")
        return chosen

    def counts(self) -> Mapping[str, tuple[float, int]]:
        """(sum of rewards, attempts) of the kept tasks by id."""
        return {name: (it.right, it.n) for name, it in self.kept.items()}


_FILTER = TypeAdapter(TaskFilter)


def filter_of(profile: Profile, keep: Keep) -> TaskFilter:
    """The filter that a rule makes of a profile."""
    sides: dict[bool, dict[str, Profiled]] = {True: {}, False: {}}
    for task in profile.tasks:
        sides[keep.takes(task)][task.task_id] = Profiled(task.question, task.right, task.n)
    return TaskFilter(str(keep), profile.group_size, profile.model, sides[True], sides[False], profile.set)


def read_filter(path: Path) -> TaskFilter:
    """Read a filter. Raises UsageError: nothing is there, or it is no filter."""
    try:
        return _FILTER.validate_json(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"{path}: no such filter; give the {FILTER_FILE} that `nbagent profile` wrote") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: not a filter of tasks ({place + ': ' if place else ''}{first['msg']})") from None


def kept_filter(path: Path, run: Path) -> TaskFilter:
    """The filter of a training run, copied into its folder at first: a resumed run takes the tasks that it took.

    Raises UsageError: it is no filter.
    """
    copy = run / FILTER_FILE
    if not copy.exists():
        read_filter(path).write(copy)
    return read_filter(copy)
