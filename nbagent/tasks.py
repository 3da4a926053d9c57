"""Tasks: a question, its capsule of data files, and the verifier of its answer. The floor above implements these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nbagent.errors import UsageError


class Outcome(StrEnum):
    """How an attempt ended. Only the first four have a reward."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    REFUSED = "refused"
    UNGRADED = "ungraded"
    """A judge was needed and not there: excluded and counted."""
    INFRASTRUCTURE = "infrastructure"
    """A host-side failure: excluded and counted."""

    @property
    def reward(self) -> float | None:
        """1 for correct, 0 for incorrect, no_answer and refused, None for the rest."""
        if self in (Outcome.UNGRADED, Outcome.INFRASTRUCTURE):
            return None
        return float(self is Outcome.CORRECT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome and the reason for it, in one sentence."""

    outcome: Outcome
    reason: str


@runtime_checkable
class Verifier(Protocol):
    """Grades an answer. Stays on the host: neither it nor the key enters the sandbox.

    One whose verdicts may not train a model says why in an attribute `no_reward`, see there.
    """

    def verify(self, answer: str | None) -> Verdict:
        """The verdict on an answer; None where the agent gave none."""
        ...


@runtime_checkable
class StepVerifier(Protocol):
    """A Verifier that also rewards single steps.

    Training under grouping `state`, `rollout` or `step_index` learns from these rewards; under `trajectory` and
    `branch` from the verdict alone. `rollout` takes no task without them.
    """

    def step_reward(self, tool: str, observation: str, failed: bool) -> float:
        """The reward of a step: the tool that was called ('' for none), what it answered, whether it failed."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """One question with its capsule."""

    task_id: str
    """Unique in its set, e.g. `bix-3-q1`."""
    question: str
    """The text given to the agent."""
    capsule: Path
    """Folder of data files only (no notebook, no key); read-only."""
    verifier: Verifier
    """Grades the answer on the host."""
    language: str = "python"
    """Language of the kernel."""
    family: str = ""
    """Kind of question, for tables by family; the first category of a published row."""
    seed: int = 0
    """Seed of the kernel's random generators."""
    reference: Path | None = None
    """The expert's executed notebook, kept on the host outside `capsule`; None: unknown. Not shown to the agent."""
    key: str = ""
    """The key as written in the set. Never shown to the agent."""


def no_reward(task: Task) -> str:
    """Why a task's verdicts may not be training rewards; empty where its verifier has nothing against it."""
    return str(getattr(task.verifier, "no_reward", ""))


@runtime_checkable
class TaskSource(Protocol):
    """A set of tasks."""

    @property
    def name(self) -> str:
        """Short name, for run folders and tables."""
        ...

    def tasks(self) -> Sequence[Task]:
        """All tasks, in a fixed order. Raises TaskFormatError, never skips one silently."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What identifies the set in a run folder: kind, location, number, content hash."""
        ...


def open_tasks(location: str, cache: Path | None = None) -> TaskSource:
    """The task source for a location, found by entry point (group `nbagent.task_sources`).

    Each entry point is a callable `(location, cache) -> TaskSource | None`; the first that does not return None is
    taken. `cache` is where capsules are unpacked (None: a temporary folder that goes with the source).

    Raises:
        UsageError: nothing takes this location.
        TaskFormatError: something took it and found it broken.
    """
    names = []
    for point in sorted(entry_points(group="nbagent.task_sources"), key=lambda p: p.name):
        names.append(point.name)
        source: TaskSource | None = point.load()(location, cache)
        if source is not None:
            return source
    raise UsageError(
        f"{location}: not a set of tasks (tried: {', '.join(names) or 'nothing is installed'}); "
        "give a folder with BixBench.jsonl, or a CSV or JSONL of questions beside its data folders"
    )
