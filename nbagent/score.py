"""Scores: what the attempts of a run amount to, overall and by family, with intervals.

Ungraded attempts and infrastructure failures have no reward: they are counted and left out of pass@k.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nbagent.blobs import storage_failed
from nbagent.errors import UsageError
from nbagent.runfolder import write_whole
from nbagent.stats import Estimate, mean_of_tasks
from nbagent.tasks import Outcome
from nbagent.trajectory import Trajectory

SCORE_FILE = "score.json"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one task, as a score needs it."""

    task_id: str
    rollout_id: str
    outcome: Outcome
    family: str = ""
    """Kind of question; attempts without one count only overall."""
    reward: float | None = None
    """The return; None for outcomes without one."""
    n_steps: int = 0
    """Model calls that were actions."""
    malformed: int = 0
    """Model calls whose action could not be read."""
    prompt_tokens: int = 0
    """Summed over the calls."""
    completion_tokens: int = 0
    """Summed over the calls."""
    cost: float = 0.0
    """What the calls cost, in the unit of the prices given."""
    seconds: float = 0.0
    """From start to end."""
    truncated: bool = False
    """A limit ended it."""
    question: str = ""
    answer: str | None = None
    """What was submitted."""
    reason: str = ""
    """The verdict's reason."""
    error: str = ""
    """`class: message` of what broke it."""

    def __post_init__(self) -> None:
        # JSON from an endpoint may hold lone surrogates, which no UTF-8 file takes.
        for name in ("question", "answer", "reason", "error"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.encode("utf-8", "backslashreplace").decode("utf-8"))

    @classmethod
    def of(cls, trajectory: Trajectory) -> Attempt:
        """The attempt that a trajectory records; one that was cut off counts as an infrastructure failure."""
        calls = [event.get("tokens") or {} for event in trajectory.events if event["kind"] == "call"]
        errors = [event for event in trajectory.events if event["kind"] == "observation" and event["error"]]
        outcome = trajectory.outcome
        return cls(
            task_id=trajectory.task_id,
            rollout_id=trajectory.rollout_id,
            outcome=outcome or Outcome.INFRASTRUCTURE,
            family=trajectory.family,
            reward=trajectory.reward,
            n_steps=trajectory.n_steps,
            malformed=len(errors),
            prompt_tokens=sum(int(call.get("prompt_tokens") or call.get("prompt", 0)) for call in calls),
            completion_tokens=sum(int(call.get("completion_tokens") or call.get("completion", 0)) for call in calls),
            cost=sum(call.get("cost", 0.0) for call in calls),
            seconds=trajectory.seconds,
            truncated=trajectory.truncated,
            question=trajectory.question,
            answer=trajectory.answer,
            reason=trajectory.reason,
            error=trajectory.error if outcome else "cut off before its end",
        )


@dataclass(frozen=True, slots=True)
class Share:
    """How many attempts ended in one way."""

    count: int
    share: Estimate
    """Mean over tasks of the share of their attempts, with its interval."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The numbers of one line of a score table."""

    n_tasks: int
    """Tasks attempted."""
    n_attempts: int
    """Attempts, excluded ones among them."""
    n_excluded: int
    """Attempts without a reward (ungraded, infrastructure)."""
    pass_at: dict[int, Estimate]
    """pass@k by k, over the tasks with at least k graded attempts; empty where nothing was graded."""
    outcomes: dict[Outcome, Share]
    """Every outcome's share of all attempts, in the order of `Outcome`."""
    steps: float
    """Mean model calls per attempt."""
    malformed: float
    """Share of the model calls whose action could not be read."""
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float
    """Mean seconds per attempt."""

    @property
    def pass_1(self) -> Estimate | None:
        """pass@1; None where nothing was graded."""
        return self.pass_at.get(1)


