"""Host-side failures of rollouts: what kind they are, and when a run with too many of them stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

# Known by being imported: the errors of remote models derive from ModelError.
import nbagent.models.endpoint  # noqa: F401
from nbagent.errors import InfrastructureError, ModelError
from nbagent.recipe import Recipe
from nbagent.rollouts import Group
from nbagent.tasks import Outcome
from nbagent.trajectory import Trajectory
from nbagent_images.errors import ImageError
from nbagent_kernels.errors import KernelError
from nbagent_training.errors import TooManyFailures

ADVICE = {
    "sandbox": "look at the machine's memory, disk and processes (`nbagent exec` tries one kernel)",
    "model": "look at the model server and its log",
    "other": "the log holds a traceback of each",
}


class Failures(Recipe):
    """How many rollouts may fail for a cause on the host's side before the run stops."""

    limit: float = Field(default=0.25, gt=0, le=1)
    """Largest share of failed rollouts; a quarter missing is a broken host, and what is left is no fair sample."""
    window: int = Field(default=5, ge=1)
    """Updates over which the share is taken, so that one bad minute of a long run does not end it."""


def failure_class(trajectory: Trajectory) -> str:
    """`sandbox` (no kernel came up, or it failed), `model` (it could not be asked) or `other` (a bug, a verifier)."""
    kind = trajectory.error.partition(":")[0]
    if kind in _names(ModelError):
        return "model"
    return (
        "sandbox" if any(kind in _names(root) for root in (InfrastructureError, KernelError, ImageError)) else "other"
    )


def _names(root: type[Exception]) -> set[str]:
    """Of an error and all that derive from it: a log holds the class as a word."""
    return {root.__name__}.union(*(_names(derived) for derived in root.__subclasses__()))


def count_failures(groups: Sequence[Group]) -> dict[str, float]:
    """attempts, infrastructure, failures_sandbox, failures_model, failures_other, ungraded and retries of an update.

    `retries` counts the new tries after a failure, whether they helped or not.
    """
    failed = [t for group in groups for t in group.failed if t.outcome is Outcome.INFRASTRUCTURE]
    every = [t for group in groups for t in (*group.trajectories, *group.failed)]
    classes = Counter(map(failure_class, failed))
    return {
        "attempts": float(len(every)),
        "infrastructure": float(len(failed)),
        **{f"failures_{name}": float(classes[name]) for name in ADVICE},
        "ungraded": float(sum(t.outcome is Outcome.UNGRADED for t in every)),
        "retries": float(sum(t.start["attempt"] for t in every)),
    }


def check_failures(history: Sequence[Mapping[str, Any]], newest: Mapping[str, float], settings: Failures) -> None:
    """Stop a run whose host is broken.

    The share is taken over the newest update and up to `window` - 1 before it; an update of which nothing is left stops
    the run by itself. None of those before passed the limit, so a run that is resumed on a mended host goes on.

    Args:
        history: metrics of the updates before, oldest first.
        newest: the update's own, from `count_failures`.
        settings: window and limit.

    Raises:
        TooManyFailures: the share passes the limit; says of which class most are and what to do.
    """
    all_failed = 0 < newest["attempts"] <= newest["infrastructure"]
    last = [newest] if all_failed else [*history[max(0, len(history) - settings.window + 1) :], newest]
    attempts = sum(line.get("attempts", 0.0) for line in last)
    failed = sum(line.get("infrastructure", 0.0) for line in last)
    if failed <= settings.limit * attempts and not all_failed:
        return
    worst = max(ADVICE, key=lambda name: sum(line.get(f"failures_{name}", 0.0) for line in last))
    raise TooManyFailures(
        f"{failed:.0f} of {attempts:.0f} rollouts (updates: the last {len(last)}) failed for a cause on the host's "
        f"side, most of class `{worst}` (failures.limit: {settings.limit:.0%}); {ADVICE[worst]}"
    )
