"""`nbagent bixbench validate` and `regrade`: what needs only answers that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nbagent_bixbench.policies import PolicyName

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


@app.command()
def regrade(
    file: Annotated[
        Path,
        typer.Argument(help="Result rows, a run folder, a published zero-shot CSV, or published trajectory JSON."),
    ],
    policy: Annotated[PolicyName, typer.Option(help="The rule to grade by.")] = PolicyName.STRICT,
    judge: Annotated[str | None, typer.Option(metavar="URL#MODEL", help="Who decides where a judge is needed.")] = None,
    judge_repeats: Annotated[int, typer.Option(min=1, help="Times a judge is asked about each answer.")] = 3,
    judge_cache: Annotated[Path | None, typer.Option(help="Folder of verdicts, to ask about nothing twice.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the regraded result rows to this file.")] = None,
) -> None:
    """Grade recorded answers again under another rule; nothing is asked of the agent.

    Where the rule needs a judge and none is named, the verdict recorded in the file counts; without one the row is
    ungraded: counted and left out. The endpoint's key is read from NBAGENT_API_KEY or OPENAI_API_KEY.

    Examples:

    [bold]nbagent bixbench regrade runs/a --policy tolerant[/bold]

    [bold]nbagent bixbench regrade openended.csv --policy official-zeroshot --json[/bold]

    [bold]nbagent bixbench regrade trajectories/ --policy official-agentic --judge http://localhost:8000/v1#judge[/bold]
    """
    import json

    from rich.console import Console

    from nbagent.errors import UsageError
    from nbagent.progress import progress_bar
    from nbagent_bixbench.answer_files import read_answers
    from nbagent_bixbench.judge import open_judge
    from nbagent_bixbench.regrade import regrade as graded_again
    from nbagent_bixbench.results import write_results
    from nbagent_bixbench.summary import summarize, summary_json
    from nbagent_bixbench.summary_table import summary_tables

    if out is not None and out.exists():
        raise UsageError(f"{out}: is there already; give a new file as --out")
    asked = open_judge(judge, judge_repeats, judge_cache) if judge else None
    answers = read_answers(file)
    if asked is None:
        results = graded_again(answers.results, policy.value)
    else:
        with progress_bar("answers", len(answers.results)) as advance:
            results = graded_again(answers.results, policy.value, asked, advance)
    if out is not None:
        write_results(out, results)
    summary = summarize(results)
    if as_json:
        print(json.dumps({"policy": policy.value, "file": answers.kind, **summary_json(summary)}, indent=1))
        return
    console = Console()
    for table in summary_tables(summary, f"{file.name} ({answers.kind})"):
        console.print(table)
