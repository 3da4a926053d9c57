"""`nbagent tasks`: make, check and look at sets of tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from nbagent.errors import UsageError
from nbagent.tasks import Outcome, Task, TaskSource, open_tasks

app = typer.Typer(no_args_is_help=True, help="Make, check and look at sets of tasks.")


@app.command()
def make(
    out: Annotated[Path, typer.Argument(help="New folder for the set.")],
    n: Annotated[int, typer.Option("--n", help="Number of tasks.")] = 60,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    families: Annotated[
        str | None, typer.Option(help="Families, separated by commas; all of them if left out.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or heldout; they share no task.")] = "train",
    flawed: Annotated[float, typer.Option(help="Share of notebooks that show a usual mistake.")] = 0.0,
) -> None:
    """Draw tasks from a seed and write them in BixBench's own format."""
    from nbagent_bixbench.make import make_tasks

    chosen = [name.strip() for name in families.split(",") if name.strip()] if families else None
    console = Console()
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        drawing = bar.add_task("drawing tasks", total=n)
        make_tasks(out, n, seed, chosen, split, lambda done: bar.advance(drawing, done), flawed)
    console.print(f"{n} tasks in {escape(str(out))}", highlight=False, soft_wrap=True)


@app.command("list-families")
def list_families() -> None:
    """Families of questions that `make` can draw."""
    from nbagent_bixbench.families import FAMILIES

    table = Table("family", "data", "", "question")
    for family in sorted(FAMILIES.values(), key=lambda family: (family.kind.real, family.kind.name)):
        table.add_row(family.name, family.kind.name, "real" if family.kind.real else "drawn", escape(family.about))
    Console().print(table)


@app.command()
def check(location: Annotated[str, typer.Argument(help="Folder or file of tasks.")]) -> None:
    """Load a set, unpack every capsule, and grade every key against itself."""
    source = open_tasks(location)
    tasks = source.tasks()
    for task in tasks:
        _check_key(task)
    families = Counter(task.family or "-" for task in tasks)
    table = Table("family", "tasks", title=f"{escape(source.name)}: {len(tasks)} tasks")
    for name, count in sorted(families.items()):
        table.add_row(escape(name), str(count))
    console = Console()
    console.print(table)
    lacking = sum(task.reference is None for task in tasks)
    console.print(f"all capsules unpack, all keys grade; {lacking} tasks have no reference notebook", highlight=False)


@app.command()
def show(
    location: Annotated[str, typer.Argument(help="Folder or file of tasks.")],
    task_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One task; a list if left out.")] = None,
) -> None:
    """List a set's questions, or show one with its files and its key."""
    source = open_tasks(location)
    if task_id is None:
        _list(source)
        return
    task = _find(source.tasks(), task_id, location)
    console = Console()
    lines = [
        ("task", task.task_id),
        ("question", task.question),
        ("family", task.family or "-"),
        ("language", task.language),
        ("files", ", ".join(_files(task.capsule))),
        ("key", task.key),
        ("reference", task.reference.name if task.reference else "-"),
    ]
    for name, value in lines:
        console.print(f"[bold]{name:<10}[/bold]{escape(value)}", highlight=False, soft_wrap=True)


def _list(source: TaskSource) -> None:
    table = Table("task", "family", "question", title=escape(source.name))
    for task in source.tasks():
        table.add_row(escape(task.task_id), escape(task.family), escape(task.question))
    Console().print(table)


def _find(tasks: Sequence[Task], task_id: str, location: str) -> Task:
    for task in tasks:
        if task.task_id.lower() == task_id.lower():
            return task
    raise UsageError(f"{location}: has no task {task_id!r}; `nbagent tasks show {location}` lists them")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _check_key(task: Task) -> None:
    key = task.key.strip()
    if key.startswith("(") and key.endswith(")") and "," in key:
        key = key[1:-1].split(",")[0].strip()
    verdict = task.verifier.verify(key)
    if verdict.outcome not in (Outcome.CORRECT, Outcome.UNGRADED):
        raise UsageError(f"{task.task_id}: its own key {task.key!r} is graded {verdict.outcome}: {verdict.reason}")
