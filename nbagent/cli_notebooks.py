"""`nbagent replay` and `nbagent exec`: attempts and notebooks, run again."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
    backend: Annotated[str, typer.Option(help="Where cells run again with --execute: fork or local.")] = "fork",
) -> None:
    """Write an attempt as a notebook that any Jupyter opens; with --execute, run it again and compare.

    Exit status 0: written, and with --execute every output came out the same; 1: some differ.

    Examples:

    [bold]nbagent replay runs/demo --rollout ID --out attempt.ipynb[/bold]

    [bold]nbagent replay runs/demo --rollout ID --out attempt.ipynb --execute[/bold]
    """
    raise NotImplementedError


def execute(
    notebook: Annotated[Path, typer.Argument(metavar="IN.ipynb", help="A notebook, nbformat 4.")],
    out: Annotated[Path, typer.Option(help="Notebook to write, with the new outputs.")],
    backend: Annotated[str, typer.Option(help="Where cells run: fork (Python, quick) or local (any kernel).")] = "local",
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Seconds one cell may run; none: no limit.")] = None,
) -> None:
    """Run any notebook in a kernel session and write it with its outputs.

    The kernel works in a private folder with a clean environment: no keys, no files but those it is given.

    Exit status 0: every cell ran; 1: a cell raised, ran out of time or took the kernel down.

    Example: [bold]nbagent exec analysis.ipynb --out done.ipynb --backend local --timeout 60[/bold]
    """
    raise NotImplementedError
