"""`nbagent bixbench report` and `compare`: what a run amounts to, alone and beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nbagent_bixbench.policies import PolicyName

app = typer.Typer(add_completion=False)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or a file of result rows.")],
    zero_shot: Annotated[
        Path | None,
        typer.Option(help="Results of the same questions without data: they mark the questions that can be guessed."),
    ] = None,
) -> None:
    """Make a run's report from its result rows: tables here, bixbench.json, and bixbench.html with plots.

    Accuracy, coverage and precision with intervals, pass@k, majority votes, every rule of grading side by side, kinds
    of question, judge agreement, cost, random baselines and published scores with their conditions.

    Example: [bold]nbagent bixbench report runs/a --zero-shot runs/a-without-data[/bold]
    """
    from nbagent_bixbench.report import show_report, write_report

    show_report(write_report(run, zero_shot))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Run folders, or files of answers.")],
    policy: Annotated[
        PolicyName | None, typer.Option(help="Grade all by this rule first; default: as they are graded.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page with the performance profiles.")] = None,
) -> None:
    """Compare runs on the same questions: paired differences to the first, performance profiles and their area.

    A profile shows on which share of the questions a model needs at most τ times the attempts of the best model.

    Examples:

    [bold]nbagent bixbench compare runs/a runs/b[/bold]

    [bold]nbagent bixbench compare runs/a runs/b runs/c --policy tolerant --html profiles.html[/bold]
    """
    import json

    from rich.console import Console

    from nbagent.errors import UsageError
    from nbagent_bixbench.answer_files import read_answers
    from nbagent_bixbench.comparison import compare_runs
    from nbagent_bixbench.comparison_page import comparison_json, comparison_tables, write_comparison
    from nbagent_bixbench.regrade import regrade

    names = [run.name or str(run) for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    if len(set(names)) < 2:
        raise UsageError("compare: takes two different runs or more")
    results = {name: read_answers(run).results for name, run in zip(names, runs, strict=True)}
    if policy is not None:
        results = {name: regrade(rows, policy.value) for name, rows in results.items()}
    found = compare_runs(results)
    if html is not None:
        write_comparison(html, found)
    if as_json:
        print(json.dumps(comparison_json(found), indent=1))
        return
    console = Console()
    for table in comparison_tables(found):
        console.print(table)
    if html is not None:
        print(f"page: {html}")
