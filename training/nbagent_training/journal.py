"""The journal of one phase: its lines in metrics.jsonl, alarms, trackers, and what the terminal shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbagent.runfolder import RunFolder
from nbagent_training.alarms import Check
from nbagent_training.alarms import begun as alarms_begun
from nbagent_training.trackers import Tracker

Show = Callable[[Sequence[Mapping[str, Any]], Sequence[str]], None]
"""Takes all lines of the phase, and the alarms that the newest one raised."""


class Journal:
    """What a phase's trainer reports, one line an update; without a gap or a repetition, however often it is resumed.

    Args:
        run: whose metrics.jsonl.
        phase: name of the phase in it.
        show: the terminal.
        trackers: what else is told.
        checks: the alarms that look at the phase.

    Attributes:
        lines: the phase's lines so far, oldest first.
    """

    def __init__(
        self,
        run: RunFolder,
        phase: str,
        show: Show,
        trackers: Sequence[Tracker] = (),
        checks: Sequence[Check] = (),
    ) -> None:
        self._run = run
        self._phase = phase
        self._show = show
        self._trackers = trackers
        self._checks = checks
        self.lines: list[dict[str, Any]] = []

    def begin(self, step: int) -> None:
        """Take back what was reported after `step`, which the trainer goes on from. Raises StorageError."""
        self.lines = self._run.rewind_metrics(self._phase, step)
        for tracker in self._trackers:
            tracker.begin(self._phase, step)

    def add(self, step: int, logs: Mapping[str, float]) -> None:
        """Write one update's numbers. Raises StorageError."""
        numbers = _numbers(logs)
        line: dict[str, Any] = {"phase": self._phase, "step": step, **numbers}
        begun = alarms_begun([*self.lines, line], self._checks)
        if begun:
            line["alarms"] = begun
        self._run.log_metrics(line)
        self.lines.append(line)
        for tracker in self._trackers:
            tracker.log(self._phase, step, numbers)
        self._show(self.lines, begun)


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """Finite numbers, to six significant digits."""
    found = {name: value for name, value in logs.items() if isinstance(value, int | float)}
    return {name: float(f"{value:.6g}") for name, value in found.items() if math.isfinite(value)}
