"""Step samples: one training row per model call, made from a trajectory and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    kind: Literal["action", "summary"] = "action"
    """What the call wrote."""
    version: int = 0
    """Version of the weights that sampled it."""
    state_key: str = ""
    """Hash of the normalised notebook state the call saw."""
