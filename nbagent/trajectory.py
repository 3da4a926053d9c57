"""Trajectories: the event log of one rollout, written line by line, read back exactly.

A log is a file of JSON lines, `rollouts/<rollout_id>.jsonl` in a run folder; trajectory_schema.json describes every
line. A file may hold several attempts (an infrastructure failure is tried again, a killed run is resumed); each
begins with a `start` event and the last one counts. The log of a branch begins where it left its parent: a `start`
that names it, then its own events.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nbagent.blobs import Blobs, storage_failed
from nbagent.errors import StorageError
from nbagent.eventlog import Event, before, last_attempt
from nbagent.models.base import Completion, Prompt
from nbagent.normal_form import digest, ran
from nbagent.tasks import Outcome
from nbagent_context.types import Elision

VERSION = 1
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the longest common prefix. Bisects on slices, which compare at C speed."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class Call:
    """One model call with its whole prompt."""

    event: Event
    """The `call` event as logged."""
    prompt_ids: tuple[int, ...] | None
    """Exactly the ids the model was given; None for a remote model."""
    messages: tuple[dict[str, Any], ...] | None
    """The messages a remote model was given; None where the ids are ours."""


class Recorder:
    """Writes one attempt's events as they happen.

    Args:
        blobs: where outputs go.
        path: the log; None keeps events in memory only.
        keep: keep the events in memory too, so that the trajectory need not be read back.

    Attributes:
        digests: by cell, the digest of its latest outputs (see `nbagent.normal_form.state_key`).
        kernel: hash of what ran in the kernel since its last start (see `nbagent.normal_form.ran`).
        failure: the StorageError that ended the recording; callers in between may have changed its form.

    Raises:
        StorageError: from any method that writes, when the disk is full or gone.
    """

    def __init__(self, blobs: Blobs, path: Path | None = None, keep: bool = True) -> None:
        self.blobs = blobs
        self.path = path
        self.events: list[Event] = []
        self.digests: dict[str, str] = {}
        self.kernel = ""
        self.failure: StorageError | None = None
        self._keep = keep or path is None
        self._began = time.monotonic()
        self._ids: list[int] = []
        self._messages: list[dict[str, Any]] = []
        self._shared: list[Event] = []
        self._file = -1
        self._size = 0
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                self._size = _drop_torn_line(path, self._file)
            except OSError as error:
                storage_failed(path, error)

    def branch(self, path: Path | None, rollout: str, step: int) -> Recorder:
        """Writes what becomes of a branch of this rollout, whose action at `step` is to come; time goes on from here.

        Args:
            path: the branch's log.
            rollout: this one's id.
            step: number of that step.
        """
        other = Recorder(self.blobs, path, self._keep)
        other.digests, other.kernel = dict(self.digests), self.kernel
        other._began, other._ids, other._messages = self._began, self._ids, self._messages
        other._shared = before([*self._shared, *self.events[1:]], rollout, step)
        return other

    @property
    def seconds(self) -> float:
        """Since the attempt began, or for a branch the one that it comes from."""
        return time.monotonic() - self._began

    def record(self, kind: str, **fields: Any) -> None:
        """Log one event. An execution's `outputs`, a list of nbformat outputs, becomes a blob's hash."""
        try:
            self._record(kind, fields)
        except StorageError as error:
            self.failure = error
            raise

    def _record(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "execution":
            self.digests[fields["cell"]] = shown = digest(fields["outputs"])
            self.kernel = ran(self.kernel, fields, shown)
            fields["outputs"] = self.blobs.put(fields["outputs"])
        elif kind == "kernel":
            # Asked for, or lost with all variables: what comes next is fresh.
            self.kernel = ""
        event = {"v": VERSION, "t": round(self.seconds, 6), "kind": kind, **fields}
        if self._keep:
            self.events.append(event)
        if self._file >= 0:
            self._write((_ENCODE(event) + "\n").encode("ascii"))

    def call(
        self,
        step: int,
        prompt: Prompt,
        completion: Completion,
        *,
        version: int,
        seconds: float,
        elisions: Sequence[Elision],
        state_key: str,
        notice: str,
        call_kind: str = "action",
    ) -> None:
        """Log one model call; its prompt is stored as what differs from the previous call's."""
        stored: dict[str, Any]
        if prompt.ids is not None:
            ids = list(prompt.ids)
            shared = shared_length(self._ids, ids)
            stored = {"shared": shared, "suffix": ids[shared:]}
            self._ids = ids
        else:
            messages = list(prompt.messages)
            shared = shared_length(self._messages, messages)
            stored = {"shared": shared, "messages": messages[shared:]}
            self._messages = messages
        tokens = {"prompt": len(prompt.ids or ()), "completion": len(completion.ids or ()), **completion.usage}
        if prompt.ids is None:
            tokens["counted"] = prompt.counted
        self.record(
            "call",
            step=step,
            prompt=stored,
            completion_ids=completion.ids,
            logprobs=completion.logprobs,
            text=completion.text,
            finish=completion.finish,
            version=version,
            seconds=round(seconds, 6),
            tokens=tokens,
            elisions=[asdict(elision) for elision in elisions],
            call_kind=call_kind,
            state_key=state_key,
            notice=notice,
        )

    def _write(self, line: bytes) -> None:
        assert self.path is not None
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            # What was written of the line goes again, so that the log stays whole lines and the run can resume.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            storage_failed(self.path, error)
        self._size += len(line)

    def close(self) -> None:
        """Make log and blobs durable and close the file. Blocks on the disk: call it off the event loop. Idempotent."""
        if self._file < 0:
            return
        assert self.path is not None
        descriptor, self._file = self._file, -1
        try:
            # Once per rollout: each os.write already outlives our own death, only a power cut takes more than the
            # last line, and an fsync per event would cost more than the kernels do.
            self.blobs.sync()
            os.fsync(descriptor)
        except OSError as error:
            storage_failed(self.path, error)
        finally:
            os.close(descriptor)

    def trajectory(self) -> Trajectory:
        """What was recorded."""
        events = [*self.events[:1], *self._shared, *self.events[1:]] if self._keep else None
        return Trajectory(events, self.blobs, self.path)


