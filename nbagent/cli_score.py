"""`nbagent score` and `nbagent compare`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ActionFormatName(StrEnum):
    """How the model writes its actions."""

    HERMES = "hermes"
    FENCED = "fenced"
    NATIVE = "native"


AGENT, SAMPLING, ENDPOINT = "How the agent acts", "Sampling", "With an openai: model"


def score(
    tasks: Annotated[
        str, typer.Argument(help="A folder with BixBench.jsonl, or a CSV or JSONL of questions beside its data.")
    ],
    model: Annotated[str, typer.Option(help="A folder of a Hugging Face causal LM, or openai:URL#MODEL.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    n: Annotated[int, typer.Option(min=1, help="Attempts per task; more than one gives pass@k.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many tasks.")] = None,
    backend: Annotated[
        str | None, typer.Option(help="Where cells run: fork or local. To be named for models that are not ours.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Attempts under way at once; default: 8 with openai:, else 96.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; done attempts stay.")] = False,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the likeliest token.", rich_help_panel=SAMPLING)
    ] = False,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", min=0, help="Temperature; 0 is greedy.", rich_help_panel=SAMPLING)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of all sampling noise.", rich_help_panel=SAMPLING)] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens per model call; default: 1024.", rich_help_panel=AGENT)
    ] = None,
    action_format: Annotated[
        ActionFormatName | None,
        typer.Option("--format", help="How the model writes its actions; default: hermes.", rich_help_panel=AGENT),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="What the model sees of its past steps: drop (default), full, …", rich_help_panel=AGENT),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Model calls per attempt; default: 20.", rich_help_panel=AGENT)
    ] = None,
    cell_timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds one cell may run; default: 600.", rich_help_panel=AGENT)
    ] = None,
    context_length: Annotated[
        int, typer.Option(min=1, help="Tokens of prompt and answer together.", rich_help_panel=ENDPOINT)
    ] = 32_768,
    request_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds one request may take.", rich_help_panel=ENDPOINT)
    ] = 120.0,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="Price of a million prompt tokens.", rich_help_panel=ENDPOINT)
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="Price of a million completion tokens.", rich_help_panel=ENDPOINT)
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Stop before the calls cost more.", rich_help_panel=ENDPOINT)
    ] = None,
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

    from nbagent.agent import agent_beside
    from nbagent.backends import choose_backend, not_covered
    from nbagent.models.opening import is_ours, is_remote
    from nbagent.score_run import ScoreRecipe, score_command
    from nbagent.score_table import score_table

    agent = agent_beside(model)
    named: dict[str, object] = {
        "policy": policy,
        "policy_options": {} if policy is not None and policy != agent.policy else None,
        "action_format": action_format.value if action_format else None,
        "max_steps": max_steps,
        "max_new_tokens": max_new_tokens,
        "cell_timeout_s": cell_timeout,
        "backend": choose_backend(backend, model, is_ours(model)),
    }
    recipe = ScoreRecipe(
        tasks=tasks,
        model=model,
        n=n,
        limit=limit,
        temperature=0.0 if greedy else temperature,
        seed=seed,
        agent=agent.model_validate({**agent.model_dump(), **{k: v for k, v in named.items() if v is not None}}),
    )
    at_once = concurrency or (8 if is_remote(model) else 96)
    remote = {
        "context_length": context_length,
        "timeout_s": request_timeout,
        "concurrency": at_once,
        "price_in": price_in,
        "price_out": price_out,
        "max_cost": max_cost,
    }
    if not is_ours(model):
        print(not_covered(), file=sys.stderr)
    made = score_command(recipe, out, remote if is_remote(model) else {}, concurrency=at_once, resume=resume)
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
