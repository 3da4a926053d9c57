"""Step samples: one training row per model call, made from a trajectory and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nbagent.errors import UsageError
from nbagent.trajectory import Trajectory

CallKind = Literal["action", "summary"]
"""What a model call writes: a step of the agent, or a memory that its context policy asked for."""


@dataclass(frozen=True, slots=True)
class StepSample:
    """One model call as a training row."""

    task_id: str
    rollout_id: str
    step: int
    """0-based number of the call in its trajectory."""
    n_steps: int
    """Calls of the trajectory."""
    prompt_ids: tuple[int, ...]
    """Exactly the ids the model was given."""
    completion_ids: tuple[int, ...]
    """Exactly the ids it sampled, terminator included."""
    logprobs: tuple[float, ...]
    """Behaviour log-probs, one per completion id."""
    reward: float
    """Return of the trajectory."""
    truncated: bool = False
    """The trajectory ended by a limit, without an answer."""
    kind: CallKind = "action"
    """What the call wrote."""
    version: int = 0
    """Version of the weights that sampled it."""
    state_key: str = ""
    """Hash of the normalised state that the call saw, of notebook and kernel; in older logs of the notebook alone."""
    origin: str = ""
    """Rollout that made the call: of a branch, for the calls before it began, the one that it comes from; '' means
    `rollout_id`."""
    malformed: bool = False
    """What it wrote was no action."""
    failed: bool = False
    """The cell it ran raised, ran out of time or took its kernel along, or what it wrote was no action."""
    step_reward: float = 0.0
    """What the task gives for the step itself, beside the return; 0 for a memory."""


def samples(trajectory: Trajectory) -> list[StepSample]:
    """The training rows of a trajectory, one per model call, in order; none where it has no reward.

    Raises:
        UsageError: a call without token ids or log-probs, as remote chat endpoints make them.
    """
    reward = trajectory.reward
    if reward is None:
        return []
    calls = list(trajectory.calls())
    answers = {event["step"]: event for event in trajectory.events if event["kind"] == "observation"}
    rows = []
    for number, call in enumerate(calls):
        event = call.event
        if call.prompt_ids is None or event["completion_ids"] is None or event["logprobs"] is None:
            raise UsageError(
                f"{trajectory.rollout_id}: its model gave no token ids and log-probs, which training needs; "
                "train on rollouts of a local model"
            )
        answer = answers.get(event["step"], {}) if event["call_kind"] == "action" else {}
        rows.append(
            StepSample(
                task_id=trajectory.task_id,
                rollout_id=trajectory.rollout_id,
                step=number,
                n_steps=len(calls),
                prompt_ids=call.prompt_ids,
                completion_ids=tuple(event["completion_ids"]),
                logprobs=tuple(event["logprobs"]),
                reward=reward,
                truncated=trajectory.truncated,
                kind=event["call_kind"],
                version=event["version"],
                state_key=event["state_key"],
                origin=event.get("rollout", trajectory.rollout_id),
                malformed=bool(answer.get("error")),
                failed=bool(answer.get("failed")),
                step_reward=answer.get("reward", 0.0),
            )
        )
    return rows
