"""What a phase shows while it runs: on a terminal a table with small curves, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Characters of a small curve."""
EVERY_S = 60.0
"""Seconds between two lines where there is no terminal: a day of training is then some 1,400 lines of a log."""
SHOWN = (
    "reward", "share_mixed", "share_all_0", "share_all_1", "teacher_kl", "entropy", "kl", "logp_gap", "ratio_max",
    "clip_high_share", "advantage_std", "grad_norm", "loss", "trajectory_tokens_mean", "steps_mean", "truncated_share",
    "malformed_share", "infrastructure", "tokens_per_s", "rollout_s", "teacher_s", "train_s", "sync_s",
)  # fmt: skip
"""Metrics on the terminal, as far as a phase has them."""
BRIEF = ("reward", "share_mixed", "loss", "entropy", "grad_norm", "tokens_per_s")
"""Metrics of a line in a log."""


class Dashboard:
    """Shows one phase. Use as a context.

    Args:
        console: where to print.
        name: of the phase.
        total: updates in all.
    """

    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console, self._name, self._total = console, name, total
        self._live: Live | None = None
        self._began = self._said = time.monotonic()
        self._first: tuple[int, float] | None = None
        """Step and moment of the first line."""
        self._unsaid: Mapping[str, Any] = {}

    def __enter__(self) -> Dashboard:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(Text(f"{self._name} …"), console=self._console, refresh_per_second=2)
            self._live.start()
        else:
            self._console.print(f"{self._name}: {self._total} …", highlight=False, markup=False)
            self._said = -EVERY_S
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            if self._unsaid:
                self._say(self._unsaid)
            took = time.monotonic() - self._began
            self._console.print(f"{self._name}: {took:.1f} s", highlight=False, markup=False)

    def show(self, lines: Sequence[Mapping[str, Any]], alarms: Sequence[str]) -> None:
        """Show the newest of a phase's lines, and say what alarms began with it."""
        step = int(lines[-1]["step"])
        if self._first is None:
            self._first = step, time.monotonic()
        for words in alarms:
            self._console.print(f"ALARM at {self._name} {step}: {words}", style="bold yellow", markup=False)
        if self._live is not None:
            self._live.update(Group(table(lines), Text(self._progress(step), style="dim")))
        elif time.monotonic() - self._said >= EVERY_S:
            self._say(lines[-1])
        else:
            self._unsaid = lines[-1]

    def _say(self, line: Mapping[str, Any]) -> None:
        self._said, self._unsaid = time.monotonic(), {}
        words = [self._progress(int(line["step"])), *(f"{name} {line[name]:.4g}" for name in BRIEF if name in line)]
        self._console.print("  ".join(words), highlight=False, markup=False, soft_wrap=True)

    def _progress(self, step: int) -> str:
        took = time.monotonic() - self._began
        said = f"{self._name} {step}/{self._total}, {_clock(took)} gone"
        # From the first line on: where a resumed phase began, and how many steps a line stands for, is not known.
        first, since = self._first or (step, self._began)
        if step == first:
            return said
        left = (time.monotonic() - since) / (step - first) * (self._total - step)
        return f"{said}, about {_clock(left)} left"


def table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Name, newest value and course of every shown metric."""
    made = Table(box=None, pad_edge=False)
    made.add_column("metric")
    made.add_column("now", justify="right")
    made.add_column("course")
    for name in SHOWN:
        values = [float(line[name]) for line in lines if name in line]
        if values and name in lines[-1]:
            made.add_row(name, f"{values[-1]:.4g}", sparkline(values))
    return made


def sparkline(values: Sequence[float]) -> str:
    """A curve of block characters, from the smallest value to the largest; means where there are too many.

    Example:
        >>> sparkline([0, 1, 2, 7])
        '▁▂▃█'
    """
    size = -(-len(values) // WIDTH)
    means = [sum(part) / len(part) for i in range(0, len(values), size) if (part := values[i : i + size])]
    low, high = min(means), max(means)
    return "".join(BARS[round((value - low) / ((high - low) or 1.0) * (len(BARS) - 1))] for value in means)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
