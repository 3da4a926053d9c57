"""Options that several commands share, and what they amount to: an agent, the settings of an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nbagent.agent import Agent


class ActionFormatName(StrEnum):
    """How the model writes its actions."""

    HERMES = "hermes"
    FENCED = "fenced"
    NATIVE = "native"


BACKEND_HELP = (
    "Where cells run: docker (a container; docker:IMAGE), fork (Python, quick) or local (any installed kernel). "
    "docker,memory=8,cpus=2,work=4 sets GiB of memory, processors and GiB of files; else 4, 1 and 1."
)
AGENT, SAMPLING, ENDPOINT = "How the agent acts", "Sampling", "With an openai: model"

ModelName = Annotated[
    str, typer.Option("--model", help="A folder of a Hugging Face causal LM, vllm:FOLDER, or openai:URL#MODEL.")
]
Out = Annotated[Path, typer.Option("--out", help="Run folder to make.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many tasks.")]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        help=f"{BACKEND_HELP} Default: docker, and fork for a model of ours.",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", min=1, help="Attempts under way at once; default: 8 with openai:, else 96."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; done attempts stay.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Take the likeliest token.", rich_help_panel=SAMPLING)]
Temperature = Annotated[
    float, typer.Option("--temperature", "-t", min=0, help="Temperature; 0 is greedy.", rich_help_panel=SAMPLING)
]
Seed = Annotated[
    int,
    # As recipes of training take it, so that what was scored can be trained on.
    typer.Option("--seed", min=0, max=(1 << 31) - 1, help="Seed of all sampling noise.", rich_help_panel=SAMPLING),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option("--max-new-tokens", min=1, help="Tokens per model call; default: 1024.", rich_help_panel=AGENT),
]
Format = Annotated[
    ActionFormatName | None,
    typer.Option("--format", help="How the model writes its actions; default: hermes.", rich_help_panel=AGENT),
]
MaxSteps = Annotated[
    int | None,
    typer.Option("--max-steps", min=1, help="Model calls per attempt; default: 20.", rich_help_panel=AGENT),
]
Artefacts = Annotated[
    float,
    typer.Option("--artefacts", min=0, help="MB of files each attempt wrote to keep in OUT/artefacts.", metavar="MB"),
]
CellTimeout = Annotated[
    float | None,
    typer.Option("--cell-timeout", min=1, help="Seconds one cell may run; default: 600.", rich_help_panel=AGENT),
]
ContextLength = Annotated[
    int,
    typer.Option("--context-length", min=1, help="Tokens of prompt and answer together.", rich_help_panel=ENDPOINT),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Folder of the model's tokenizer, to count prompts with; without it a bound of a token per byte.",
        rich_help_panel=ENDPOINT,
    ),
]
Images = Annotated[
    bool | None,
    typer.Option("--images", help="Show plots to a model that sees; else they are named.", rich_help_panel=ENDPOINT),
]
RequestTimeout = Annotated[
    float, typer.Option("--request-timeout", min=1, help="Seconds one request may take.", rich_help_panel=ENDPOINT)
]
PriceIn = Annotated[
    float | None, typer.Option("--price-in", min=0, help="Price of a million prompt tokens.", rich_help_panel=ENDPOINT)
]
PriceOut = Annotated[
    float | None,
    typer.Option("--price-out", min=0, help="Price of a million completion tokens.", rich_help_panel=ENDPOINT),
]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost", min=0, help="Stop before the calls cost more.", rich_help_panel=ENDPOINT)
]


def agent_of(model: str, named: Mapping[str, Any]) -> Agent:
    """The agent beside a model's weights, or the default one, with the settings that were named (not None).

    Naming another context policy drops the options of the one that lies there.

    Raises:
        RecipeError: the agent beside the model is damaged.
    """
    from nbagent.agent import agent_beside

    agent = agent_beside(model)
    given = {name: value for name, value in named.items() if value is not None}
    if given.get("policy", agent.policy) != agent.policy:
        given.setdefault("policy_options", {})
    return agent.model_validate({**agent.model_dump(), **given})


def at_once(concurrency: int | None, remote: bool) -> int:
    """Attempts under way at once: what was named, else 8 for an endpoint and 96 for a model in this process."""
    return concurrency or (8 if remote else 96)
