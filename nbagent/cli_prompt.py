"""`nbagent prompt`: what the model saw at a step, from the log."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nbagent.runfolder import RunFolder
    from nbagent.trajectory import Call, Trajectory


def prompt(
    run: Annotated[Path, typer.Argument(help="A run folder, as --out of demo, train or score named it.")],
    rollout: Annotated[str, typer.Option(help="The attempt: a name in the run's rollouts/, without .jsonl.")],
    step: Annotated[int | None, typer.Option(min=0, help="The step, counted from 0; none: the last one.")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the model's tokenizer; none: that of the run's checkpoints, or of the scored model."
        ),
    ] = None,
) -> None:
    """Show what the model saw at a step, to the letter: tokens, what was cut and why, the prompt, the reply.

    A step at which the model first wrote itself a memory has two prompts. A chat endpoint's prompt is its messages, and
    of tools whose schemas went along with the request (format native) the names; images are named.

    Examples:

    [bold]nbagent prompt runs/demo --rollout ID --step 2[/bold]

    [bold]nbagent prompt runs/score --rollout ID --tokenizer path/to/model[/bold]
    """
    from nbagent.errors import UsageError
    from nbagent.runfolder import RunFolder
    from nbagent.terminal import plain

    folder = RunFolder.open(run)
    trajectory = folder.load(rollout)
    calls = list(trajectory.calls())
    if not calls:
        raise UsageError(f"{rollout}: the model was never called")
    last = calls[-1].event["step"]
    wanted = last if step is None else step
    calls = [call for call in calls if call.event["step"] == wanted]
    if not calls:
        raise UsageError(f"{rollout}: has no step {wanted}; its steps are 0 to {last}")
    decoder = None if calls[0].prompt_ids is None else _tokenizer(folder, tokenizer)
    for call in calls:
        for line in described(trajectory, call, decoder):
            print(plain(line))


def described(trajectory: Trajectory, call: Call, tokenizer: Any) -> Iterator[str]:
    """The lines on one call; `tokenizer` decodes its ids, where it has any."""
    event, budget = call.event, trajectory.start.get("budget", {})
    n = event["tokens"].get("counted") if call.prompt_ids is None else len(call.prompt_ids)
    kind = "memory" if event["call_kind"] == "summary" else "action"
    bound = "" if budget.get("exact", True) else " by another tokenizer or a bound"
    room = f", budget {budget['tokens']:,}" if budget else ""
    yield f"=== step {event['step']}, {kind}, policy {trajectory.start['policy']['name']}: {n:,} tokens{bound}{room}"
    for cut in event["elisions"]:
        level = cut["level"].replace("_", " and ")
        yield f"{cut['what']}: {level}, {cut['tokens_saved']:,} tokens saved ({cut['why']})"
    if not event["elisions"]:
        yield "nothing was cut"
    if tools := _sent_along(trajectory, kind):
        yield f"tools sent along: {', '.join(tools)}"
    if call.prompt_ids is not None:
        yield "=== prompt"
        yield from tokenizer.decode(list(call.prompt_ids), skip_special_tokens=False).split("\n")
    for message in call.messages or ():
        yield f"=== {message['role']}"
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        yield from "".join(part.get("text", "\n[image]\n") for part in parts).split("\n")
    yield "=== reply"
    yield from event["text"].split("\n")


def _sent_along(trajectory: Trajectory, kind: str) -> list[str]:
    """Names of the tools whose schemas went with the request; a memory is asked for without."""
    from nbagent.actions import action_format
    from nbagent.tools import TOOLS, tool_name

    fmt = action_format(trajectory.start["action_format"], trajectory.start["language"])
    return [tool_name(tool) for tool in fmt.available(TOOLS)] if fmt.sends_schemas and kind == "action" else []


def _tokenizer(folder: RunFolder, named: Path | None) -> Any:
    from nbagent.errors import UsageError
    from nbagent.models.opening import open_tokenizer

    own = sorted(path.parent for path in folder.checkpoints.glob("*/tokenizer.json"))
    scored = tomllib.loads(folder.recipe.read_text(encoding="utf-8")).get("model")
    if isinstance(scored, str) and (Path(scored) / "tokenizer.json").is_file():
        own.append(Path(scored))
    if named is None and not own:
        raise UsageError(f"{folder.path}: keeps token ids and no tokenizer; name the model's folder with --tokenizer")
    return open_tokenizer(named or own[0])
