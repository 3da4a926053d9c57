"""Which limit a cell ran into, if any: told from counters where there are some, else from the error it ended in."""

from __future__ import annotations

import re

from nbagent_kernels.cgroups import Counters
from nbagent_kernels.types import CellResult, Limits

SIGNS = (
    ("memory_bytes", r"MemoryError|Cannot allocate memory|cannot allocate vector of size"),
    ("open_files", r"Too many open files(?! in system)"),
    ("file_bytes", r"File too large|SIGXFSZ"),
)
"""Field of Limits, and what an error, Python's or R's, says when that limit was hit."""
NAMES = {"memory_bytes": "memory", "open_files": "open files", "file_bytes": "size of a file", "processes": "processes"}


class LimitWatch:
    """Looks at one cell. A limit that is not set, or whose sign is not there, is never named.

    Args:
        limits: the session's.
        group: its control group, which counts what was refused or killed, whatever the cell made of it.
    """

    def __init__(self, limits: Limits, group: Counters | None) -> None:
        self._limits = limits
        self._group = group
        self._before = self._counts()

    def hit(self, result: CellResult) -> str:
        """The limits that were hit since this watch was made, as CellResult.limit has them."""
        kills, forks = self._counts()
        found = {"memory_bytes"} if kills > self._before[0] else set()
        if forks > self._before[1]:
            found.add("processes")
        said = [result.cause] + [
            f"{output.get('ename', '')}: {output.get('evalue', '')}"
            for output in result.outputs
            if output.get("output_type") == "error"
        ]
        found |= {field for field, sign in SIGNS for text in said if re.search(sign, text)}
        return "; ".join(
            f"{name}: {_amount(field, getattr(self._limits, field))}"
            for field, name in NAMES.items()
            if field in found and getattr(self._limits, field) is not None
        )

    def _counts(self) -> tuple[int, int]:
        return (self._group.oom_kills(), self._group.refused_forks()) if self._group else (0, 0)


def _amount(field: str, value: int) -> str:
    if not field.endswith("_bytes"):
        return str(value)
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} bytes"
