"""Validation of event logs: every line against the schema, and what a schema cannot say across lines."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from nbagent.blobs import Blobs
from nbagent.errors import TrajectoryError
from nbagent.eventlog import shared


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a log. `str()` gives `path:line: what`."""

    path: Path
    line: int
    """1-based; 0 for the file as a whole."""
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what}" if self.line else f"{self.path}: {self.what}"


def schema() -> dict[str, Any]:
    """The JSON Schema of an event."""
    text = (files("nbagent") / "trajectory_schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def _validators() -> dict[str, Draft202012Validator]:
    # One schema per kind: against `oneOf` every message would be about all kinds at once.
    return {kind: Draft202012Validator(definition) for kind, definition in schema()["$defs"].items()}


def problems(path: Path, blobs: Blobs | None = None) -> list[Problem]:
    """Everything wrong with a log, in the order of its lines; [] where it is sound.

    An attempt without an `end` is sound: it was cut off, or still runs. A torn last line is reported.

    Args:
        path: the log.
        blobs: where its outputs are; None: beside its folder, in `blobs/`.

    Raises:
        TrajectoryError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrajectoryError(f"{path}: cannot be read: {error.strerror or error}") from None
    *lines, torn = data.split(b"\n")
    found: list[Problem] = []
    attempt: _Attempt | None = None
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError as error:
            found.append(Problem(path, number, f"not JSON: {error}"))
            continue
        wrong = _against_schema(event)
        if wrong:
            found.append(Problem(path, number, wrong))
            continue
        if event["kind"] == "start":
            attempt = _Attempt(blobs or Blobs(path.parent.parent / "blobs"), path.stem)
            try:
                before = shared(path, event)
            except TrajectoryError as error:
                found.append(Problem(path, number, str(error)))
                continue
            for earlier in before:
                # What is wrong with these is said of the log that they stand in.
                deque(attempt.take(earlier), maxlen=0)
        if attempt is None:
            found.append(Problem(path, number, f"a {event['kind']} before any start"))
            continue
        found += [Problem(path, number, what) for what in attempt.take(event)]
    if torn:
        found.append(Problem(path, len(lines) + 1, f"a torn line of {len(torn)} bytes: the writer was killed in it"))
    if not data:
        found.append(Problem(path, 0, "empty: the rollout was cut off before it began"))
    return found


def _against_schema(event: Any) -> str:
    if not isinstance(event, dict):
        return f"not an event but {json.dumps(event)[:40]}"
    validator = _validators().get(str(event.get("kind")))
    if validator is None:
        return f"unknown kind {event.get('kind')!r}; there are: {', '.join(_validators())}"
    error = best_match(validator.iter_errors(event))
    if error is None:
        return ""
    message = error.message if len(error.message) <= 200 else error.message[:200] + "…"
    return f"{event['kind']}{''.join(f'.{part}' for part in error.absolute_path)}: {message}"


@dataclass(slots=True)
class _Attempt:
    """What is known of an attempt while its events go by."""

    blobs: Blobs
    name: str
    t: float = 0.0
    step: int = 0
    prompt: dict[str, int] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    ended: bool = False

    def take(self, event: dict[str, Any]) -> Iterator[str]:
        """What is wrong with an event after those before it."""
        if self.ended:
            yield f"a {event['kind']} after the end"
        if event["t"] < self.t:
            yield f"t goes back from {self.t} to {event['t']}"
        self.t = event["t"]
        if "step" in event:
            if event["step"] < self.step:
                yield f"step goes back from {self.step} to {event['step']}"
            self.step = event["step"]
        check = getattr(self, f"_{event['kind']}", None)
        if check is not None:
            yield from check(event)

    def _start(self, event: dict[str, Any]) -> Iterator[str]:
        if event["rollout_id"] != self.name:
            yield f"rollout_id is {event['rollout_id']!r} in the log of {self.name!r}"

    def _call(self, event: dict[str, Any]) -> Iterator[str]:
        prompt = event["prompt"]
        own = "suffix" if "suffix" in prompt else "messages"
        if prompt["shared"] > self.prompt.get(own, 0):
            yield f"shares {prompt['shared']} with a prompt of {self.prompt.get(own, 0)}"
        self.prompt = {own: prompt["shared"] + len(prompt[own])}
        ids, logprobs = event["completion_ids"], event["logprobs"]
        if ids is not None and logprobs is not None and len(ids) != len(logprobs):
            yield f"{len(ids)} completion ids and {len(logprobs)} log-probs"

    def _cell(self, event: dict[str, Any]) -> Iterator[str]:
        cell, op = event["cell"], event["op"]
        if op == "insert":
            if cell in self.used:
                yield f"cell id {cell} is used twice"
            if event["index"] > len(self.cells):
                yield f"insert at {event['index']} in a notebook of {len(self.cells)} cells"
            self.used.add(cell)
            self.cells[cell] = event["cell_type"]
        elif cell not in self.cells:
            yield f"{op} of {cell}, which is not in the notebook"
        elif op == "delete":
            del self.cells[cell]

    def _execution(self, event: dict[str, Any]) -> Iterator[str]:
        if self.cells.get(event["cell"]) != "code":
            yield f"execution of {event['cell']}, which is no code cell of the notebook"
        try:
            outputs = self.blobs.get(event["outputs"])
        except TrajectoryError as error:
            yield str(error)
            return
        if not isinstance(outputs, list):
            yield f"blob {event['outputs']} is no list of outputs"

    def _end(self, event: dict[str, Any]) -> Iterator[str]:
        self.ended = True
        if (event["reward"] is None) != (event["outcome"] in ("ungraded", "infrastructure")):
            yield f"outcome {event['outcome']} with reward {event['reward']}"
