"""`nbagent score` and `nbagent compare`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nbagent.cli_options import (
    AGENT,
    Artefacts,
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

if TYPE_CHECKING:
    from nbagent.score import Score


def score(
    tasks: Annotated[
        str, typer.Argument(help="A folder with BixBench.jsonl, or a CSV or JSONL of questions beside its data.")
    ],
    model: ModelName,
    out: Out,
    n: Annotated[int, typer.Option(min=1, help="Attempts per task; more than one gives pass@k.")] = 1,
    limit: Limit = None,
    backend: Backend = None,
    artefacts: Artefacts = 0.0,
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

    from nbagent.score_table import score_table

    made = scored(
        tasks,
        model,
        out,
        agent={
            "policy": policy,
            "action_format": action_format.value if action_format else None,
            "max_steps": max_steps,
            "max_new_tokens": max_new_tokens,
            "cell_timeout_s": cell_timeout,
            "images": images,
            "artefact_bytes": int(artefacts * 1e6) if artefacts else None,
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
        temperature=0.0 if greedy else temperature,
        seed=seed,
    )
    Console().print(score_table(made))
    print(f"score: {out / 'score.json'}\nreport: {out / 'report.html'}")


def scored(
    tasks: str,
    model: str,
    out: Path,
    *,
    agent: Mapping[str, Any],
    backend: str | None,
    concurrency: int | None,
    remote: Mapping[str, Any],
    resume: bool,
    **sampling: Any,
) -> Score:
    """Make a score of what was named on the command line, as `score` and `profile` do.

    Args:
        tasks: location of the set.
        model: a folder or an endpoint.
        out: the run folder.
        agent: settings of the agent; None where one was not named.
        backend: where cells run; None where it was not named.
        concurrency: attempts under way at once; None where it was not named.
        remote: settings of an endpoint, used for one only.
        resume: go on with the run in `out`.
        sampling: the rest of the ScoreRecipe.
    """
    from nbagent.backends import choose_backend, not_covered
    from nbagent.cli_options import agent_of, at_once
    from nbagent.models.opening import is_ours, is_remote
    from nbagent.score_run import ScoreRecipe, score_command

    chosen = choose_backend(backend, model, is_ours(model))
    acting = agent_of(model, {**agent, "backend": chosen})
    recipe = ScoreRecipe(tasks=tasks, model=model, agent=acting, **sampling)
    together = at_once(concurrency, is_remote(model))
    if not is_ours(model):
        print(not_covered(chosen), file=sys.stderr)
    settings = {**remote, "concurrency": together} if is_remote(model) else {}
    return score_command(recipe, out, settings, concurrency=together, resume=resume)


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
