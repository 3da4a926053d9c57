"""Prompts made again from a trajectory: the same policy over the fold of the log gives the same prompts, byte for byte.

A policy sees nothing but the brief, the notebook, the history, the notice and the budget, and all five are in the log.
What is needed beside it is the tokenizer that counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from nbagent.errors import TrajectoryError
from nbagent.eventlog import Event
from nbagent.notebook import NotebookDocument
from nbagent.replay import fold_event
from nbagent.trajectory import Trajectory
from nbagent_context import Brief, Budget, Exchange, Memory, SummaryRequest, Window, policy
from nbagent_context.types import Count


def windows_again(trajectory: Trajectory, count: Count) -> Iterator[tuple[Event, Window | SummaryRequest]]:
    """Each model call of a trajectory with what the policy made of the log before it.

    Args:
        trajectory: of any outcome, ended or not.
        count: counts a part's tokens as `PromptBuilder.count` did.

    Raises:
        TrajectoryError: a log from before budgets were recorded, or a damaged one.
        BudgetTooSmall: `count` is another than the one that the prompts were made with.
    """
    start = trajectory.start
    if "budget" not in start:
        raise TrajectoryError(f"{trajectory.rollout_id}: its log has no budget, so its prompts cannot be made again")
    chosen = policy(start["policy"]["name"], **start["policy"]["options"])
    brief = Brief(**start["brief"])
    budget = Budget(**{field.name: start["budget"][field.name] for field in fields(Budget)})
    document = NotebookDocument(str(start["language"]))
    history: list[Exchange | Memory] = []
    text = ""
    for event in trajectory.events:
        kind = event["kind"]
        if kind == "call":
            window = chosen.window(brief, document.node, history, event["notice"], budget, count)
            yield event, window
            if isinstance(window, SummaryRequest):
                history.append(Memory(event["text"].strip(), window.covers, event["step"]))
            text = event["text"]
        elif kind == "observation":
            history.append(_exchange(event, text))
        else:
            fold_event(document, event, trajectory)


def _exchange(event: Event, text: str) -> Exchange:
    return Exchange(
        event["step"],
        event.get("action", text),
        event["tool"],
        event["text"],
        event["cell_id"],
        shown=event["shown"],
        short=event["short"],
        thought=event.get("thought", ""),
        failed=event.get("failed", False),
        exception=event.get("exception", ""),
        full_chars=event.get("full_chars", 0),
    )
