"""`nbagent bixbench`: check, run and score sets in BixBench's format."""

from __future__ import annotations

from typing import Annotated

import typer

from nbagent_bixbench import results_commands

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Load, run, grade and report BixBench and sets in its format."
)


app.add_typer(results_commands.app)


@app.callback()
def group() -> None:
    """Load, run, grade and report BixBench and sets in its format."""


@app.command()
def check(
    tasks: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder with BixBench.jsonl, or that file.")],
) -> None:
    """Read every row and unpack every capsule; the first problem is named by file and line."""
    from nbagent.tasks import open_tasks

    print(f"{len(open_tasks(tasks).tasks())} questions, no problems")
