"""Two scores on the same tasks, compared as a paired difference."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from nbagent.errors import UsageError
from nbagent.score import Score
from nbagent.stats import PairedDifference, paired_difference


@dataclass(frozen=True, slots=True)
class Comparison:
    """After minus before, task by task."""

    before: str
    """Name of the first score."""
    after: str
    """Name of the second score."""
    overall: PairedDifference
    families: dict[str, PairedDifference]
    """By family, sorted."""
    n_left_out: int
    """Tasks that one of the two has no graded attempt of."""


def compare(before: Score, after: Score, *, seed: int = 0) -> Comparison:
    """Pair two scores by task id; a task's value is the share of its graded attempts that were right.

    Raises:
        UsageError: the two were made on different tasks, or no task was graded in both.
    """
    _same_tasks(before, after)
    was, now = before.by_task(), after.by_task()
    shared = sorted(was.keys() & now.keys())
    if not shared:
        raise UsageError(f"{_name(before)} and {_name(after)}: no task was graded in both; nothing to compare")
    families = defaultdict[str, list[str]](list)
    family_of = {attempt.task_id: attempt.family for attempt in after.attempts}
    for task in shared:
        if family_of[task]:
            families[family_of[task]].append(task)
    return Comparison(
        before=_name(before),
        after=_name(after),
        overall=_difference(was, now, shared, seed),
        families={family: _difference(was, now, families[family], seed) for family in sorted(families)},
        n_left_out=len({attempt.task_id for attempt in after.attempts}) - len(shared),
    )


def _difference(was: dict[str, float], now: dict[str, float], tasks: list[str], seed: int) -> PairedDifference:
    return paired_difference([was[task] for task in tasks], [now[task] for task in tasks], seed=seed)


def _name(score: Score) -> str:
    return score.name or score.model or "unnamed score"


def _same_tasks(before: Score, after: Score) -> None:
    first = {attempt.task_id: attempt.question for attempt in before.attempts}
    second = {attempt.task_id: attempt.question for attempt in after.attempts}
    if first.keys() != second.keys():
        only = [sorted(a.keys() - b.keys()) for a, b in ((first, second), (second, first))]
        parts = [
            f"{len(tasks)} only in {_name(score)} (e.g. {tasks[0]})"
            for tasks, score in zip(only, (before, after), strict=True)
            if tasks
        ]
        raise UsageError(f"the two scores are not on the same tasks: {', '.join(parts)}; score both on one set")
    other = [task for task in sorted(first) if first[task] != second[task]]
    if other:
        raise UsageError(
            f"the two scores are not on the same tasks: {len(other)} share an id but ask something else "
            f"(e.g. {other[0]}); score both on one set"
        )
