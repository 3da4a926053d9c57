"""`nbagent bixbench validate`: what needs only a file of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def validate(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Files of result rows, or run folders.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a row and stop.")] = False,
) -> None:
    """Check files of results, ours or any agent's; every problem is a line with file and line number.

    Exit status 0: all is well; 1: there are problems.

    Example: [bold]nbagent bixbench validate results.jsonl[/bold]
    """
    from importlib.resources import files as package_files

    from nbagent.errors import UsageError
    from nbagent.terminal import plain
    from nbagent_bixbench.results import results_path
    from nbagent_bixbench.results_check import check_results

    if schema:
        print((package_files("nbagent_bixbench") / "result_schema.json").read_text(encoding="utf-8"), end="")
        return
    if not files:
        raise UsageError("validate: no file given; give files of results, or run folders")
    n_results = n_problems = 0
    for file in files:
        results, problems = check_results(results_path(file))
        n_results, n_problems = n_results + len(results), n_problems + len(problems)
        for problem in problems:
            print(plain(str(problem)))
    print(f"{n_results} results, {n_problems or 'no'} problem{'' if n_problems == 1 else 's'}")
    if n_problems:
        raise typer.Exit(1)
