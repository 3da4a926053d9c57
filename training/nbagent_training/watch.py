"""What a run says while it works: stages with progress bars, and how much memory it took."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.console import Console

from nbagent.progress import Advance, progress_bar


class Stages:
    """Stages of a run, each with its progress bar.

    Attributes:
        seconds: wall time of each stage, by name.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        """One stage with a bar."""
        with self.timed(name), progress_bar(name, total, console=self.console) as advance:
            yield advance

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """One stage that shows its progress itself."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin


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