@dataclass(frozen=True, slots=True)
class Score:
    """What a model scored on a set of tasks.

    Example:
        >>> score = score_trajectories([Attempt("t1", "t1-0", Outcome.CORRECT, reward=1.0)])
        >>> score.overall.pass_at[1].value
        1.0
    """

    overall: Summary
    families: dict[str, Summary]
    """By family, sorted; empty where tasks have none."""
    attempts: tuple[Attempt, ...]
    """Everything the score was made from, sorted by task and rollout."""
    name: str = ""
    """What was scored, e.g. `grpo_greedy`."""
    model: str = ""
    tasks: dict[str, Any] = field(default_factory=dict)
    """The task set's fingerprint."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How it was sampled: temperature, policy, limits, seed, backend."""

    def by_task(self) -> dict[str, float]:
        """Share of right attempts among the graded ones, by task; tasks without any are left out."""
        return {task: right / n for task, (n, right) in _graded_counts(self.attempts).items() if n}

    def write(self, path: Path) -> None:
        """Write score.json, whole or not at all: where it is there, a resumed run does not score again.

        Raises StorageError.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            storage_failed(path, error)
        write_whole(path, _SCORE.dump_json(self, indent=1))


_SCORE = TypeAdapter(Score)


def read_score(path: Path) -> Score:
    """Read a score.

    Args:
        path: a score's JSON file, or a run folder that holds `score.json`.

    Raises:
        UsageError: nothing is there, or it is no score.
    """
    file = path / SCORE_FILE if path.is_dir() else path
    try:
        return _SCORE.validate_json(file.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{file}: no such score; give a run folder that `nbagent score` made") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{file}: not a score ({place + ': ' if place else ''}{first['msg']})") from None


def score_trajectories(
    attempts: Iterable[Attempt | Trajectory],
    *,
    name: str = "",
    model: str = "",
    tasks: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Score:
    """The score of some attempts; `seed` is that of the bootstrap."""
    made = [Attempt.of(a) if isinstance(a, Trajectory) else a for a in attempts]
    made.sort(key=lambda attempt: (attempt.task_id, attempt.rollout_id))
    by_family = defaultdict[str, list[Attempt]](list)
    for attempt in made:
        if attempt.family:
            by_family[attempt.family].append(attempt)
    return Score(
        overall=summarise(made, seed),
        families={family: summarise(by_family[family], seed) for family in sorted(by_family)},
        attempts=tuple(made),
        name=name,
        model=model,
        tasks=dict(tasks or {}),
        settings=dict(settings or {}),
    )


def summarise(attempts: Sequence[Attempt], seed: int = 0) -> Summary:
    """The numbers of some attempts; of none, zeros."""
    graded = list(_graded_counts(attempts).values())
    most = max((n for n, _ in graded), default=0)
    calls = sum(attempt.n_steps for attempt in attempts)
    n = len(attempts)
    return Summary(
        n_tasks=len({attempt.task_id for attempt in attempts}),
        n_attempts=n,
        n_excluded=sum(attempt.outcome.reward is None for attempt in attempts),
        pass_at={k: mean_of_tasks(graded, k, seed=seed) for k in _ks(most)},
        outcomes={outcome: _share(attempts, outcome, seed) for outcome in Outcome} if attempts else {},
        steps=calls / n if n else 0.0,
        malformed=sum(attempt.malformed for attempt in attempts) / calls if calls else 0.0,
        prompt_tokens=sum(attempt.prompt_tokens for attempt in attempts),
        completion_tokens=sum(attempt.completion_tokens for attempt in attempts),
        cost=sum(attempt.cost for attempt in attempts),
        seconds=sum(attempt.seconds for attempt in attempts) / n if n else 0.0,
    )


def _ks(most: int) -> list[int]:
    """1, 2, 4, … and the most attempts that a task has."""
    return sorted({2**i for i in range(most.bit_length())} | {most}) if most else []


def _graded_counts(attempts: Iterable[Attempt]) -> dict[str, tuple[int, int]]:
    """(graded attempts, right ones) by task."""
    counts = dict[str, tuple[int, int]]()
    for attempt in attempts:
        n, right = counts.get(attempt.task_id, (0, 0))
        if attempt.outcome.reward is not None:
            n, right = n + 1, right + (attempt.outcome is Outcome.CORRECT)
        counts[attempt.task_id] = n, right
    return counts


def _share(attempts: Sequence[Attempt], outcome: Outcome, seed: int) -> Share:
    counts = dict[str, tuple[int, int]]()
    for attempt in attempts:
        n, hits = counts.get(attempt.task_id, (0, 0))
        counts[attempt.task_id] = n + 1, hits + (attempt.outcome is outcome)
    return Share(sum(hits for _, hits in counts.values()), mean_of_tasks(list(counts.values()), seed=seed))
