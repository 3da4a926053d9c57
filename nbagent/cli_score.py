"""`nbagent score` and `nbagent compare`."""

from __future__ import annotations

import sys
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
    Greedy,
    Images,
    Limit,
    MaxCost,
    MaxNewTokens,
    MaxSteps,
    ModelName,
    Out,
    PriceIn,
    PriceOut,
    RequestTimeout,
    Resume,
    Seed,
    Temperature,
    Tokenizer,
)


def score(
    tasks: Annotated[
        str, typer.Argument(help="A folder with BixBench.jsonl, or a CSV or JSONL of questions beside its data.")
    ],
    model: ModelName,
    out: Out,
    n: Annotated[int, typer.Option(min=1, help="Attempts per task; more than one gives pass@k.")] = 1,
    limit: Limit = None,
    backend: Backend = None,
    concurrency: Concurrency = None,
    resume: Resume = False,
    greedy: Greedy = False,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = None,
    action_format: Format = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="What the model sees of its past steps: drop (default), window, summarize, full.",
            rich_help_panel=AGENT,
        ),
    ] = None,
    max_steps: MaxSteps = None,
    cell_timeout: CellTimeout = None,
    context_length: ContextLength = 32_768,
    tokenizer: Tokenizer = None,
    images: Images = None,
    request_timeout: RequestTimeout = 120.0,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    max_cost: MaxCost = None,
) -> None:
    """Score a model on a set of tasks: pass@1, pass@k and every outcome's share, with intervals.

    Prints a table overall and by family; writes every attempt's event log, score.json and report.html into --out.
    Ctrl-C or a full disk lose nothing: the same command with --resume goes on.

    Examples:

    [bold]nbagent score my-tasks --model my-model --backend fork --out runs/a[/bold]

    [bold]nbagent score my-tasks --model openai:http://localhost:8000/v1#qwen --format native --n 4
    --backend fork --out runs/b[/bold]

    A model that nbagent trained carries its agent's settings (agent.toml beside the weights): they are its defaults.

    The key of an endpoint is read from NBAGENT_API_KEY or OPENAI_API_KEY.
    """
    from rich.console import Console

    from nbagent.backends import choose_backend, not_covered
    from nbagent.cli_options import agent_of, at_once
    from nbagent.models.opening import is_ours, is_remote
    from nbagent.score_run import ScoreRecipe, score_command
    from nbagent.score_table import score_table

    agent = agent_of(
        model,
        {
            "policy": policy,
            "action_format": action_format.value if action_format else None,
            "max_steps": max_steps,
            "max_new_tokens": max_new_tokens,
            "cell_timeout_s": cell_timeout,
            "images": images,
            "backend": choose_backend(backend, model, is_ours(model)),
        },
    )
    recipe = ScoreRecipe(
        tasks=tasks,
        model=model,
        n=n,
        limit=limit,
        temperature=0.0 if greedy else temperature,
        seed=seed,
        agent=agent,
    )
    together = at_once(concurrency, is_remote(model))
    remote = {
        "context_length": context_length,
        "tokenizer": tokenizer,
        "timeout_s": request_timeout,
        "concurrency": together,
        "price_in": price_in,
        "price_out": price_out,
        "max_cost": max_cost,
    }
    if not is_ours(model):
        print(not_covered(), file=sys.stderr)
    made = score_command(recipe, out, remote if is_remote(model) else {}, concurrency=together, resume=resume)
    Console().print(score_table(made))
    print(f"score: {out / 'score.json'}\nreport: {out / 'report.html'}")


def compare(
    before: Annotated[Path, typer.Argument(help="A run folder with a score.json, or a score's JSON file.")],
    after: Annotated[Path, typer.Argument(help="Another, on the same tasks.")],
) -> None:
    """Compare two scores on the same tasks: the paired difference with its 95 % interval.

    Pairing takes the difficulty of the tasks out, so that smaller differences show.

    Examples:

    [bold]nbagent compare runs/a runs/b[/bold]

    [bold]nbagent compare runs/demo/scores/warm_greedy.json runs/demo/scores/grpo_greedy.json[/bold]
    """
    from rich.console import Console

    from nbagent.compare import compare as compared
    from nbagent.score import read_score
    from nbagent.score_table import comparison_table

    Console().print(comparison_table(compared(read_score(before), read_score(after))))
