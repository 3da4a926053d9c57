"""How much memory is free here, and how much the kernels of this process take."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nbagent_kernels.cgroups import own_place
from nbagent_kernels.workspace import process_root

BOUNDS = {"memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"), "": ("memory.max", "memory.current")}
"""Version 1's controller, or version 2's "", -> the files with a control group's limit and use, bytes."""
containers: dict[str, tuple[int, int]] = {}
"""Containers of this process: the engine's id -> pid of a process in it, and the most that it may take, bytes."""


def available_bytes() -> int:
    """Memory that can still be used: the machine's, or what this process's control group leaves where that is less."""
    free = _fields(Path("/proc/meminfo"))["MemAvailable:"] << 10
    for controller, (limit, used) in BOUNDS.items():
        with contextlib.suppress(OSError, ValueError):
            place = own_place(controller)
            free = min(free, int((place / limit).read_text()) - _used(place, used))
    return max(free, 0)


def total_bytes() -> int:
    """Memory of the machine."""
    return _fields(Path("/proc/meminfo"))["MemTotal:"] << 10


def kernels_bytes() -> int:
    """Memory of this process's kernels, their fork servers and all that they started: the sum of their PSS.

    PSS gives each page that processes share to them in equal parts (Linux's Documentation/filesystems/proc.rst).
    Containers count with what their control groups say, files in memory included; where that cannot be read, with their
    limits.
    """
    ours = f"HOME={process_root()}/".encode()
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError, KeyError):
                if any(item.startswith(ours) for item in (entry / "environ").read_bytes().split(b"\0")):
                    total += _fields(entry / "smaps_rollup")["Pss:"] << 10
    return total + sum(_container_bytes(*container) for container in list(containers.items()))


def _container_bytes(identity: str, known: tuple[int, int]) -> int:
    pid, limit = known
    for controller, (_, used) in BOUNDS.items():
        with contextlib.suppress(OSError, ValueError):
            place = own_place(controller, pid)
            if identity in str(place):  # else it is the machine's, or some other group's
                return _used(place, used)
    return limit


def _used(place: Path, file: str) -> int:
    """What a control group takes, but for pages of files on a disk: they count there, and can be taken back.

    Files in memory stay in the count: the kernel keeps them among the anonymous pages.
    """
    stat = _fields(place / "memory.stat")
    cached = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("inactive_file", "active_file"))
    return max(int((place / file).read_text()) - cached, 0)


def _fields(file: Path) -> dict[str, int]:
    """The numbers of a file with a name and a number on each line."""
    rows = (line.split() for line in file.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
