"""`nbagent bixbench run` and `nbagent bixbench zero-shot`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

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
from nbagent_bixbench.policies import PolicyName

app = typer.Typer(add_completion=False)


class ModeName(StrEnum):
    """How a question is asked."""

    OPEN = "open"
    MCQ = "mcq"
    MCQ_REFUSAL = "mcq_refusal"
    HYPOTHESIS = "hypothesis"


class ChoiceName(StrEnum):
    """When a choice is made."""

    DIRECT = "direct"
    POSTHOC = "posthoc"


class LanguageName(StrEnum):
    """Languages of kernels."""

    PYTHON = "python"
    R = "r"


GRADING = "Grading"

Tasks = Annotated[
    str,
    typer.Argument(help="A folder or file of rows, OWNER/NAME\\[@REVISION] on the Hugging Face hub, or bundled:SPLIT."),
]
Mode = Annotated[
    ModeName,
    typer.Option("--mode", help="Open answer; one of four options; one of five, with a refusal; true or false."),
]
Replicas = Annotated[int, typer.Option("--replicas", min=1, help="Attempts per question.")]
Policy = Annotated[PolicyName, typer.Option("--policy", help="Grading policy.", rich_help_panel=GRADING)]
JudgeName = Annotated[
    str,
    typer.Option(
        "--judge",
        metavar="URL#MODEL",
        help="Decides on free text; without it that is ungraded.",
        rich_help_panel=GRADING,
    ),
]
Cache = Annotated[Path | None, typer.Option("--cache", help="Where unpacked capsules are kept.")]


@app.command()
def run(
    tasks: Tasks,
    model: ModelName,
    out: Out,
    mode: Mode = ModeName.OPEN,
    replicas: Replicas = 5,
    limit: Limit = None,
    backend: Backend = None,
    artefacts: Artefacts = 0.0,
    concurrency: Concurrency = None,
    resume: Resume = False,
    cache: Cache = None,
    policy: Policy = PolicyName.STRICT,
    judge: JudgeName = "",
    mcq: Annotated[
        ChoiceName,
        typer.Option(
            help="direct: the agent sees the options; posthoc: a second model reads its notebook and picks.",
            rich_help_panel=GRADING,
        ),
    ] = ChoiceName.DIRECT,
    mcq_model: Annotated[
        str, typer.Option(metavar="URL#MODEL", help="That second model.", rich_help_panel=GRADING)
    ] = "",
    greedy: Greedy = False,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    language: Annotated[
        LanguageName | None,
        typer.Option(help="Language of the kernels; default: as each row says.", rich_help_panel=AGENT),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="What the model sees of its past steps: drop (default), full, …", rich_help_panel=AGENT),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    action_format: Format = None,
    max_steps: MaxSteps = None,
    cell_timeout: CellTimeout = None,
    context_length: ContextLength = 32_768,
    request_timeout: RequestTimeout = 120.0,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    max_cost: MaxCost = None,
    tokenizer: Tokenizer = None,
    images: Images = None,
) -> None:
    """Let an agent answer a set with a notebook and the data: each question as often as --replicas says.

    Writes into --out: recipe.toml, rollouts/ (event logs), notebooks/, questions/ (a JSON file per attempt) and
    results.jsonl. Ctrl-C or a full disk lose nothing: the same command with --resume goes on, and makes again what a
    failure on the host's side ended. Grade the same answers by another rule with `nbagent bixbench regrade`.

    Examples:

    [bold]nbagent bixbench run my-tasks --model my-model --backend fork --out runs/a[/bold]

    [bold]nbagent bixbench run futurehouse/BixBench --model openai:http://localhost:8000/v1#qwen --format native
    --mode mcq_refusal --backend fork --out runs/b[/bold]

    The key of an endpoint, and of a judge, is read from NBAGENT_API_KEY or OPENAI_API_KEY.
    """
    from nbagent.backends import choose_backend, not_covered
    from nbagent.models.opening import is_ours

    chosen = choose_backend(backend, model, is_ours(model))
    named = {
        "policy": context,
        "action_format": action_format.value if action_format else None,
        "max_steps": max_steps,
        "max_new_tokens": max_new_tokens,
        "cell_timeout_s": cell_timeout,
        "images": images,
        "artefact_bytes": int(artefacts * 1e6) if artefacts else None,
        "backend": chosen,
    }
    if not is_ours(model):
        print(not_covered(chosen), file=sys.stderr)
    settings: dict[str, Any] = {
        "setting": "agentic",
        "mcq": mcq.value,
        "mcq_model": mcq_model,
        "language": language.value if language else "",
    }
    recipe = {
        **{"tasks": tasks, "model": model, "mode": mode.value, "replicas": replicas, "limit": limit},
        **{"temperature": 0.0 if greedy else temperature, "seed": seed, "policy": policy.value, "judge": judge},
    }
    remote = {
        **{"context_length": context_length, "timeout_s": request_timeout},
        **{"price_in": price_in, "price_out": price_out, "max_cost": max_cost},
        "tokenizer": tokenizer,
    }
    _run({**recipe, **settings}, named, out, remote, concurrency, resume, cache)


@app.command("zero-shot")
def zero_shot(
    tasks: Tasks,
    model: ModelName,
    out: Out,
    mode: Mode = ModeName.OPEN,
    replicas: Replicas = 5,
    limit: Limit = None,
    concurrency: Concurrency = None,
    resume: Resume = False,
    policy: Policy = PolicyName.STRICT,
    judge: JudgeName = "",
    greedy: Greedy = False,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = None,
    context_length: ContextLength = 32_768,
    request_timeout: RequestTimeout = 120.0,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
    max_cost: MaxCost = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Ask a model the questions without notebook and data, one call each: what can be guessed or is remembered.

    No capsule is fetched and no code is run. Files and --resume are as with `nbagent bixbench run`.

    Example: [bold]nbagent bixbench zero-shot my-tasks --model my-model --mode mcq --out runs/guesses[/bold]
    """
    recipe = {
        **{"tasks": tasks, "model": model, "mode": mode.value, "replicas": replicas, "limit": limit},
        **{"temperature": 0.0 if greedy else temperature, "seed": seed, "policy": policy.value, "judge": judge},
        "setting": "zero-shot",
    }
    remote = {
        **{"context_length": context_length, "timeout_s": request_timeout},
        **{"price_in": price_in, "price_out": price_out, "max_cost": max_cost},
        "tokenizer": tokenizer,
    }
    _run(recipe, {"max_new_tokens": max_new_tokens}, out, remote, concurrency, resume, None)


