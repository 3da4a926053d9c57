"""`nbagent replay` and `nbagent exec`: attempts and notebooks, run again."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nbagent.cli_options import BACKEND_HELP

if TYPE_CHECKING:
    from nbagent.execute_notebook import Report


class ReplayAs(StrEnum):
    """What a replayed notebook shows."""

    HISTORY = "history"
    FINAL = "final"


def replay(
    run: Annotated[Path, typer.Argument(help="A run folder, as --out of demo, train or score named it.")],
    rollout: Annotated[str, typer.Option(help="The attempt: a name in the run's rollouts/, without .jsonl.")],
    out: Annotated[Path, typer.Option(help="Notebook to write.")],
    as_: Annotated[
        ReplayAs, typer.Option("--as", help="history: every execution in order; final: the notebook at the end.")
    ] = ReplayAs.HISTORY,
    execute: Annotated[
        bool, typer.Option("--execute", help="Run it again in a fresh kernel and report which outputs differ.")
    ] = False,
    tasks: Annotated[
        str | None, typer.Option(help="The task set, where it is no longer where the run found it.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help=f"{BACKEND_HELP} Default: as in the run.")] = None,
) -> None:
    """Write an attempt as a notebook that any Jupyter opens; with --execute, run it again and compare.

    A log may come from anywhere: where it says that its cells ran as a user, with fork or local, and its model was not
    made by nbagent from nothing, name --backend to run them.

    Exit status 0: written, and with --execute every output came out the same; 1: some differ.

    Examples:

    [bold]nbagent replay runs/demo --rollout ID --out attempt.ipynb[/bold]

    [bold]nbagent replay runs/demo --rollout ID --out attempt.ipynb --execute[/bold]
    """
    import asyncio

    from nbagent.backends import not_covered
    from nbagent.replay import replay as replayed
    from nbagent.replay import rerun, rerun_backend
    from nbagent.runfolder import RunFolder

    folder = RunFolder.open(run)
    chosen = rerun_backend(folder, rollout, backend) if execute or backend is not None else ""
    replayed(folder, rollout, as_.value, out)
    print(out)
    if execute:
        print(not_covered(chosen), file=sys.stderr)
        report = asyncio.run(rerun(folder, rollout, as_.value, chosen, tasks))
        say(report, compared=True)
        if report.differences:
            raise typer.Exit(1)


def execute(
    notebook: Annotated[Path, typer.Argument(metavar="IN.ipynb", help="A notebook, nbformat 4.")],
    out: Annotated[Path, typer.Option(help="Notebook to write, with the new outputs.")],
    backend: Annotated[str | None, typer.Option(help=f"{BACKEND_HELP} Default: docker.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds one cell may run; none: no limit.")] = None,
    files: Annotated[Path | None, typer.Option(help="Folder of data files, copied into the working folder.")] = None,
    kernel: Annotated[
        str | None, typer.Option(help="Installed kernelspec; none: one of the notebook's language.")
    ] = None,
    allow_errors: Annotated[bool, typer.Option("--allow-errors", help="Go on after a cell that failed.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder to copy the files into that the notebook wrote or changed, 256 MiB at most."),
    ] = None,
) -> None:
    """Run any notebook in a kernel session and write it with its outputs.

    The kernel starts in a private folder that holds the content of --files and nothing else, with an environment
    that has no keys in it. A cell that fails ends the run, unless it is tagged raises-exception. What it writes goes
    with that folder, but for what --keep copies out: regular files, no links.

    Exit status 0: every cell ran; 1: a cell raised, ran out of time or took the kernel down.

    Examples:

    [bold]nbagent exec analysis.ipynb --out done.ipynb[/bold]

    [bold]nbagent exec analysis.ipynb --out done.ipynb --backend fork --files data --timeout 60[/bold]

    [bold]nbagent exec analysis.ipynb --out done.ipynb --files data --keep written[/bold]
    """
    from nbagent.backends import choose_backend, not_covered
    from nbagent.execute_notebook import exec_notebook

    chosen = choose_backend(backend, str(notebook), ours=False)
    print(not_covered(chosen), file=sys.stderr)
    report = exec_notebook(notebook, out, chosen, timeout, allow_errors, kernel, files, keep)
    say(report, compared=False)
    if keep is not None:
        print(f"{len(report.kept)} files kept in {keep}")
    print(out)
    if report.failed and not allow_errors:
        raise typer.Exit(1)


def say(report: Report, compared: bool) -> None:
    """Print what became of the cells: a line for each that failed or, where `compared`, differs; and one for all."""
    from nbagent.terminal import plain

    for cell in report.failed:
        print(plain(f"cell {cell.index + 1}: {cell.status} {cell.cause}".rstrip(), 300))
    if compared:
        for cell in report.differences:
            print(plain(f"cell {cell.index + 1}: other outputs: {cell.difference}", 300))
    parts = [f"{len(report.cells)} cells in {report.seconds:.1f} s", f"{len(report.failed)} failed"]
    if report.skipped:
        parts.append(f"{len(report.skipped)} not run")
    if compared:
        parts.append(f"{len(report.differences) or 'none'} with other outputs than before")
    print(", ".join(parts))
