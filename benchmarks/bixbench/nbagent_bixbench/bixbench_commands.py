"""`nbagent bixbench`: check, run and score sets in BixBench's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nbagent_bixbench import report_commands, results_commands, run_commands

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Load, run, grade and report BixBench and sets in its format."
)


app.add_typer(run_commands.app)
app.add_typer(results_commands.app)
app.add_typer(report_commands.app)


@app.callback()
def group() -> None:
    """Load, run, grade and report BixBench and sets in its format."""


@app.command()
def check(
    tasks: Annotated[
        str, typer.Argument(help="A folder or file of rows, or OWNER/NAME\\[@REVISION] on the Hugging Face hub.")
    ],
    notes: Annotated[bool, typer.Option("--notes", help="Also print what is odd but read all the same.")] = False,
    capsules: Annotated[bool, typer.Option(help="Fetch and unpack every capsule.")] = True,
    cache: Annotated[Path | None, typer.Option(help="Where unpacked capsules are kept.")] = None,
) -> None:
    """Read every row and unpack every capsule; every problem is a line with file and line number.

    Checked are each field, each key against its own grading, each zip (paths, links, size) and that nothing that may
    hold answers is among the data. Exit status 0: all is well; 1: there are problems.

    Examples:

    [bold]nbagent bixbench check my-tasks[/bold]

    [bold]nbagent bixbench check futurehouse/BixBench --no-capsules[/bold]
    """
    from nbagent.errors import UsageError
    from nbagent.progress import progress_bar
    from nbagent.terminal import plain
    from nbagent_bixbench.check import check_capsules, check_rows, summary_of
    from nbagent_bixbench.source import capsule_cache, locate

    located = locate(tasks)
    if located is None:
        raise UsageError(f"{tasks}: no set in BixBench's format; `nbagent tasks check` looks at questions of one's own")
    found = check_rows(located.rows)
    if capsules:
        source = located.open(cache or capsule_cache(), found.rows)
        with progress_bar("capsules", len({row.data_folder for row in found.rows})) as advance:
            found = check_capsules(source, found, advance)
    for problem in found.problems:
        print(plain(str(problem)))
    for note in found.notes if notes else ():
        print(plain(f"note: {note}"))
    n, odd = len(found.problems), len(found.notes)
    more = f", {odd} note{'' if odd == 1 else 's'}{'' if notes else ' (--notes)'}" if odd else ""
    print(f"{summary_of(found)}, {n or 'no'} problem{'' if n == 1 else 's'}{more}")
    if n:
        raise typer.Exit(1)
