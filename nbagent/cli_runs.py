"""`nbagent report` and `nbagent validate`: look at what a run left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, as --out of demo, train or score named it.")],
) -> None:
    """Make a run's report.html again from what its folder holds.

    The page is one file with no script and nothing to load; it links to the run's notebooks.

    Example: [bold]nbagent report runs/demo[/bold]
    """
    from nbagent.report import build_report

    print(build_report(run))


def validate(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or single event logs (rollouts/ID.jsonl).")],
) -> None:
    """Check event logs against their schema and their blobs; every problem is a line with file and line number.

    Exit status 0: all is well; 1: there are problems.

    Example: [bold]nbagent validate runs/demo[/bold]
    """
    from nbagent.terminal import plain
    from nbagent.validation import problems

    found = n_logs = 0
    for run in runs:
        for log in logs_of(run):
            n_logs += 1
            for problem in problems(log):
                found += 1
                print(plain(str(problem)))
    print(f"{n_logs} event logs, {found or 'no'} problem{'' if found == 1 else 's'}")
    if found:
        raise typer.Exit(1)


def logs_of(path: Path) -> list[Path]:
    """The event logs of a run folder, or the log itself.

    Raises:
        RunFolderError: neither is there.
    """
    from nbagent.runfolder import RunFolder

    if path.is_file():
        return [path]
    run = RunFolder.open(path)
    return [run.rollout_path(rollout) for rollout in run.rollout_ids()]
