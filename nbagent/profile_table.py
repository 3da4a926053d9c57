"""A reward profile as tables for a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from nbagent.reward_profile import Part, Profile, TaskProfile, part_of, parts_by_family
from nbagent.score_table import how_intervals, interval, percent
from nbagent.task_filter import TaskFilter
from nbagent.terminal import foreign

LONGEST = 40
"""Tasks shown one by one; of more, only their families."""


def family_table(profile: Profile, kept: TaskFilter) -> Table:
    """One line a family, and one for all tasks."""
    whole = part_of(profile.tasks)
    names = "tasks", "kept", "mean\n%", "always", "some-\ntimes", "never", "pass@n\n%", f"mixed at\n{kept.group_size} %"
    table = _table(Text.assemble("Reward profile of ", foreign(profile.model or "a model", 50)), (*names, "steps"))
    table.caption = f"{len(kept.kept)} of {whole.n_tasks} tasks kept ({kept.rule}); pass@1 {interval(whole.pass_1)} %"
    table.caption += f", {how_intervals(whole.pass_1)}"
    if whole.ungraded:
        table.caption += f"; {whole.ungraded} tasks were not graded once"
    for family, part in parts_by_family(profile.tasks).items():
        n_kept = sum(task.task_id in kept.kept for task in profile.tasks if task.family == family)
        table.add_row(foreign(family, 28), *_cells(part, n_kept))
    table.add_section()
    table.add_row("all", *_cells(whole, len(kept.kept)), style="bold")
    return table


def task_table(profile: Profile, kept: TaskFilter) -> Table:
    """One line a task."""
    most = max((max(task.pass_at, default=0) for task in profile.tasks), default=0)
    priced = any(task.cost for task in profile.tasks)
    names = "n", "mean %\n[95 %]", "spread", f"pass@{most}\n%", f"mixed at\n{kept.group_size} %", "steps", "tokens"
    table = _table(Text("By task"), (*names, *(("cost",) if priced else ()), "kept"))
    table.caption = "Wilson's intervals; n: graded attempts; steps, tokens and cost are means of an attempt"
    for task in profile.tasks:
        cost = (f"{task.cost:.3g}",) if priced else ()
        mark = "✓" if task.task_id in kept.kept else "·"
        table.add_row(foreign(task.task_id, 24), *_task_cells(task, most), *cost, mark)
    return table


def _table(title: Text, names: tuple[str, ...]) -> Table:
    table = Table(title=title, caption_justify="left", title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    table.padding = 0, 0, 0, 1
    table.add_column("", min_width=8)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(part: Part, n_kept: int) -> list[str]:
    of_n = "–" if part.pass_n is None else percent(part.pass_n)
    counts = (part.n_tasks, n_kept, percent(part.mean), part.always, part.sometimes, part.never, of_n)
    return [*map(str, counts), percent(part.mixed), f"{part.steps:.1f}"]


def _task_cells(task: TaskProfile, most: int) -> list[str]:
    if task.mean is None or task.mixed is None:
        return ["0", "–", "–", "–", "–", f"{task.steps:.1f}", f"{task.tokens:.0f}"]
    mean = interval(task.rate, 0) if task.rate else percent(task.mean, 0)
    spread = "–" if task.spread is None else f"{task.spread:.2f}"
    passed = percent(task.pass_at[most], 0) if most in task.pass_at else "–"
    return [str(task.n), mean, spread, passed, percent(task.mixed, 0), f"{task.steps:.1f}", f"{task.tokens:.0f}"]
