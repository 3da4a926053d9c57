"""What a run says while it works: stages with progress bars, how much memory it took, and in the end all that."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console

from nbagent.progress import Advance, progress_bar
from nbagent.runfolder import write_whole


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


def note_facts(run: Path, seed: int, seconds: float, stages: Stages, memory: MemoryWatch) -> None:
    """demo.json: what the report says beside scores and curves; what earlier lives of the run took is added up."""
    path = run / "demo.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    spent = dict(known.get("stage_seconds", {}))
    for name, took in stages.seconds.items():
        spent[name] = round(spent.get(name, 0.0) + took, 1)
    facts = {
        "seed": seed,
        "seconds": round(known.get("seconds", 0.0) + seconds, 1),
        "stage_seconds": spent,
        "peak_memory_bytes": max(memory.peak, known.get("peak_memory_bytes", 0)),
        "peak_process_bytes": max(memory.process_peak, known.get("peak_process_bytes", 0)),
        "torch_threads": torch.get_num_threads(),
    }
    write_whole(path, json.dumps({**known, **facts}, indent=1) + "\n")