def _drop_torn_line(path: Path, descriptor: int) -> int:
    """Cut what follows the last newline, the line that a kill tore; the size left."""
    size = os.fstat(descriptor).st_size
    if size:
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole < size:
            os.ftruncate(descriptor, whole)
        return whole
    return 0


class Trajectory:
    """All steps of one attempt at one task.

    Made by `Recorder.trajectory` or `Trajectory.load`; where events were not kept they are read from `path` when first
    asked for.
    """

    def __init__(self, events: list[Event] | None, blobs: Blobs, path: Path | None = None) -> None:
        self.blobs = blobs
        self.path = path
        self._events = events

    @classmethod
    def load(cls, path: Path, blobs: Blobs | None = None) -> Trajectory:
        """Read a log. A torn last line is left out; `blobs` defaults to the run folder's own.

        Raises:
            TrajectoryError: no such file, or a line that is not an event; names file and line.
        """
        return cls(last_attempt(path), blobs or Blobs(path.parent.parent / "blobs"), path)

    @property
    def events(self) -> list[Event]:
        """The last attempt's events, in order; its first is `start`, a branch's next those that it shares.

        What a branch shares has `rollout`, the id of the rollout that it happened in.
        """
        if self._events is None:
            assert self.path is not None
            self._events = last_attempt(self.path)
        return self._events

    @property
    def start(self) -> Event:
        """The `start` event."""
        return self.events[0]

    @property
    def end(self) -> Event | None:
        """The `end` event; None while the rollout runs, or where it was cut off."""
        last = self.events[-1]
        return last if last["kind"] == "end" else None

    @property
    def rollout_id(self) -> str:
        """Unique in its run."""
        return str(self.start["rollout_id"])

    @property
    def task_id(self) -> str:
        """The task's id."""
        return str(self.start["task_id"])

    @property
    def question(self) -> str:
        """The question as the task puts it."""
        return str(self.start["question"])

    @property
    def family(self) -> str:
        """Kind of question."""
        return str(self.start["family"])

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None where it did not."""
        return Outcome(self.end["outcome"]) if self.end else None

    @property
    def reason(self) -> str:
        """The verdict's reason, in one sentence; '' where it did not end."""
        return str(self.end["reason"]) if self.end else ""

    @property
    def reward(self) -> float | None:
        """The return: 1 or 0; None for outcomes without one and where it did not end."""
        return self.end["reward"] if self.end else None

    @property
    def truncated(self) -> bool:
        """True when a limit ended it."""
        return bool(self.end and self.end["truncated"])

    @property
    def error(self) -> str:
        """`class: message` of what broke it, or ''."""
        return str(self.end["error"]) if self.end else ""

    @property
    def seconds(self) -> float:
        """From start to end, or to the last event."""
        return float(self.events[-1]["t"])

    @property
    def answer(self) -> str | None:
        """What was submitted; None where nothing was."""
        answers = [event["answer"] for event in self.events if event["kind"] == "answer"]
        return answers[-1] if answers else None

    @property
    def n_steps(self) -> int:
        """Model calls that were actions."""
        return sum(1 for event in self.events if event["kind"] == "call" and event["call_kind"] == "action")

    def outputs(self, execution: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The nbformat outputs of an `execution` event. Raises TrajectoryError where the blob is gone or damaged."""
        outputs: list[dict[str, Any]] = self.blobs.get(execution["outputs"])
        return outputs

    def calls(self) -> Iterator[Call]:
        """Every model call in order, its prompt put together again, exactly."""
        ids: tuple[int, ...] = ()
        messages: tuple[dict[str, Any], ...] = ()
        for event in self.events:
            if event["kind"] != "call":
                continue
            prompt = event["prompt"]
            if "suffix" in prompt:
                ids = (*ids[: prompt["shared"]], *prompt["suffix"])
                yield Call(event, ids, None)
            else:
                messages = (*messages[: prompt["shared"]], *prompt["messages"])
                yield Call(event, None, messages)
