"""What a build tells whoever waits for it, and programs followed line by line."""

from __future__ import annotations

import re
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from nbagent_images.errors import BuildFailed

Progress = Callable[[str, str], None]
"""Called with a step (`wheels`) and the newest line of it."""

LAST_LINES = 50
LINE_LENGTH = 200
ERROR = re.compile(r"^(ERROR|E:)|\berror\b")


def follow(command: Sequence[str], step: str, progress: Progress, cwd: Path | None = None) -> None:
    """Run a program, passing its lines on.

    Raises:
        BuildFailed: it failed; quotes its last lines.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        try:
            for line in running.stdout:
                last.append(line.rstrip())
                progress(step, line.rstrip())
        except BaseException:
            running.terminate()
            raise
    if running.returncode:
        raise BuildFailed(f"{step}: {command[0]} failed with status {running.returncode}: {quoted(last)}")


def quoted(lines: Sequence[str]) -> str:
    """The last lines of a program, cut short; only those that are marked as errors, if any are."""
    cut = [line.strip()[:LINE_LENGTH] for line in lines if line.strip()]
    return " | ".join([line for line in cut if ERROR.search(line)] or cut[-10:]) or "it said nothing"
