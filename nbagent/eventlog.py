"""Event logs as files: their lines, their attempts, and what a branch shares with the rollout that it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nbagent.errors import TrajectoryError

Event = dict[str, Any]


def read_lines(path: Path) -> Iterator[tuple[int, Event]]:
    """The events of all attempts with their 1-based line numbers; a torn last line is left out.

    Raises:
        TrajectoryError: no such file, or a line that is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise TrajectoryError(f"{path}: no such rollout") from None
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = json.loads(line)
        except ValueError as error:
            raise TrajectoryError(f"{path}:{number}: not JSON ({error}); see `validate` for all problems") from None
        if not isinstance(event, dict):
            raise TrajectoryError(f"{path}:{number}: not an event but a {type(event).__name__}")
        yield number, event


def last_attempt(path: Path) -> list[Event]:
    """The last attempt's events; a branch's with those that it shares, which say whose they are under `rollout`.

    Raises:
        TrajectoryError: a log that is missing, empty or damaged, or one of the rollouts that it comes from.
    """
    own = _own(path)
    return [own[0], *shared(path, own[0]), *own[1:]]


def shared(path: Path, start: Event) -> list[Event]:
    """What a branch shares with the rollouts that it comes from, [] for a root. Raises TrajectoryError."""
    lineage: list[tuple[Event, list[Event]]] = []
    while parent := start.get("parent"):
        origin = path.with_name(f"{parent['rollout']}.jsonl")
        if any(parent["rollout"] == known["rollout"] for known, _ in lineage):
            raise TrajectoryError(f"{path}: comes from {parent['rollout']}, which comes from itself")
        try:
            events = _own(origin)
        except TrajectoryError as error:
            raise TrajectoryError(f"{path}: the rollout that it comes from cannot be read: {error}") from None
        lineage.append((parent, events))
        start = events[0]
    events = []
    for parent, own in reversed(lineage):
        events = before([*events, *own[1:]], parent["rollout"], parent["step"])
    return events


def before(events: Sequence[Event], rollout: str, step: int) -> list[Event]:
    """What happened in a rollout before its action at `step`; a memory written for that action is among it."""
    kept = []
    for event in events:
        reached = event.get("step", 0)
        memory = event["kind"] == "call" and event["call_kind"] == "summary"
        if event["kind"] == "end" or reached > step or (reached == step and not memory):
            break
        kept.append({"rollout": rollout, **event})
    return kept


def _own(path: Path) -> list[Event]:
    """The last attempt's events as they stand in its log."""
    events: list[Event] = []
    for number, event in read_lines(path):
        if event.get("kind") == "start":
            events = []
        elif not events:
            raise TrajectoryError(f"{path}:{number}: the log does not begin with a start event")
        events.append(event)
    if not events:
        raise TrajectoryError(f"{path}: the log is empty; the rollout was cut off before it began")
    return events