def _run(
    recipe: dict[str, Any],
    agent: dict[str, Any],
    out: Path,
    remote: dict[str, Any],
    concurrency: int | None,
    resume: bool,
    cache: Path | None,
) -> None:
    from nbagent.cli_options import agent_of, at_once
    from nbagent.models.opening import is_remote
    from nbagent.tasks import Outcome
    from nbagent_bixbench.report import show_report, write_report
    from nbagent_bixbench.run import RunRecipe, run_command
    from nbagent_bixbench.source import capsule_cache

    model = recipe["model"]
    together = at_once(concurrency, is_remote(model))
    # A bundled set is made where it is unpacked, and another version of nbagent may make another one.
    kept = None if recipe["tasks"].startswith("bundled:") else cache or capsule_cache()
    results = run_command(
        RunRecipe(**recipe, agent=agent_of(model, agent)),
        out,
        {**remote, "concurrency": together} if is_remote(model) else {},
        concurrency=together,
        resume=resume,
        cache=kept,
    )
    failed = sum(result.outcome is Outcome.INFRASTRUCTURE for result in results)
    ungraded = sum(result.outcome is Outcome.UNGRADED for result in results)
    show_report(write_report(out))
    print(f"results: {out / 'results.jsonl'}")
    if ungraded:
        print(
            f"{ungraded} of {len(results)} answers are ungraded: free text needs a judge that can be reached (--judge)"
        )
    if failed:
        print(
            f"{failed} of {len(results)} attempts failed on the host's side; the same command with --resume makes them"
        )
