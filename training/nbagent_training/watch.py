"""What a run says while it works: stages with progress bars, and how much memory it took."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """Finished items per second."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing before there is one."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


class Stages:
    """Prints stages as they begin and end; on a terminal with a bar, a rate and the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """One stage; yields `advance(n=1, note="")`. Its wall time is kept in `seconds`."""
        begin = time.monotonic()
        progress = Progress(
            TextColumn("[progress.description]{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        if not self.console.is_terminal:
            self.console.print(f"{name} …", highlight=False)
        with progress:
            bar = progress.add_task(name, total=total, note="")

            def advance(n: int = 1, note: str = "") -> None:
                if note:
                    progress.update(bar, note=note)
                progress.update(bar, advance=n)

            yield advance
        took = time.monotonic() - begin
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        if not self.console.is_terminal:
            self.console.print(f"{name}: {took:.1f} s", highlight=False)


def available_bytes() -> int:
    """MemAvailable of this machine, bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


class MemoryWatch:
    """Watches the machine's available memory, once a second: all processes of a run are in it, kernels included.

    Attributes:
        peak: largest drop below the level at the start, bytes; other programs' use counts too.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nbagent-memory", daemon=True)
        self._start = available_bytes()

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self.peak = max(self.peak, self._start - available_bytes())

    @property
    def process_peak(self) -> int:
        """Largest resident size of this process alone, bytes."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
