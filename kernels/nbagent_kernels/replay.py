"""Branching by repetition: what a session executed, run once more in another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nbagent_kernels.types import CellResult, Status

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done to a session's kernel."""

    code: str | None
    """The cell's source; None is a restart."""
    timeout: float | None = None
    """Seconds it was given; of a cell that was interrupted from outside, the seconds it had run."""
    status: Status = "ok"
    """How it ended."""
    state_kept: bool = True
    """Whether the variables survived it."""


class Replayed(Protocol):
    """The verbs that a replay needs."""

    async def execute(self, code: str, timeout: float | None = None) -> CellResult:
        """Run one cell."""
        ...

    async def restart(self) -> None:
        """A fresh kernel."""
        ...


async def replay(steps: Sequence[Step], session: Replayed) -> None:
    """Do all of it again, in order; where a cell ends otherwise than it did, that is logged and the rest follows."""
    for number, step in enumerate(steps, 1):
        if step.code is None:
            await session.restart()
            continue
        result = await session.execute(step.code, step.timeout)
        if result.status != step.status:
            _log.warning(
                "step %d of a replayed session ended with %s where it had ended with %s",
                number,
                result.status,
                step.status,
            )
        if result.state_kept and not step.state_kept:
            await session.restart()
