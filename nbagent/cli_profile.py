"""`nbagent profile`: which tasks a model could learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nbagent.cli_options import (
    AGENT,
    Backend,
    CellTimeout,
    Concurrency,
    ContextLength,
    Format,
    Limit,
    MaxCost,
    MaxNewTokens,
    MaxSteps,
    ModelName,
    PriceIn,
    PriceOut,
    RequestTimeout,
    Resume,
    Seed,
    Temperature,
    Tokenizer,
)
from nbagent.cli_score import scored

CHOICE = "Which tasks to keep"


def profile(
    tasks: Annotated[str, typer.Argument(help="The tasks to train on: any location that `nbagent score` takes.")],
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="Run folder to make.")] = Path("runs/profile"),
    n: Annotated[int, typer.Option(min=2, help="Attempts per task.")] = 8,
    group_size: Annotated[
        int, typer.Option(min=2, help="G: rollouts per task in training.", rich_help_panel=CHOICE)
    ] = 8,
    mixed: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Keep tasks whose chance of a mixed group is at least this.", rich_help_panel=CHOICE
        ),
    ] = 0.5,
    rate: Annotated[
        str | None,
        typer.Option(
            help="LOW:HIGH; keep tasks with LOW < mean reward <= HIGH instead, e.g. 0:0.875.",
            rich_help_panel=CHOICE,
            show_default=False,
        ),
    ] = None,
    limit: Limit = None,
    backend: Backend = None,
    concurrency: Concurrency = None,
    resume: Resume = False,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = None,
    action_format: Format = None,
    policy: Annotated[
        str | None,
        typer.Option(help="What the model sees of its past steps; see `nbagent score`.", rich_help_panel=AGENT),
    ] = None,
    max_steps: MaxSteps = None,
    cell_timeout: CellTimeout = None,
    context_length: ContextLength = 32_768,
    tokenizer: Tokenizer = None,
    request_timeout: RequestTimeout = 120.0,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    max_cost: MaxCost = None,
) -> None:
    """Profile a model's rewards: which tasks it could learn from, as a filter that a training recipe takes.

    Attempts every task n times, as `nbagent score` does and into the same kind of run folder, and says per task the
    mean reward with its interval, the spread, pass@k, the chance that a group of G rollouts is mixed, steps and cost.
    Writes profile.json, profile.csv, profile.html and filter.json; a recipe takes the last as [tasks] filter.
    Ctrl-C loses nothing; --resume goes on, and with other --group-size, --mixed or --rate it only chooses again.

    Example:

    [bold]nbagent profile my-tasks --model my-model --backend fork --n 8 --out runs/profile[/bold]
    """
    from rich.console import Console

    from nbagent.profile_table import LONGEST, family_table, task_table
    from nbagent.report.profile_page import build_profile_page
    from nbagent.reward_profile import PROFILE_FILE, profile_of
    from nbagent.task_filter import FILTER_FILE, Keep, filter_of

    keep = Keep(mixed, _rate(rate))
    score = scored(
        tasks,
        model,
        out,
        agent={
            "policy": policy,
            "action_format": action_format.value if action_format else None,
            "max_steps": max_steps,
            "max_new_tokens": max_new_tokens,
            "cell_timeout_s": cell_timeout,
        },
        backend=backend,
        concurrency=concurrency,
        remote={
            "context_length": context_length,
            "tokenizer": tokenizer,
            "timeout_s": request_timeout,
            "price_in": price_in,
            "price_out": price_out,
            "max_cost": max_cost,
        },
        resume=resume,
        n=n,
        limit=limit,
        temperature=temperature,
        seed=seed,
    )
    made = profile_of(score, group_size)
    chosen = filter_of(made, keep)
    made.write(out)
    chosen.write(out / FILTER_FILE)
    page = build_profile_page(made, chosen, out)
    console = Console()
    if len(made.tasks) <= LONGEST:
        console.print(task_table(made, chosen))
    console.print(family_table(made, chosen))
    print(f"profile: {out / PROFILE_FILE}\npage: {page}\nfilter: {out / FILTER_FILE}")


def _rate(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, _, high = text.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (1.0, 0.0)
    if not ends[0] < ends[1]:
        raise typer.BadParameter(f"{text!r} is not LOW:HIGH, e.g. 0:0.875", param_hint="--rate")
    return ends
